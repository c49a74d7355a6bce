"""`@task`: it gives a function the name under which workers find it, and typed methods to send it."""

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

from cuelight._blocking_proxy import BlockingProxy
from cuelight._text import safe_repr
from cuelight.tasks._codec import limits_of, record_of
from cuelight.tasks._functions._parameters import Arguments, Parameters, short_repr
from cuelight.tasks._functions._values import decode
from cuelight.tasks._task import Limit, Task, TaskPriority

if TYPE_CHECKING:
    from cuelight.tasks._queue._task_handle import TaskHandle

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

T = TypeVar("T")

Limits = Limit | Iterable[Limit]

# Strict type checkers cannot infer the parameters of a lambda from `Callable[..., T]`, so common numbers are listed.
_Lambda: TypeAlias = (
    Callable[[Any], T] | Callable[[Any, Any], T] | Callable[[Any, Any, Any], T] | Callable[[Any, Any, Any, Any], T]
)
OfArguments: TypeAlias = _Lambda[T] | Callable[..., T]
"""A function that is called with the arguments of the task."""


class TaskOptions(TypedDict, total=False):
    """Options for all tasks of a function; the fields of `Task` explain them.

    `limits` and `unique` may be functions of the arguments. `unique=True` means one key for each set of arguments as a
    worker gets them: neither the order of a dict nor an explicit default value changes the key.
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
    """Options for a single task: those of `TaskOptions`, and its identifier and its deadline."""

    task_id: str
    deadline: float | None


class TaskSender(Protocol):
    """The queue of a task function: a `TaskQueue`."""

    async def send(self, function: TaskFunction[P, R], /, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R]: ...


class TaskFunction(Generic[P, R_co]):
    """A function that workers can run. Made by `@task`.

    It is immutable: `bind` and `with_options` return changed copies.

    Attributes:
        name: the name under which workers find it, which becomes `Task.task_type`.
        function: the decorated function.
        is_async: whether it is an `async def`.
        queue: the queue that `send` uses; None if it is not bound to a queue.
        options: the fields of `Task` that differ from their defaults.
    """

    __name__: str
    __qualname__: str
    name: str
    function: Callable[P, Any]
    is_async: bool
    queue: TaskSender | None
    options: SendOptions

    def __init__(
        self, function: Callable[P, Any], name: str | None, queue: TaskSender | None, options: SendOptions
    ) -> None:
        given: Any = name
        if given is not None and not isinstance(given, str):
            raise TypeError(f"@task(name={safe_repr(given)}): give a string")
        self.name = _name_of(function) if name is None else name
        if not self.name:
            raise ValueError(f"@task(name=''): give {short_repr(function)} a name, or leave it out")
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"{self.name} is a generator: a task returns one result; `return` a list instead")
        self.function, self.queue = function, _async_queue(queue)
        self.is_async = inspect.iscoroutinefunction(function)
        self._parameters = Parameters(function, self.name)
        self.options = _checked(options, self.name)
        wrapper: Any = self
        update_wrapper(wrapper, function, updated=())

    # Sending.

    def bind(self, queue: TaskSender) -> Self:
        """Return a copy whose `send` uses this queue.

        Raises:
            TypeError: `queue` is not a `TaskQueue`. A blocking queue has its own `send`.
        """
        changed = copy(self)
        changed.queue = _async_queue(queue)
        return changed

    def with_options(self, **options: Unpack[SendOptions]) -> Self:
        """Return a copy with other options for its tasks.

        Args:
            **options: fields of `Task`; `unique` and `limits` may be functions of the arguments.

        Raises:
            TypeError: an option is unknown, or a value has the wrong type.
            ValueError: a value is invalid; the message names it.
        """
        changed = copy(self)
        changed.options = _checked({**self.options, **options}, self.name)
        return changed

    def task(self, *args: P.args, **kwargs: P.kwargs) -> Task:
        """Return a task that calls the function with these arguments, without sending it.

        Raises:
            TypeError: an argument is missing, unexpected, of the wrong type, or cannot be stored.
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
        """Enqueue a task that calls the function with these arguments. A checkpoint.

        Returns:
            A handle to the task. If its identifier or its unique key is already used, a handle to the existing task.

        Raises:
            TypeError: an argument is missing, unexpected, of the wrong type, or cannot be stored.
            RuntimeError: the function is not bound to a queue.
            QueueFull: see `TaskQueue.enqueue`, whose other exceptions are raised, too.
        """
        if self.queue is None:
            raise RuntimeError(
                f"{self.name} is not bound to a queue: `await queue.send({self.__name__}, ...)`, "
                f"`{self.__name__}.bind(queue).send(...)`, or `@task(queue=queue)`"
            )
        return await self.queue.send(self, *args, **kwargs)

    async def delay(self, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R_co]:
        """Alias of `send`, for users of Celery. A checkpoint."""
        return await self.send(*args, **kwargs)

    # For workers.

    def call_with(self, payload: Any) -> Arguments:
        """Return the arguments in a payload, converted to the types in the annotations. For workers.

        Args:
            payload: `{"args": [...], "kwargs": {...}}`.

        Raises:
            TypeError: the payload does not fit the signature.
        """
        return self._parameters.unpack(payload)

    def encode_result(self, value: Any) -> bytes:
        """Encode a return value for a store.

        Raises:
            TypeError: a part of the value cannot be stored, or would change on the way.
        """
        return self._parameters.encode_result(value)

    def read_result(self, data: bytes | None) -> R_co:
        """Decode a result, converted to the type in the annotation.

        Raises:
            TypeError: the result does not fit the annotation.
            ValueError: the bytes are not the result of a task.
        """
        value = None if data is None else decode(data)
        try:
            result: R_co = msgspec.convert(value, self._parameters.returns)
        except msgspec.ValidationError as error:
            raise TypeError(
                f"{self.name} returned {short_repr(value)}, not what its annotation says: {error}"
            ) from None
        return result

    def __copy__(self) -> Self:
        # The default uses `__reduce__`, which returns the object in the module, not a copy.
        changed = object.__new__(type(self))
        changed.__dict__.update(self.__dict__)
        return changed

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        # The function cannot be pickled by its name, because the module has this object under that name.
        return _find, (self.__module__, self.__qualname__)

    def __repr__(self) -> str:
        return f"<task {self.name}>"


class AsyncTaskFunction(TaskFunction[P, R]):
    """The task function of an `async def`."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Call the function directly, without a queue."""
        running: Coroutine[Any, Any, R] = self.function(*args, **kwargs)
        return running


class PlainTaskFunction(TaskFunction[P, R]):
    """The task function of a `def`."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function directly, without a queue."""
        result: R = self.function(*args, **kwargs)
        return result


class _Decorator(Protocol):
    # An `async def` also matches the second overload, as a function that returns a coroutine; the first match counts.
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
def task(*, name: str | None = None, queue: TaskSender | None = None, **options: Unpack[TaskOptions]) -> _Decorator: ...
def task(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    queue: TaskSender | None = None,
    **options: Any,
) -> Any:
    """Make a function a task: `@task`, or `@task(max_retries=5, timeout=60)`.

    The function can still be called directly. `send` enqueues a call, after it has checked the arguments against the
    annotations. A worker that has the function runs it.

    Args:
        function: a function at module level, async or not.
        name: the name under which workers find it; by default the names of its module and of the function. The module
            of a script is `__main__`: if another program runs the tasks, put the function in a module or give it a
            name.
        queue: the queue that `send` uses. Alternatives are `bind` and `queue.send(function, ...)`.
        **options: fields of `Task` for each task; see `TaskOptions`.

    Raises:
        TypeError: the function is a method or a generator, or has an annotation whose type cannot be decoded.
        ValueError: the function has no name, or an option is invalid.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        if isinstance(function, TaskFunction):
            raise TypeError(
                f"@task on {function!r}: this is a task function already; `with_options` changes its options"
            )
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
        raise ValueError(f"{short_repr(function)} has no name: give it one, as in task(name='greet')(...)")
    return f"{function.__module__}.{name}"


def _async_queue(queue: TaskSender | None) -> TaskSender | None:
    given: Any = queue
    if isinstance(given, BlockingProxy):
        raise TypeError(f"{safe_repr(queue)} is a blocking queue: send with `queue.send(function, ...)`")
    if given is not None and not callable(getattr(given, "send", None)):
        raise TypeError(f"{safe_repr(given)} is not a queue: give a TaskQueue")
    return queue


def _checked(options: SendOptions, name: str) -> SendOptions:
    """Return the options if they are valid for a task.

    Raises:
        TypeError: an option is unknown, or a value has the wrong type.
        ValueError: a value is invalid.
    """
    known = SendOptions.__required_keys__ | SendOptions.__optional_keys__
    unknown = options.keys() - known
    if unknown:
        raise TypeError(
            f"{name}: no such option: {', '.join(sorted(unknown))}; the options are {', '.join(sorted(known))}"
        )
    checked = options.copy()
    if "priority" in checked and checked["priority"] in tuple(TaskPriority):
        checked["priority"] = TaskPriority(checked["priority"])
    limits, unique = checked.get("limits", ()), checked.get("unique")
    fields: dict[str, Any] = {**checked}
    # Values that depend on the arguments are checked when a task is made and enqueued.
    fields["unique"] = name if callable(unique) or unique is True else None if unique is False else unique
    fields["limits"] = ()
    if not callable(limits):
        fields["limits"] = checked["limits"] = _tuple_of(limits)
    record_of(Task(**fields), "")
    return checked


def _tuple_of(limits: Limits) -> tuple[Limit, ...]:
    return (limits,) if isinstance(limits, Limit) else limits_of(limits)


def _find(module: str, qualname: str) -> Any:
    """The task function with this name in a module."""
    found: Any = importlib.import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part)
    return found
