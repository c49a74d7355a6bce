"""The virtual clock on trio: trio's `MockClock`, extended to wait for threads and for I/O.

Without this extension, `MockClock` jumps whenever all tasks are blocked, even while a worker thread runs or a task
waits for a socket.
"""

from collections.abc import Generator
from contextlib import contextmanager
from math import inf
from typing import Any
from weakref import WeakKeyDictionary

import trio
from trio.testing import MockClock, active_thread_count


class _Pace(trio.abc.Instrument):
    """Decides after each step of a task whether the clock may jump. Only a step can change the answer."""

    def __init__(self, clock: MockClock) -> None:
        self.outside = 0
        self._clock = clock
        self._real = False

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        del task
        self.settle()

    def settle(self) -> None:
        real = self.outside > 0 or active_thread_count() > 0 or _waiting_for_io()
        if real is self._real:
            return
        self._real = real
        self._clock.rate = 1.0 if real else 0.0
        self._clock.autojump_threshold = inf if real else 0.0


_paces: WeakKeyDictionary[trio.abc.Clock, _Pace] = WeakKeyDictionary()


def autojump_options() -> dict[str, Any]:
    """Return the options of `trio.run` for a fresh virtual clock."""
    clock = MockClock(autojump_threshold=0)
    pace = _paces[clock] = _Pace(clock)
    return {"clock": clock, "instruments": [pace]}


@contextmanager
def real_pace() -> Generator[None]:
    """Keep this run's clock at the real pace while the block is open."""
    pace = _paces.get(trio.lowlevel.current_clock())
    if pace is None:
        yield
        return
    pace.outside += 1
    try:
        yield
    finally:
        pace.outside -= 1


def _waiting_for_io() -> bool:
    # The names differ between epoll, kqueue and Windows. One of the tasks is trio's own, which waits at its wake-up
    # socket.
    statistics = trio.lowlevel.current_statistics().io_statistics
    names = ("tasks_waiting", "tasks_waiting_read", "tasks_waiting_write")
    return sum(getattr(statistics, name, 0) for name in names) > 1
