"""The differences between asyncio and trio: sleeping and waking, starting tasks, one alarm, calls from other threads.

The modules above this one use a `Backend`. A task started here belongs to no task group: its starter must await its end
(the actor system does), and the task must catch every exception.
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
from cuelight.mailbox._task_info import asyncio_task

if TYPE_CHECKING:
    import trio


LOST_LOOP: Final = "this process is a fork of the one that runs the event loop, and no thread runs it here"


class Waiter(Protocol):
    """A place where one task sleeps until it is woken. It can be used once.

    `await waiter` sleeps and `wake()` ends the sleep. `wake()` may be called before the await.
    """

    def wake(self) -> None:
        """Wake the task. Do nothing if it was already woken or cancelled."""
        ...

    def __await__(self) -> Generator[Any, Any, None]: ...


class Backend(Protocol):
    """The operations that Cuelight needs from an event loop."""

    name: str
    loop: Any
    """The identity of the loop, as `running_loop` returns it."""
    cancelled: type[BaseException]
    time: Callable[[], float]
    waiter: Callable[[], Waiter]
    """Makes a new waiter for the current task."""
    current_task: Callable[[], Any]
    """Returns the running task, or None in an asyncio callback. Call it only in the loop's thread."""

    def cancellation_pending(self) -> bool:
        """Return whether the current task was cancelled natively or by an enclosing scope.

        On asyncio this misses a cancellation that a scope of the library has already caught: the owner of that scope
        must check for it. Call this only in a task of the loop.
        """
        ...

    steps_by_hand: bool
    """Whether one task can run the code of another one up to its first wait; see `swap_current_task`."""

    def spawn(
        self, function: Callable[..., Coroutine[Any, Any, None]], *args: object, context: Context, name: str
    ) -> Any:
        """Start `function(*args)` as a task in `context` and return the task. `function` must not raise."""
        ...

    def checkpoint(self) -> Awaitable[None]:
        """Let other tasks run. This is a cancellation point."""
        ...

    def set_alarm(self, when: float, ring: Callable[[], None]) -> None:
        """Call `ring()` once at the loop's time `when`. This replaces the previous alarm."""
        ...

    def clear_alarm(self) -> None: ...

    def call_threadsafe(self, function: Callable[..., object], *args: object) -> None:
        """Run `function(*args)` in the loop soon. This can be called from any thread.

        Raises:
            RuntimeError: the loop has ended, or it runs in the parent of this forked process.
        """
        ...

    def abandon(self, task: Any) -> None:
        """Let the program end although this cancelled task still runs. This is not possible on trio."""
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
        """Make `task` the running task of an asyncio loop and return the previous one. None stands for no task."""
        before = _current_tasks.get(loop)
        if task is None:
            _current_tasks.pop(loop, None)
        else:
            _current_tasks[loop] = task
        return before


class AsyncioBackend:
    """The back end for asyncio and uvloop."""

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
        # Not loop.create_task: with an eager task factory the new task would start running inside the sender.
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
        # Otherwise asyncio.run would cancel the task again at its end and wait for it.
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
    """The back end for trio. Tasks are system tasks, because the actor system ends an actor, not the spawning scope."""

    name = "trio"
    steps_by_hand = False
    """Trio keeps more state about the running task than the reference to it."""

    def __init__(self) -> None:
        import trio  # noqa: PLC0415 - trio is optional

        self._trio = trio
        self._lowlevel = trio.lowlevel
        self.cancelled: type[BaseException] = trio.Cancelled
        self.time: Callable[[], float] = trio.lowlevel.current_clock().current_time  # raises outside of trio
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
        task.context = context  # not passed above: trio would enter it at once, but it may already be entered
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
        """Do nothing: trio waits for every task."""


def current_backend() -> Backend:
    """Return the back end of the running event loop.

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
    """A place where the current task waits for one value. It is filled once, from the same thread.

    Always check a slot before filling it: `if not slot.done(): slot.set_result(value)`. The slot of a cancelled task is
    done, so no value goes to a task that will not take it.
    """

    def done(self) -> bool:
        """Return whether the slot was filled or its task was cancelled."""
        ...

    def cancelled(self) -> bool:
        """Return whether the task was cancelled before the slot was filled."""
        ...

    def set_result(self, result: Any, /) -> None:
        """Fill the slot and wake its task."""
        ...

    def result(self) -> Any:
        """Return the value that the slot was filled with."""
        ...

    def __await__(self) -> Generator[Any, Any, Any]: ...


class _TrioSlot:
    # On asyncio the slot is a plain future. This class has only the methods that `Slot` needs.
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
    """Return a slot for the current task. The task must await it before it does anything else.

    Raises:
        RuntimeError: no event loop runs in this thread.
    """
    return slot_maker()[0]()


_Future: Final[Any] = asyncio.Future


def slot_maker() -> tuple[Callable[[], Slot], Callable[[], bool]]:
    """Return the running loop's slot factory, and a function that returns whether that factory is out of date.

    This is for callers that create many slots: asking asyncio for the running loop costs more than the rest of a wait.

    Raises:
        RuntimeError: no event loop runs in this thread.
    """
    loop = _events._get_running_loop()
    if loop is not None:
        return partial(_Future, loop=loop), loop.is_closed
    try:
        sys.modules["trio"].lowlevel.current_task()
        hold_interrupts()
    except (KeyError, AttributeError, RuntimeError):  # not imported, or another thread is importing it
        message = "no asyncio or trio event loop runs here: call this inside anyio.run(...)"
        raise RuntimeError(message) from None
    return _TrioSlot, _always


def _always() -> bool:
    return True


def _expire(slot: Slot) -> None:
    if not slot.done():
        slot.set_result(None)


async def await_until(slot: Slot, deadline: float) -> Any:
    """Await `slot` until the loop's time `deadline` at the latest. Return None if the deadline was reached."""
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
    """Return the running loop's time in seconds. Its timers use this clock, which may be a virtual one.

    Raises:
        RuntimeError: no event loop runs in this thread.
    """
    loop = _events._get_running_loop()
    return loop.time() if loop is not None else current_backend().time()


def yield_now() -> Awaitable[None]:
    """Let other tasks run. This is a cancellation point."""
    if _events._get_running_loop() is not None:
        return asyncio.sleep(0)
    checkpoint: Awaitable[None] = sys.modules["trio"].lowlevel.checkpoint()
    return checkpoint


def postpone_cancellation(error: BaseException) -> bool:
    """Let a cancellation reach the current task at its next await instead of now.

    This is for an operation that took effect before the cancellation arrived and cannot be undone.

    Returns:
        Whether the cancellation was postponed. That is not possible before Python 3.13, where `Task.uncancel` does not
        withdraw a cancellation that is not yet delivered, nor for any exception but asyncio's `CancelledError`.
    """
    if sys.hexversion < 0x030D0000 or not isinstance(error, asyncio.CancelledError):
        return False
    task = asyncio.current_task()
    if task is None:  # pragma: no cover - a future is only awaited in a task
        return False
    task.uncancel()
    task.cancel(*error.args)
    return True


# A condition without a lock: tasks wait for the next notification.


class Bell:
    """Wakes all waiting tasks at once. Wait for a condition in a loop: `while not done: await bell.wait()`."""

    __slots__ = ("_backend", "_waiters")

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._waiters: dict[Waiter, None] = {}

    async def wait(self) -> None:
        waiter = self._backend.waiter()
        self._waiters[waiter] = None
        try:
            await waiter
        finally:
            self._waiters.pop(waiter, None)

    def ring(self) -> None:
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters:
            waiter.wake()
