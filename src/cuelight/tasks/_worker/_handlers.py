"""The choice of the function that runs a task, and of its arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

from cuelight._text import safe_repr
from cuelight.pools._functions import is_async, name_of
from cuelight.tasks._codec import task_of
from cuelight.tasks._context import TaskContext, running_task
from cuelight.tasks._functions._function import TaskFunction
from cuelight.tasks._functions._values import decode, encode
from cuelight.tasks._stores._protocol import Lease
from cuelight.tasks._task import Record

if TYPE_CHECKING:
    from cuelight.tasks._task import Task

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

Handlers = Iterable[TaskFunction[..., Any]] | Mapping[str, Callable[..., Any]]
"""Task functions, or functions of the payload by task type."""


class DirectTask(Lease, kw_only=True):
    """A task that was passed to a worker directly. It is in no store, and its payload was never encoded."""

    task: Any

    @classmethod
    def of(cls, task: Task) -> DirectTask:
        checkpoint = None if task.checkpoint is None else encode(task.checkpoint, "checkpoint")
        record = Record(id=task.task_id, type=task.task_type, timeout=task.timeout)
        return cls(record=record, epoch=0, expires=inf, counts=task.counts, checkpoint=checkpoint, task=task)


class Handler:
    """The function for the tasks of one type.

    Attributes:
        function: the function to call.
        arguments: returns the arguments for a lease; raises TypeError or ValueError if the payload does not fit.
        in_loop: whether the function is async.
        name: a name for log and error messages.
        encode: encodes a result; raises TypeError if it cannot be stored.
    """

    __slots__ = ("arguments", "encode", "function", "in_loop", "name")

    def __init__(self, function: Callable[..., Any], arguments: Callable[[Lease], Arguments], name: str) -> None:
        self.function, self.arguments, self.name = function, arguments, name
        given: Any = function
        self.in_loop = given.is_async if isinstance(given, TaskFunction) else is_async(function)
        self.encode: Callable[[Any], bytes] = partial(encode, what=f"the result of {name}")


class TaskHandlers:
    """The handlers of a worker, by task type."""

    def __init__(self, by_type: dict[str, Handler], fallback: Handler | None) -> None:
        self.by_type, self.fallback = by_type, fallback

    def find(self, task_type: str) -> Handler | None:
        """The handler for a type, or None."""
        return self.by_type.get(task_type) or self.fallback

    @property
    def in_loop(self) -> bool:
        """Whether any handler is async."""
        return any(handler.in_loop for handler in (*self.by_type.values(), self.fallback) if handler is not None)


def task_handlers_of(handlers: Handlers, handler: Callable[..., Any] | None) -> TaskHandlers:
    """Check the handlers that were passed to a worker.

    Raises:
        TypeError: a handler cannot run tasks.
        ValueError: there are no handlers, or two functions have the same name.
    """
    by_type: dict[str, Handler] = {}
    given: Any = handlers
    if isinstance(given, Mapping):
        pairs: list[tuple[Any, Any]] = list(given.items())  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType, reportUnknownMemberType]
    elif isinstance(given, Iterable) and not isinstance(given, str):
        functions: list[Any] = list(given)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        pairs = [(getattr(function, "name", None), function) for function in functions]
        plain = [function for _, function in pairs if not isinstance(function, TaskFunction)]
        if plain:
            raise TypeError(
                f"handlers has {safe_repr(plain[0])}, which is not a task function: decorate it with @task, "
                f"or give a mapping, {{task_type: function}}"
            )
    else:
        raise TypeError(
            f"handlers={safe_repr(given)}: give a list of task functions, or a mapping, {{task_type: function}}"
        )
    for task_type, function in pairs:
        if task_type in by_type:
            raise ValueError(f"two handlers are named {task_type!r}: give one of them another name, @task(name=...)")
        by_type[task_type] = _handler_of(task_type, function)
    if handler is not None and not callable(handler):
        raise TypeError(f"handler={safe_repr(handler)}: give a function that takes a Task")
    fallback = None if handler is None else Handler(handler, _whole_task, name_of(handler))
    if not by_type and fallback is None:
        raise ValueError("a worker without handlers does nothing: TaskWorker(queue, [function]) or handler=function")
    return TaskHandlers(by_type, fallback)


def _handler_of(task_type: Any, function: Any) -> Handler:
    if not isinstance(task_type, str):
        raise TypeError(f"handlers has the task type {safe_repr(task_type)}: give a string")
    if not callable(function):
        raise TypeError(f"handlers[{task_type!r}] is {safe_repr(function)}, which cannot be called: give a function")
    if not isinstance(function, TaskFunction):
        return Handler(function, _payload, name_of(function))
    task_function: Any = function  # pyright: ignore[reportUnknownVariableType]
    # A plain function may run in a process. The task function is pickled by its name; the bare function could not be.
    called = task_function.function if task_function.is_async else task_function
    handler = Handler(called, lambda lease: task_function.call_with(_payload_of(lease)), task_function.name)
    handler.encode = task_function.encode_result
    return handler


def _payload_of(lease: Lease) -> Any:
    return lease.task.payload if isinstance(lease, DirectTask) else decode(lease.record.payload)


def _payload(lease: Lease) -> Arguments:
    return (_payload_of(lease),), {}


def _whole_task(lease: Lease) -> Arguments:
    return (lease.task if isinstance(lease, DirectTask) else task_of(lease),), {}


def call_in_process(
    context: TaskContext, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Call a function in a worker process, with its context set."""
    token = running_task.set(context)
    try:
        return function(*args, **kwargs)
    finally:
        running_task.reset(token)
