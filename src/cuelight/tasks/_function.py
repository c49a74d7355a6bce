"""Functions as tasks: `@task` gives a function a name under which workers find it, and typed ways to send it."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Coroutine, Iterable
from copy import copy
from functools import update_wrapper
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    ParamSpec,
    Protocol,
    Self,
    TypeAlias,
    TypedDict,
    TypeVar,
    Unpack,
    overload,
)

import msgspec

from cuelight._text import safe_repr
from cuelight.tasks._blocking import BlockingFace
from cuelight.tasks._codec import decode, limits_of, record_of
from cuelight.tasks._parameters import Arguments, Parameters, brief
from cuelight.tasks._task import Limit, Task, TaskPriority

if TYPE_CHECKING:
    from cuelight.tasks._queue import TaskQueue
    from cuelight.tasks._task_handle import TaskHandle

__all__ = ["AsyncTaskFunction", "PlainTaskFunction", "SendOptions", "TaskFunction", "TaskOptions", "task"]

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

T = TypeVar("T")

Limits = Limit | Iterable[Limit]

# As many parameters as lambdas usually have: strict type checkers know nothing of those of a `Callable[..., T]`.
_Lambda: TypeAlias = (
    Callable[[Any], T] | Callable[[Any, Any], T] | Callable[[Any, Any, Any], T] | Callable[[Any, Any, Any, Any], T]
)
OfArguments: TypeAlias = _Lambda[T] | Callable[..., T]
"""A function that is called with the arguments of the task."""


class TaskOptions(TypedDict, total=False):
    """What can be said of all tasks of a function; the fields of `Task` say what each means.

    `limits` and `unique` may be functions of the arguments. `unique=True` is one key for each set of arguments, as a
    worker gets them: neither the order of a dict nor a default that is spelled out makes another.
    """

    priority: TaskPriority | int
    delay: float
    max_retries: int
    timeout: float | None
    max_timeouts: int
    max_crashes: int
    unique: str | bool | OfArguments[str | None] | None
    unique_for: float | None
    limits: Limits | OfArguments[Limits]
    result_ttl: float
    tenant: str | None
    tenant_weight: float


class SendOptions(TaskOptions, total=False):
    """What can be said of one task besides: its identity, and when it is too late to start it."""

    task_id: str
    deadline: float | None


class TaskFunction(Generic[P, R_co]):
    """A function that can run in a worker. Made by `@task`; immutable: `bind` and `with_options` give changed copies.

    Attributes:
        name: under which workers know it: `Task.task_type`.
        function: the function itself.
        is_async: whether it is an `async def`.
        queue: the queue that `send` uses; None if it is bound to none.
        options: the fields of `Task` that are not as usual.
    """

    __name__: str
    __qualname__: str
    name: str
    function: Callable[P, Any]
    is_async: bool
    queue: TaskQueue | None
    options: SendOptions

    def __init__(
        self, function: Callable[P, Any], name: str | None, queue: TaskQueue | None, options: SendOptions
    ) -> None:
        given: Any = name
        if given is not None and not isinstance(given, str):
            raise TypeError(f"@task(name={safe_repr(given)}): give a string")
        self.name = _name_of(function) if name is None else name
        if not self.name:
            raise ValueError(f"@task(name=''): give {brief(function)} a name, or leave it out")
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"{self.name} is a generator: a task returns one result; `return` a list instead")
        self.function, self.queue = function, _async_queue(queue)
        self.is_async = inspect.iscoroutinefunction(function)
        self._parameters = Parameters(function, self.name)
        self.options = _checked(options, self.name)
        wrapper: Any = self
        update_wrapper(wrapper, function, updated=())

    # To whom sends.

    def bind(self, queue: TaskQueue) -> Self:
        """The same function, with `send` going to this queue.

        Raises:
            TypeError: it is no `TaskQueue`; a blocking queue has a `send` of its own.
        """
        changed = copy(self)
        changed.queue = _async_queue(queue)
        return changed

    def with_options(self, **options: Unpack[SendOptions]) -> Self:
        """The same function, with other options for its tasks.

        Args:
            **options: fields of `Task`; `unique` and `limits` may be functions of the arguments.

        Raises:
            TypeError: there is no such option, or a value has the wrong type.
            ValueError: a value makes no sense; the message says which.
        """
        changed = copy(self)
        changed.options = _checked({**self.options, **options}, self.name)
        return changed

    def task(self, *args: P.args, **kwargs: P.kwargs) -> Task:
        """A task that calls the function with these arguments. Nothing is sent.

        Raises:
            TypeError: an argument is missing, too many, of the wrong type, or cannot be stored.
        """
        payload = self._parameters.pack(args, kwargs)
        fields: dict[str, Any] = {**self.options}
        unique: Any = fields.get("unique")
        limits: Any = fields.get("limits", ())
        if callable(unique):
            unique = unique(*args, **kwargs)
        elif unique is True:
            unique = self._parameters.unique_key(payload)
        if callable(limits):
            limits = limits(*args, **kwargs)
        fields["unique"] = None if unique is False else unique
        fields["limits"] = _tuple_of(limits)
        return Task(task_type=self.name, payload=payload, **fields)

    async def send(self, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R_co]:
        """Put a task that calls the function with these arguments into its queue. A checkpoint.

        Returns:
            A handle to the task; if its id or its unique key is taken, to the task that has it.

        Raises:
            TypeError: an argument is missing, too many, of the wrong type, or cannot be stored.
            RuntimeError: the function has no queue.
            QueueFull: as for `TaskQueue.enqueue`, like whatever else that raises.
        """
        if self.queue is None:
            raise RuntimeError(
                f"{self.name} has no queue to be sent to: `await queue.send({self.__name__}, ...)`, "
                f"`{self.__name__}.bind(queue).send(...)`, or `@task(queue=queue)`"
            )
        return await self.queue.send(self, *args, **kwargs)

    async def delay(self, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R_co]:
        """`send`, under the name that those who come from Celery know."""
        return await self.send(*args, **kwargs)

    # For workers.

    def call_with(self, payload: Any) -> Arguments:
        """The arguments of a task that waits, each of the type that its annotation says.

        Args:
            payload: `{"args": [...], "kwargs": {...}}`.

        Raises:
            TypeError: the payload does not fit the signature.
        """
        return self._parameters.unpack(payload)

    def encode_result(self, value: Any) -> bytes:
        """The bytes of what the function returned, for a store.

        Raises:
            TypeError: a part of it cannot be stored, or would not come back as it is.
        """
        return self._parameters.encode_result(value)

    def read_result(self, data: bytes | None) -> R_co:
        """What the function returned, of the type that its annotation says.

        Raises:
            TypeError: it returned something else.
            ValueError: these bytes are no result of a task.
        """
        value = None if data is None else decode(data)
        try:
            result: R_co = msgspec.convert(value, self._parameters.returns)
        except msgspec.ValidationError as error:
            raise TypeError(f"{self.name} returned {brief(value)}, not what its annotation says: {error}") from None
        return result

    def __copy__(self) -> Self:
        # Not by way of `__reduce__`, which finds this very object in its module again.
        changed = object.__new__(type(self))
        changed.__dict__.update(self.__dict__)
        return changed

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        # The module holds this object under the function's name, so the function alone could not be pickled.
        return _find, (self.__module__, self.__qualname__)

    def __repr__(self) -> str:
        return f"<task {self.name}>"


class AsyncTaskFunction(TaskFunction[P, R]):
    """The task function of an `async def`."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Call the function itself, here and now."""
        running: Coroutine[Any, Any, R] = self.function(*args, **kwargs)
        return running


class PlainTaskFunction(TaskFunction[P, R]):
    """The task function of a `def`."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function itself, here and now."""
        result: R = self.function(*args, **kwargs)
        return result


class _Decorator(Protocol):
    # An `async def` is also a `def` that returns a coroutine; the first that fits is meant.
    @overload
    def __call__(  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload]
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncTaskFunction[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> PlainTaskFunction[P, R]: ...


@overload
def task(  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload]
    function: Callable[P, Coroutine[Any, Any, R]], /
) -> AsyncTaskFunction[P, R]: ...
@overload
def task(function: Callable[P, R], /) -> PlainTaskFunction[P, R]: ...
@overload
def task(*, name: str | None = None, queue: TaskQueue | None = None, **options: Unpack[TaskOptions]) -> _Decorator: ...
def task(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    queue: TaskQueue | None = None,
    **options: Any,
) -> Any:
    """Make a function a task: `@task`, or `@task(max_retries=5, timeout=60)`.

    It can still be called, which runs it here. `send` puts it into a queue, with its arguments checked against its
    annotations at once; a worker that was given it runs it.

    Args:
        function: an async function, or a plain one, of a module.
        name: under which workers find it; its module and name by default. A script is the module `__main__`: tasks
            that another program is to run should be in a module, or have a name.
        queue: where `send` puts it; more often `bind` says that, or `queue.send(function, ...)`.
        **options: fields of `Task` for each task: see `TaskOptions`.

    Raises:
        TypeError: the function is a method or a generator, or has an annotation that cannot be read from a store.
        ValueError: it has no name, or an option makes no sense.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        if isinstance(function, TaskFunction):
            raise TypeError(f"@task on {function!r}: that is a task function; `with_options` gives it other options")
        given: Any = function
        if not callable(given) or isinstance(given, type):
            raise TypeError(f"@task on {safe_repr(function)}: decorate a function")
        return _kind_of(function)(function, name, queue, options)

    return decorate if function is None else decorate(function)


def _kind_of(function: Callable[..., Any]) -> Callable[..., Any]:
    return AsyncTaskFunction if inspect.iscoroutinefunction(function) else PlainTaskFunction


def _name_of(function: Callable[..., Any]) -> str:
    name = getattr(function, "__qualname__", "")
    if not name or "<lambda>" in name:
        raise ValueError(f"{brief(function)} has no name of its own: give it one, as in task(name='greet')(...)")
    return f"{function.__module__}.{name}"


def _async_queue(queue: TaskQueue | None) -> TaskQueue | None:
    given: Any = queue
    if isinstance(given, BlockingFace):
        raise TypeError(f"{safe_repr(queue)} is a blocking queue: send with `queue.send(function, ...)`")
    if given is not None and not callable(getattr(given, "send", None)):
        raise TypeError(f"{safe_repr(given)} is no queue to send to: give a TaskQueue")
    return queue


def _checked(options: SendOptions, name: str) -> SendOptions:
    """The options, if a task can be made with them.

    Raises:
        TypeError: there is no such option, or a value has the wrong type.
        ValueError: a value makes no sense.
    """
    known = SendOptions.__required_keys__ | SendOptions.__optional_keys__
    unknown = options.keys() - known
    if unknown:
        raise TypeError(f"{name}: no such option: {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    checked = options.copy()
    if "priority" in checked and checked["priority"] in tuple(TaskPriority):
        checked["priority"] = TaskPriority(checked["priority"])
    limits, unique = checked.get("limits", ()), checked.get("unique")
    fields: dict[str, Any] = {**checked}
    # What depends on the arguments is looked at when a task is made, and enqueued.
    fields["unique"] = name if callable(unique) or unique is True else None if unique is False else unique
    fields["limits"] = ()
    if not callable(limits):
        fields["limits"] = checked["limits"] = _tuple_of(limits)
    record_of(Task(**fields), "")
    return checked


def _tuple_of(limits: Limits) -> tuple[Limit, ...]:
    return (limits,) if isinstance(limits, Limit) else limits_of(limits)


def _find(module: str, qualname: str) -> Any:
    """The task function that a module has under this name."""
    found: Any = importlib.import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part)
    return found
