"""The keeper of each loop, and one thread with a loop that works for threads and for loops that have ended.

The thread runs while it is needed, and a moment longer. It neither keeps the program alive nor is it cut off: when the
main thread ends, the thread releases the locks that the main thread left held, and ends before the interpreter does.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final, TypeVar

from cuelight._log import get_log
from cuelight.coordination._owner import ThreadParty, party_ended
from cuelight.mailbox import running_loop
from cuelight.redis._locks._keeper import Keeper, loop_has_ended

if TYPE_CHECKING:
    from cuelight.redis._locks._shared import SharedCore

log = get_log("cuelight.redis")

T = TypeVar("T")

LINGER: Final = 1.0
"""Seconds that the thread stays after the last lease, because starting it costs a millisecond."""

HURRY: Final = 0.02

_register: Final[Any] = getattr(threading, "_register_atexit", None)
"""Registers a callback for the end of the main thread, before other threads are joined; `atexit` calls back after
that.
"""


class LoopThread:
    """The thread. Any other thread may call its methods."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._keeper: Keeper | None = None
        self._nudge: asyncio.Event | None = None
        self._needed = 0
        self._ending = self._registered = False

    def call(self, function: Callable[..., Coroutine[Any, Any, T]], *args: object) -> T:
        """Run an async function in the thread's loop and wait for its result.

        Raises:
            RuntimeError: the caller is this thread itself.
        """
        if threading.current_thread() is self._thread:
            raise RuntimeError(
                "this runs in the thread that renews leases, as `on_loss` does: it must neither take nor release a lock"
            )
        with self as keeper:
            # Not in the caller's context: its information about the running loop is wrong in the thread.
            start = contextvars.Context().run
            future = start(asyncio.run_coroutine_threadsafe, function(*args), keeper.loop)
            try:
                return future.result()
            except BaseException:
                future.cancel()
                raise

    def __enter__(self) -> Keeper:
        """Keep the thread running during the block, and return its keeper."""
        with self._lock:
            keeper = self._started()
            self._needed += 1
            return keeper

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._needed -= 1

    def flush(self, core: SharedCore) -> None:
        """Send the pending releases in the background."""
        with self._lock:
            try:
                keeper = self._started()
            except RuntimeError:  # the interpreter is ending
                log.warning("%s could not be given back: the program ends. Its lease will run out", core.thing)
                return
            self._needed += 1
            keeper.loop.call_soon_threadsafe(self._flush, keeper, core)

    def _flush(self, keeper: Keeper, core: SharedCore) -> None:
        try:
            keeper.flush(core)
        finally:
            self.__exit__()

    def _started(self) -> Keeper:
        if self._keeper is not None:
            return self._keeper
        if not self._registered and _register is not None:
            _register(self.end)
            self._registered = True
        ready: Future[Keeper] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._live(ready)), name="cuelight redis locks", daemon=_register is None
        )
        self._thread.start()
        self._keeper = ready.result()
        return self._keeper

    async def _live(self, ready: Future[Keeper]) -> None:
        keeper, self._nudge = Keeper(self.flush, ours=True), asyncio.Event()
        ready.set_result(keeper)
        quiet = False
        while True:
            try:
                await asyncio.wait_for(self._nudge.wait(), HURRY if self._ending else LINGER)
            except TimeoutError:
                pass
            self._nudge.clear()
            if self._ending:
                keeper.end_soon()
                _let_go_of_the_dead(keeper)
            with self._lock:
                idle = not self._needed and keeper.idle
                if idle and (quiet or self._ending):
                    self._keeper = None
                    return
                quiet = idle

    def end(self) -> None:
        """Release abandoned locks after the main thread has ended, and end with the last other thread."""
        with self._lock:
            self._ending = True
            if self._keeper is not None and self._nudge is not None:
                self._keeper.loop.call_soon_threadsafe(self._nudge.set)


def _let_go_of_the_dead(keeper: Keeper) -> None:
    for lease, core in keeper.leases():
        owner = lease.owner
        if party_ended(owner) or _ends_with_the_program(owner):
            keeper.let_go(core, lease)


def _ends_with_the_program(owner: Any) -> bool:
    thread = owner._thread() if isinstance(owner, ThreadParty) else None
    return thread is not None and (thread is threading.main_thread() or thread.daemon)


the_thread: Final = LoopThread()

_keepers: Final[dict[Any, Keeper]] = {}


def keeper_here() -> Keeper:
    """The keeper of the running loop."""
    loop = running_loop()
    keeper = _keepers.get(loop)
    if keeper is None:
        for old in [old for old in _keepers if loop_has_ended(old)]:
            _keepers.pop(old, None)
        keeper = _keepers[loop] = Keeper(the_thread.flush)
    return keeper


def _after_fork() -> None:
    the_thread.__init__()  # type: ignore[misc]  # a child has none of the threads of its parent
    _keepers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
