"""The timer thread of a blocking pool: an actor that calls the pool's `tick` when something is due."""

from __future__ import annotations

import contextlib
import importlib
import math
import threading
from typing import TYPE_CHECKING, Any, Final

import anyio

from cuelight._log import get_log
from cuelight.actors import Actor, Message, Ref, Start, on
from cuelight.supervision import ActorSystem

if TYPE_CHECKING:
    from collections.abc import Callable

_PAUSE: Final = 1.0  # seconds before the event loop is started again

log = get_log("cuelight.pools")


def load_event_loop() -> None:
    """Import the event loop of the timer thread, in the thread that makes a pool.

    If it were imported with the first task, and another thread forked during the import, the import would never end in
    the child.
    """
    with contextlib.suppress(ImportError):
        importlib.import_module("anyio._backends._asyncio")


class _CheckDue(Message):
    """Asks the checker to call `tick`."""


class _DueChecker(Actor[_CheckDue]):
    """Calls `tick` at each start, so a restart loses nothing: the pool keeps the due times, not this actor."""

    def __init__(self, tick: Callable[[float], float], clock: Callable[[], float]) -> None:
        self._tick, self._clock = tick, clock

    def started(self, why: Start) -> None:
        self._check()

    @on(_CheckDue)
    def check(self, _: _CheckDue) -> None:
        self._check()

    def _check(self) -> None:
        now = self._clock()
        due = self._tick(now)
        if due < math.inf:
            self.after(max(0.0, due - now), _CheckDue(), key="due")


class TimerThread:
    """An actor system with one actor, in a daemon thread, so a program can end while it runs.

    (The thread of `ActorSystem.blocking()` is not a daemon: with it, a pool that was not shut down would keep the
    program alive.)

    Attributes:
        clock: returns the time of its event loop in seconds; callable from any thread.
    """

    clock: Callable[[], float]

    def __init__(self, name: str, tick: Callable[[float], float], backend_options: dict[str, Any] | None) -> None:
        """Start the timer thread, and wait until it runs.

        Args:
            name: name of the pool, for paths in log lines.
            tick: called with the current time, in the thread of the system. It handles due times, and returns the next
                one.
            backend_options: options of the event loop (asyncio). Tests put a virtual clock there.

        Raises:
            Exception: the event loop could not be started.
        """
        self._name, self._tick, self._options = name, tick, backend_options
        self._running, self._ended = threading.Event(), threading.Event()
        self._failure: Exception | None = None
        self._checker: Ref[_CheckDue]
        self._system: ActorSystem
        self._stop: anyio.Event
        self._thread = threading.Thread(target=self._run_thread, name=f"{name}-timer", daemon=True)
        try:
            self._thread.start()
            self._running.wait()
        except BaseException:  # an interrupt: the caller gets no object that it could stop
            self.stop()
            raise
        if self._failure is not None:
            raise self._failure

    def check_soon(self) -> None:
        """Have `tick` called soon. May be called from any thread."""
        try:
            self._checker.tell_threadsafe(_CheckDue())
        except RuntimeError:
            log.debug("%s: the timer thread begins anew, and looks then", self._name)

    def stop(self) -> None:
        """End the timer thread soon. May be called from any thread, and twice."""
        self._ended.set()
        if self._running.is_set() and self._failure is None:  # else it checks `_ended` once it runs
            self.call(lambda: self._stop.set())

    def call(self, function: Callable[[], object]) -> None:
        """Call a function soon, in the thread of the system. From any thread. Does nothing after the end."""
        try:
            self._system.call_threadsafe(function)
        except RuntimeError:
            log.debug("%s: the timer thread has ended", self._name)

    def join(self) -> None:
        self._thread.join()

    def _run_thread(self) -> None:
        while True:
            try:
                anyio.run(self._run_system, backend_options=self._options)
            except Exception as error:
                if not self._running.is_set():
                    self._failure = error
                    self._running.set()
                    return
                log.exception("%s: the timer thread failed too often, and begins anew", self._name)
            if self._ended.wait(_PAUSE):
                return

    async def _run_system(self) -> None:
        async with ActorSystem(f"{self._name}-timer", slow_after=None) as system:
            self._system, self._stop = system, anyio.Event()
            self.clock = system.backend.time
            self._checker = await system.spawn(_DueChecker, self._tick, self.clock)
            self._running.set()  # before the check whether it was stopped meanwhile
            if not self._ended.is_set():
                await self._stop.wait()
