"""The one module that knows asyncio from trio: parking, tasks, one alarm, wake-ups from threads.

Everything above speaks to a `Backend`. Tasks started here belong to no task group: whoever starts one must
await its end (the actor system does), and catch every exception inside it.
"""

from __future__ import annotations

import asyncio
import math
import sys
import threading
import time
from asyncio import events as _events
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from cuelight._fork import forks
from cuelight.mailbox._interrupts import hold_interrupts
from cuelight.mailbox._tasks import asyncio_task

if TYPE_CHECKING:
    import trio

__all__ = [
    "Backend",
    "Slot",
    "Waiter",
    "await_until",
    "current_backend",
    "loop_time",
    "new_slot",
    "postpone_cancellation",
    "slot_maker",
    "swap_current_task",
    "yield_now",
]

LOST_LOOP: Final = "this process is a fork of the one that runs the event loop, and no thread runs it here"


class Waiter(Protocol):
    """A place where one task sleeps until it is woken; for one use.

    `await waiter` sleeps; `wake()` ends that, at most once, and may come before the await.
    """

    def wake(self) -> None:
        """Wake the task. Does nothing when it was woken or cancelled already."""
        ...

    def __await__(self) -> Generator[Any, Any, None]: ...


class Backend(Protocol):
    """What Cuelight needs of an event loop."""

    name: str
    loop: Any
    """Which loop it is: what `running_loop` says there."""
    cancelled: type[BaseException]
    time: Callable[[], float]
    waiter: Callable[[], Waiter]
    """Makes a new place to sleep for the current task."""
    current_task: Callable[[], Any]
    """The task that runs now; None in a callback of asyncio. Only in the loop's own thread."""

    def cancellation_pending(self) -> bool:
        """Whether the current task was cancelled by somebody, natively or by a scope around it.

        A cancellation that was caught by a scope of the library itself is not seen on asyncio: who owns the scope
        knows of it. Only in a task of the loop.
        """
        ...

    steps_by_hand: bool
    """Whether code of one task may be run in another up to its first wait; see `swap_current_task`."""

    def spawn(
        self, function: Callable[..., Coroutine[Any, Any, None]], *args: object, context: Context, name: str
    ) -> Any:
        """Start `function(*args)` as a task in `context`; returns the task. It must not raise."""
        ...

    def checkpoint(self) -> Awaitable[None]:
        """Let other tasks run; a cancellation point."""
        ...

    def set_alarm(self, when: float, ring: Callable[[], None]) -> None:
        """Call `ring()` once at the loop's time `when`; replaces the alarm that was set before."""
        ...

    def clear_alarm(self) -> None:
        """Forget the alarm."""
        ...

    def call_threadsafe(self, function: Callable[..., object], *args: object) -> None:
        """Run `function(*args)` in the loop soon; callable from any thread.

        Raises:
            RuntimeError: the loop has ended, or runs in the process of which this one is a fork.
        """
        ...

    def abandon(self, task: Any) -> None:
        """Let the program end although this task, which was cancelled, goes on. Trio cannot do that."""
        ...


class _AsyncioWaiter:
    __slots__ = ("_future",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._future: asyncio.Future[None] = loop.create_future()

    def wake(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    def __await__(self) -> Generator[Any, Any, None]:
        return self._future.__await__()


if sys.version_info >= (3, 12):
    swap_current_task: Callable[[Any, Any], Any] = asyncio.tasks._swap_current_task
else:
    _tasks: Any = asyncio.tasks
    _current_tasks: dict[Any, Any] = _tasks._current_tasks

    def swap_current_task(loop: Any, task: Any) -> Any:
        """Make `task` the one that an asyncio loop runs now; returns the one before. None stands for no task."""
        before = _current_tasks.get(loop)
        if task is None:
            _current_tasks.pop(loop, None)
        else:
            _current_tasks[loop] = task
        return before


class AsyncioBackend:
    """asyncio, also on uvloop."""

    name = "asyncio"
    steps_by_hand = True
    cancelled: type[BaseException] = asyncio.CancelledError

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop: Any = loop
        self._thread, self._generation = threading.get_ident(), forks.generation
        self._tasks: set[asyncio.Task[None]] = set()
        self._alarm: asyncio.TimerHandle | None = None
        plain = getattr(type(loop), "time", None) is asyncio.BaseEventLoop.time
        self.time: Callable[[], float] = time.monotonic if plain else loop.time
        self.waiter: Callable[[], Waiter] = partial(_AsyncioWaiter, loop)
        self.current_task: Callable[[], Any] = partial(asyncio_task, loop)

    def cancellation_pending(self) -> bool:
        task: asyncio.Task[Any] | None = self.current_task()
        return task is not None and task.cancelling() > 0

    def spawn(
        self, function: Callable[..., Coroutine[Any, Any, None]], *args: object, context: Context, name: str
    ) -> Any:
        # Not loop.create_task: an eager task factory would run the task inside the sender.
        task = asyncio.Task(function(*args), loop=self.loop, context=context, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def checkpoint(self) -> Awaitable[None]:
        return asyncio.sleep(0)

    def set_alarm(self, when: float, ring: Callable[[], None]) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = self.loop.call_at(when, ring)

    def clear_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def call_threadsafe(self, function: Callable[..., object], *args: object) -> None:
        if forks.has_ended(self._thread, self._generation):
            raise RuntimeError(LOST_LOOP)
        self.loop.call_soon_threadsafe(function, *args)

    def abandon(self, task: Any) -> None:
        # Else the end of asyncio.run cancels it once more and waits for it.
        asyncio._unregister_task(task)
        task._log_destroy_pending = False


class _TrioWaiter:
    __slots__ = ("_lowlevel", "_task", "_woken")

    def __init__(self, lowlevel: Any) -> None:
        self._lowlevel = lowlevel
        self._task: trio.lowlevel.Task | None = None
        self._woken = False

    def wake(self) -> None:
        task = self._task
        if task is not None:
            self._task = None
            self._lowlevel.reschedule(task)
        self._woken = True

    def _abort(self, _raise_cancel: object) -> Any:
        self._task = None
        return self._lowlevel.Abort.SUCCEEDED

    def __await__(self) -> Generator[Any, Any, None]:
        if self._woken:
            return
        self._task = self._lowlevel.current_task()
        yield from self._lowlevel.wait_task_rescheduled(self._abort).__await__()


class TrioBackend:
    """trio. Tasks are system tasks: an actor's life is ended by its system, not by the scope that spawned
    it.
    """

    name = "trio"
    steps_by_hand = False
    """No: a task of trio is known to it by more than its being current."""

    def __init__(self) -> None:
        import trio  # noqa: PLC0415 - trio is an option

        self._trio = trio
        self._lowlevel = trio.lowlevel
        self.cancelled: type[BaseException] = trio.Cancelled
        self.time: Callable[[], float] = trio.lowlevel.current_clock().current_time  # raises where trio does not run
        hold_interrupts()
        self.checkpoint: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        self.waiter: Callable[[], Waiter] = partial(_TrioWaiter, trio.lowlevel)
        self.current_task: Callable[[], Any] = trio.lowlevel.current_task
        self.loop: Any = trio.lowlevel.current_root_task()
        self._token = trio.lowlevel.current_trio_token()
        self._thread, self._generation = threading.get_ident(), forks.generation
        self._ring: Callable[[], None] | None = None
        self._when = 0.0
        self._alarm_scope: trio.CancelScope | None = None
        self._alarm_task = False

    def cancellation_pending(self) -> bool:
        return bool(self._trio.current_effective_deadline() == -math.inf)

    def spawn(
        self, function: Callable[..., Coroutine[Any, Any, None]], *args: object, context: Context, name: str
    ) -> Any:
        task = self._lowlevel.spawn_system_task(function, *args, name=name)
        task.context = context  # not as an argument: trio would enter it now, and it may be entered already
        return task

    def set_alarm(self, when: float, ring: Callable[[], None]) -> None:
        self._ring, self._when = ring, when
        if self._alarm_scope is not None:
            self._alarm_scope.deadline = when
        elif not self._alarm_task:
            self._alarm_task = True
            self._lowlevel.spawn_system_task(self._keep_alarm, name="cuelight alarm")

    def clear_alarm(self) -> None:
        self._ring = None
        if self._alarm_scope is not None:
            self._alarm_scope.cancel()

    async def _keep_alarm(self) -> None:
        try:
            while self._ring is not None:
                with self._trio.CancelScope(deadline=self._when) as scope:
                    self._alarm_scope = scope
                    await self._trio.sleep_forever()
                self._alarm_scope = None
                self._ring_if_due()
        finally:
            self._alarm_task = False
            self._alarm_scope = None

    def _ring_if_due(self) -> None:
        ring = self._ring
        if ring is not None and self.time() >= self._when:
            self._ring = None
            ring()

    def call_threadsafe(self, function: Callable[..., object], *args: object) -> None:
        if forks.has_ended(self._thread, self._generation):
            raise RuntimeError(LOST_LOOP)
        self._token.run_sync_soon(function, *args)

    def abandon(self, task: Any) -> None:
        """Nothing to do: trio waits for every task."""


def current_backend() -> Backend:
    """The back end of the running event loop.

    Raises:
        RuntimeError: no event loop runs in this thread.
    """
    loop = _events._get_running_loop()
    if loop is not None:
        return AsyncioBackend(loop)
    try:
        return TrioBackend()
    except (ImportError, RuntimeError):
        message = "no asyncio or trio event loop runs here: call this inside anyio.run(...)"
        raise RuntimeError(message) from None


class Slot(Protocol):
    """A place where the current task waits for one value; for one use, filled from the same thread.

    Whoever wants to fill it must look first: `if not slot.done(): slot.set_result(value)`. A slot whose task
    was cancelled is done, so nothing can be given to a task that will not take it.
    """

    def done(self) -> bool:
        """Whether it was filled, or its task cancelled."""
        ...

    def cancelled(self) -> bool:
        """Whether its task was cancelled before it was filled."""
        ...

    def set_result(self, result: Any, /) -> None:
        """Fill it and wake its task."""
        ...

    def result(self) -> Any:
        """What it was filled with."""
        ...

    def __await__(self) -> Generator[Any, Any, Any]: ...


class _TrioSlot:
    # On asyncio a plain future is the slot. This is the least that looks the same.
    __slots__ = ("_cancelled", "_filled", "_lowlevel", "_result", "_task")

    def __init__(self) -> None:
        self._lowlevel = sys.modules["trio"].lowlevel
        self._task: trio.lowlevel.Task = self._lowlevel.current_task()
        self._filled = self._cancelled = False
        self._result: Any = None

    def done(self) -> bool:
        return self._filled or self._cancelled

    def cancelled(self) -> bool:
        return self._cancelled

    def set_result(self, result: Any, /) -> None:
        self._filled = True
        self._result = result
        self._lowlevel.reschedule(self._task)

    def result(self) -> Any:
        return self._result

    def _abort(self, _raise_cancel: object) -> Any:
        self._cancelled = True
        return self._lowlevel.Abort.SUCCEEDED

    def __await__(self) -> Generator[Any, Any, Any]:
        yield from self._lowlevel.wait_task_rescheduled(self._abort).__await__()
        return self._result


def new_slot() -> Slot:
    """A slot for the current task, which must await it before it does anything else.

    Raises:
        RuntimeError: no event loop runs in this thread.
    """
    return slot_maker()[0]()


_Future: Final[Any] = asyncio.Future


def slot_maker() -> tuple[Callable[[], Slot], Callable[[], bool]]:
    """What `new_slot` does here, and whether that is out of date, for those that do it often.

    Asking asyncio for the running loop costs more than all else that it takes to wait.

    Raises:
        RuntimeError: no event loop runs in this thread.
    """
    loop = _events._get_running_loop()
    if loop is not None:
        return partial(_Future, loop=loop), loop.is_closed
    try:
        sys.modules["trio"].lowlevel.current_task()
        hold_interrupts()
    except (KeyError, AttributeError, RuntimeError):  # not imported, or another thread is in the midst of that
        message = "no asyncio or trio event loop runs here: call this inside anyio.run(...)"
        raise RuntimeError(message) from None
    return _TrioSlot, _always


def _always() -> bool:
    return True


def _expire(slot: Slot) -> None:
    if not slot.done():
        slot.set_result(None)


async def await_until(slot: Slot, deadline: float) -> Any:
    """Await `slot`, but not longer than to the loop's time `deadline`; None when that was reached."""
    loop = _events._get_running_loop()
    if loop is None:
        with sys.modules["trio"].CancelScope(deadline=deadline):
            return await slot
        return None
    alarm = loop.call_at(deadline, _expire, slot)
    try:
        return await slot
    finally:
        alarm.cancel()


def loop_time() -> float:
    """The running loop's time in seconds: what its timers go by, a virtual clock too.

    Raises:
        RuntimeError: no event loop runs in this thread.
    """
    loop = _events._get_running_loop()
    return loop.time() if loop is not None else current_backend().time()


def yield_now() -> Awaitable[None]:
    """Let other tasks run; a cancellation point."""
    if _events._get_running_loop() is not None:
        return asyncio.sleep(0)
    checkpoint: Awaitable[None] = sys.modules["trio"].lowlevel.checkpoint()
    return checkpoint


def postpone_cancellation(error: BaseException) -> bool:
    """Let a cancellation hit the current task at its next await instead of now.

    For an operation that took effect before the cancellation reached it and cannot be undone.

    Returns:
        Whether that was possible. It is not before Python 3.13, where `Task.uncancel` does not take back a
        cancellation that is still to be delivered, nor for anything but asyncio's `CancelledError`.
    """
    if sys.hexversion < 0x030D0000 or not isinstance(error, asyncio.CancelledError):
        return False
    task = asyncio.current_task()
    if task is None:  # pragma: no cover - a future is only awaited in a task
        return False
    task.uncancel()
    task.cancel(*error.args)
    return True
