"""Checks of the arguments of queue methods. Each error shows the value and says which values are accepted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from cuelight._text import safe_repr
from cuelight.tasks._functions._function import TaskFunction
from cuelight.tasks._stores._protocol import Query
from cuelight.tasks._task import Limit, Task

if TYPE_CHECKING:
    from collections.abc import Callable


def check_task(call: str, task: object) -> None:
    """Raise `TypeError`, with `call` as the name of the method, if `task` is not a `Task`."""
    if isinstance(task, Task):
        return
    shown = f"{call}({safe_repr(task)})"
    if isinstance(task, TaskFunction):
        name = task.__name__
        raise TypeError(
            f"{shown}: this is a task function: `queue.send({name}, ...)` sends it with its arguments, and "
            f"`{name}.task(...)` makes a Task of it"
        )
    if isinstance(task, list | tuple):
        raise TypeError(f"{shown}: give one Task; `enqueue_many` takes several")
    if callable(task) and not isinstance(task, type):
        raise TypeError(f"{shown}: give a Task; to send a function, decorate it with @task and pass it to `queue.send`")
    raise TypeError(f"{shown}: give a Task, such as Task(task_type='greet', payload='Ann')")


def check_function(call: str, function: object) -> None:
    """Raise `TypeError` if `function` is not a task function."""
    if isinstance(function, TaskFunction):
        return
    shown = f"{call}({safe_repr(function)})"
    if isinstance(function, Task):
        raise TypeError(f"{shown}: give a function that is decorated with @task; `enqueue` takes a Task")
    if isinstance(function, str):
        raise TypeError(
            f"{shown}: give the function itself, decorated with @task; `enqueue(Task(task_type=..., payload=...))` "
            f"needs no function"
        )
    if callable(function):
        raise TypeError(f"{shown}: this is not a task function: decorate it with @task")
    raise TypeError(f"{shown}: give a function that is decorated with @task, and its arguments after it")


def id_given(call: str, task: object) -> str:
    """Return the identifier of a task, given as a `Task` or as an identifier. Raise `TypeError` for other types."""
    if isinstance(task, Task):
        return task.task_id
    if isinstance(task, str):
        return task
    raise TypeError(f"{call}({safe_repr(task)}): give the Task, or its identifier")


def string_given(call: str, text: object) -> str:
    """Return `text`. Raise `TypeError` if it is not a string."""
    if isinstance(text, Task):
        raise TypeError(f"{call}: {safe_repr(text)} is a Task: give its identifier, `task.task_id`")
    if not isinstance(text, str):
        raise TypeError(f"{call}: {safe_repr(text)} is not a string")
    return text


def items_given(call: str, items: Iterable[Any], wanted: str) -> list[Any]:
    """Return the items of an iterable as a list. Raise `TypeError` for a string, bytes or a non-iterable value."""
    given: Any = items
    if not isinstance(given, Iterable) or isinstance(given, str | bytes):
        raise TypeError(f"{call}({safe_repr(given)}): give {wanted}")
    return list(given)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def check_limit(call: str, limit: object) -> None:
    if not isinstance(limit, Limit):
        raise TypeError(f"{call}({safe_repr(limit)}): give a Limit, such as Limit('openai', max_concurrent=5)")


def check_query(call: str, query: object) -> None:
    if not isinstance(query, Query):
        raise TypeError(f"{call}({safe_repr(query)}): give a Query, such as Query(state='pending')")


def check_store(call: str, store: object) -> None:
    if callable(getattr(store, "exchange", None)) and callable(getattr(store, "open", None)):
        return
    way = "give a store, such as SQLiteStore('tasks.db') or MemoryStore()"
    if getattr(store, "store", None) is not None:
        way += "; `queue.store` is the store of a queue"
    raise TypeError(f"{call}: {safe_repr(store)} is not a task store: {way}")


def check_callback(call: str, function: Callable[..., object] | None) -> None:
    """Raise `TypeError` if `function` is neither callable nor None."""
    if function is not None and not callable(function):
        raise TypeError(f"{call}: {safe_repr(function)} is not a function that takes a Task")
