"""Virtual time: a test that sleeps for a day takes a millisecond.

The rule, the same on both back ends: when every task waits, the clock jumps to the next timer, unless something outside
the loop may still wake a task. These count as outside the loop:

* a worker thread or an executor call whose result has not been delivered yet,
* a file descriptor that is registered with the loop (except its own wake-up pipe), or a child process of the loop,
* an open `real_time` block, for the test's own threads, which no loop can know about.

As long as one of these exists, the clock runs at the pace of real time, so a timer can be late but never early. The
clock stands still while code runs. On trio this is trio's `MockClock`, extended to wait for threads and for I/O.
"""

from __future__ import annotations

import asyncio
import math
import selectors
import sys
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Executor
from contextlib import contextmanager, nullcontext
from math import inf
from typing import Any, Final, Literal, TypeVarTuple, Unpack
from weakref import WeakKeyDictionary, WeakSet

import trio
from anyio._backends._asyncio import WorkerThread
from trio.testing import MockClock, active_thread_count

_Ts = TypeVarTuple("_Ts")

VIRTUAL_BACKENDS: Final[tuple[Literal["asyncio", "trio"], ...]] = ("asyncio", "trio")
"""The names that `virtual_backend` accepts, as parameters for a fixture."""

_SLICE = 0.01
"""Seconds of real time after which a loop at the real pace checks again whether it must keep that pace."""


class _VirtualSelector(selectors.DefaultSelector):
    """The selector of a `VirtualClockLoop`. Only this class advances the loop's time."""

    def __init__(self, must_wait: Callable[[], bool]) -> None:
        super().__init__()
        self.now = 0.0
        self._must_wait = must_wait

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if events or (timeout is not None and timeout <= 0):
            return events
        if timeout is None:
            return super().select(None)
        # The descriptors were polled just now, so a wake-up that is not visible yet comes from a source that must_wait
        # still counts: each source is counted until the loop itself has received its result.
        if not self._must_wait():
            self.now += timeout
            return events
        began = time.monotonic()
        events = super().select(min(timeout, _SLICE))
        self.now += min(time.monotonic() - began, timeout)
        return events


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """An asyncio event loop whose clock starts at 0 and jumps to the next timer when nothing else can happen.

    Use it through `virtual_backend`, or as a loop factory: `asyncio.Runner(loop_factory=VirtualClockLoop)`. The loop
    counts calls to `run_in_executor` and `anyio.to_thread.run_sync`, sockets, pipes and child processes: while one is
    pending, time passes at the real pace. It does not count your own threads; see `real_time`. Debug mode works, but no
    callback ever counts as slow.
    """

    _clock_resolution: float  # asyncio's own: seconds ahead of the clock within which a timer is due

    def __init__(self) -> None:
        self._outside = 0
        self._children: WeakSet[asyncio.SubprocessTransport] = WeakSet()
        self._virtual = _VirtualSelector(self._must_wait)
        super().__init__(self._virtual)

    def time(self) -> float:
        """Return the virtual time in seconds; it starts at 0."""
        now = self._virtual.now
        # asyncio runs a timer when it is before now + resolution, which must not round down to now.
        self._clock_resolution = max(1e-9, 2 * math.ulp(now))
        return now

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[_Ts]], Any], *args: *_Ts
    ) -> asyncio.Future[Any]:
        """Call `func` in an executor; the clock keeps the real pace until the result has been delivered.

        Args:
            executor: the executor, or `None` for the loop's own thread pool.
            func: the function to call there.
            *args: its arguments.
        """
        future: asyncio.Future[Any] = super().run_in_executor(executor, func, *args)
        self._outside += 1
        future.add_done_callback(self._returned)
        return future

    async def subprocess_exec(self, *args: Any, **options: Any) -> Any:
        """Start a child process; the clock keeps the real pace until the process has ended.

        Args:
            *args: as for any asyncio loop.
            **options: as for any asyncio loop.
        """
        return self._child(await super().subprocess_exec(*args, **options))

    async def subprocess_shell(self, *args: Any, **options: Any) -> Any:
        """Start a shell command; the clock keeps the real pace until the command has ended.

        Args:
            *args: as for any asyncio loop.
            **options: as for any asyncio loop.
        """
        return self._child(await super().subprocess_shell(*args, **options))

    async def shutdown_default_executor(self, *args: Any) -> None:
        """Join the threads of the default executor, in real time.

        Args:
            *args: passed on; since Python 3.12 the timeout in seconds.
        """
        with self.real_time():
            await super().shutdown_default_executor(*args)

    @contextmanager
    def real_time(self) -> Generator[None]:
        """Keep the real pace while the block is open. See the function `real_time`."""
        self._outside += 1
        try:
            yield
        finally:
            self._outside -= 1

    def _returned(self, _: asyncio.Future[Any]) -> None:
        self._outside -= 1

    def _child(self, started: tuple[asyncio.SubprocessTransport, Any]) -> Any:
        self._children.add(started[0])
        return started

    def _must_wait(self) -> bool:
        return (
            self._outside > 0
            or len(self._virtual.get_map()) > 1  # one descriptor is the wake-up pipe
            or any(child.get_returncode() is None for child in self._children)
            or any(self._is_busy(thread) for thread in threading.enumerate())
        )

    def _is_busy(self, thread: threading.Thread) -> bool:
        # anyio passes work to its threads without telling the loop. A thread of this loop returns to the idle threads
        # only when the loop has received its result.
        return isinstance(thread, WorkerThread) and thread.loop is self and thread not in thread.idle_workers


def virtual_backend(name: Literal["asyncio", "trio"]) -> tuple[str, dict[str, Any]]:
    """Return a back end with virtual time, in the form that anyio's `anyio_backend` fixture expects.

    Each call makes a fresh clock at 0, so call it once per test:

        @pytest.fixture(params=VIRTUAL_BACKENDS)
        def anyio_backend(request):
            return virtual_backend(request.param)

    Outside pytest: `name, options = virtual_backend("trio")` and `anyio.run(main, backend=name,
    backend_options=options)`.

    Args:
        name: "asyncio" or "trio".

    Raises:
        ValueError: for another name.
        ImportError: for "trio", where trio is not installed.
    """
    match name:
        case "asyncio":
            return name, {"loop_factory": VirtualClockLoop}
        case "trio":
            return name, autojump_options()
        case _:
            raise ValueError(f"there is no virtual clock for the back end {name!r}: it is asyncio or trio")


@contextmanager
def real_time() -> Generator[None]:
    """Let the virtual clock of the running loop keep the pace of real time while the block is open.

    Use it for events that the loop cannot know about: the test's own thread that will call into the loop, or a child
    process that was not started through the loop. On a loop without virtual time it does nothing, so a test can run on
    both.

    Raises:
        RuntimeError: when no event loop is running in this thread.
    """
    if "trio" in sys.modules:
        from trio.lowlevel import in_trio_run  # noqa: PLC0415

        if in_trio_run():
            with real_pace():
                yield
            return
    loop = asyncio.get_running_loop()
    with loop.real_time() if isinstance(loop, VirtualClockLoop) else nullcontext():
        yield


class _ClockRate(trio.abc.Instrument):
    """Decides after each step of a task whether the clock may jump. Only a step can change the answer."""

    def __init__(self, clock: MockClock) -> None:
        self.outside = 0
        self._clock = clock
        self._real = False

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        del task
        self.update()

    def update(self) -> None:
        real = self.outside > 0 or active_thread_count() > 0 or _waiting_for_io()
        if real is self._real:
            return
        self._real = real
        self._clock.rate = 1.0 if real else 0.0
        self._clock.autojump_threshold = inf if real else 0.0


_rates: WeakKeyDictionary[trio.abc.Clock, _ClockRate] = WeakKeyDictionary()


def autojump_options() -> dict[str, Any]:
    """Return the options of `trio.run` for a fresh virtual clock."""
    clock = MockClock(autojump_threshold=0)
    rate = _rates[clock] = _ClockRate(clock)
    return {"clock": clock, "instruments": [rate]}


@contextmanager
def real_pace() -> Generator[None]:
    """Keep this run's clock at the real pace while the block is open."""
    rate = _rates.get(trio.lowlevel.current_clock())
    if rate is None:
        yield
        return
    rate.outside += 1
    try:
        yield
    finally:
        rate.outside -= 1


def _waiting_for_io() -> bool:
    # The names differ between epoll, kqueue and Windows. One of the tasks is trio's own, which waits at its wake-up
    # socket.
    statistics = trio.lowlevel.current_statistics().io_statistics
    names = ("tasks_waiting", "tasks_waiting_read", "tasks_waiting_write")
    return sum(getattr(statistics, name, 0) for name in names) > 1
