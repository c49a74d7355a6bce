"""Renews the leases of one event loop, notifies holders of lost leases, and sends releases to the server.

Each loop has a renewer. One background thread with a loop serves threads and loops that have ended. It runs while it is
needed, and a moment longer. It neither keeps the program alive nor is it cut off: when the main thread ends, the thread
releases the locks that the main thread left held, and ends before the interpreter does.

Invariants:
1. A held lease is renewed when a third of it is over. Leases on one lock that are due at the same time share a call.
2. A lease is lost when the server says so, or when it expires by this process's clock, which starts before the
   server's.
3. A lease whose renewal was stopped is not renewed again; a renewal that is in flight at that time changes nothing.
4. While nothing is held, there is at most an alarm and no task. Tasks run in an empty context: any code may start them,
   and the connections that they open would otherwise keep its context variables.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio
from redis.exceptions import ResponseError

from cuelight._log import get_log
from cuelight._text import safe_str
from cuelight.coordination._lock_waiting import release_dead_holders
from cuelight.coordination._owner import ThreadOwner, owner_ended
from cuelight.coordination._spread import spread
from cuelight.errors import StoreRefused, StoreUnavailable
from cuelight.mailbox import call_in_loop, current_backend, has_ended, loop_time, running_loop
from cuelight.redis._locks._lease import now

if TYPE_CHECKING:
    from cuelight.redis._locks._lease import LockLease
    from cuelight.redis._locks._shared_state import SharedLockState


log = get_log("cuelight.redis")

SERVER_ERRORS: Final = (StoreUnavailable, StoreRefused, ResponseError)
"""The errors of a call of the server."""


ENDING: Final = 0.5
"""Seconds that an ending program spends on releasing the locks that it holds."""

ENDING_IN_DOUBT: Final = 0.1
"""The same for locks that it requested and for which the server has never answered."""


def backoff(round_: int) -> float:
    """Seconds to wait before a retry after `round_` failures."""
    return min(0.5, 0.02 * 2.0 ** min(round_, 10)) * spread.uniform(0.5, 1.0)


def loop_has_ended(loop: Any) -> bool:
    return loop.is_closed() if isinstance(loop, asyncio.AbstractEventLoop) else has_ended(loop)


class LeaseRenewer:
    """The renewer of one loop. It works in that loop; any thread may call `start_renewing`, `stop_renewing` and
    `release_abandoned`.
    """

    def __init__(self, flush_elsewhere: Callable[[SharedLockState], object], *, is_background: bool = False) -> None:
        """Start in the running loop.

        Args:
            flush_elsewhere: sends pending releases after this loop has ended.
            is_background: whether the loop keeps the leases of all threads, so that user code must not end it.
        """
        self.is_background = is_background
        self._backend = current_backend()
        self.loop = self._backend.loop
        self._flush_elsewhere = flush_elsewhere
        self._leases: dict[LockLease, SharedLockState] = {}
        self._next = math.inf
        self._flushing: dict[SharedLockState, anyio.CancelScope | None] = {}
        self._ending = False

    @property
    def idle(self) -> bool:
        return not self._leases and not self._flushing

    def leases(self) -> list[tuple[LockLease, SharedLockState]]:
        """The leases that are renewed, with their locks."""
        return list(self._leases.items())

    def start_renewing(self, lease: LockLease, state: SharedLockState) -> None:
        """Start to renew a lease."""
        self._leases[lease] = state
        if lease.renew_at < self._next:
            if running_loop() is self.loop:
                self._set_alarm()
            else:
                call_in_loop(self.loop, self._set_alarm)

    def stop_renewing(self, lease: LockLease) -> None:
        """Stop renewing a lease."""
        self._leases.pop(lease, None)

    def release_abandoned(self, state: SharedLockState, lease: LockLease) -> None:
        """Release a lease that its holder did not release."""
        self.stop_renewing(lease)
        lease.end()
        state.queue_release(lease.request, 0, lease.until)
        if running_loop() is self.loop:
            self.flush(state)
        elif not call_in_loop(self.loop, self.flush, state):
            self._flush_elsewhere(state)

    # The methods below run in the loop.

    def finish_soon(self) -> None:
        """Prepare for the end of the program: leave releases that cannot be sent at once to the end of their leases."""
        if not self._ending:
            self._ending = True
            for scope in self._flushing.values():
                if scope is not None:
                    scope.deadline = loop_time() + ENDING

    def _set_alarm(self) -> None:
        due = math.inf
        for lease in list(self._leases):
            due = min(due, lease.until if lease.renewing else lease.renew_at, lease.until)
        self._next = due
        if due < math.inf:
            self._backend.set_alarm(self._backend.time() + max(0.0, due - now()), self._on_alarm)

    def _on_alarm(self) -> None:
        at = now()
        due: dict[SharedLockState, list[LockLease]] = {}
        lost: list[LockLease] = []
        for lease, state in self.leases():
            if at >= lease.until:
                lost.append(lease)
            elif owner_ended(lease.owner):
                release_dead_holders(state)
            elif not lease.renewing and lease.renew_at <= at + lease.request.options.lease / 20:
                lease.renewing = True
                due.setdefault(state, []).append(lease)
        for state, leases in due.items():
            self._backend.spawn(
                self._renew, state, leases, context=contextvars.Context(), name=f"cuelight lease of {state.label}"
            )
        self._report_lost(lost, "it could not be renewed in time")

    def _report_lost(self, lost: list[LockLease], reason: str) -> None:
        """Notify the holders of lost leases. This comes last, because `on_loss` is code of users."""
        for lease in lost:
            self.stop_renewing(lease)
        self._set_alarm()
        ending: BaseException | None = None
        for lease in lost:
            try:
                lease.lose(reason)
            except BaseException as error:  # ends the program, but only after all holders were notified
                ending = error
        if ending is not None:
            raise ending

    async def _renew(self, state: SharedLockState, leases: list[LockLease]) -> None:
        asked = now()
        lost: list[LockLease] = []
        try:
            renewed = await state.renew([lease.request for lease in leases])
        except Exception as error:
            log.warning(
                "leases on %s could not be renewed, %.1f s are left: %s",
                state.label,
                leases[0].remaining(),
                safe_str(error),
            )
            for lease in leases:
                lease.renewing = False
                lease.renew_at = now() + min(lease.request.options.lease / 10, backoff(5))
        else:
            for lease, held in zip(leases, renewed, strict=True):
                lease.renewing = False
                if held:
                    lease.renewed(asked)
                elif lease in self._leases:
                    lost.append(lease)
        self._report_lost(lost, "the server gave it to others, or has lost it")

    def flush(self, state: SharedLockState) -> None:
        """Start a task that sends the pending releases."""
        if loop_has_ended(self.loop):
            self._flush_elsewhere(state)
        elif state.pending and state not in self._flushing:
            self._flushing[state] = None
            self._backend.spawn(
                self._flush, state, context=contextvars.Context(), name=f"cuelight release of {state.label}"
            )

    async def _flush(self, state: SharedLockState) -> None:
        try:
            deadline = math.inf
            if self._ending:
                deadline = loop_time() + (ENDING if state.must_release() else ENDING_IN_DOUBT)
            with anyio.CancelScope(deadline=deadline) as self._flushing[state]:
                await self._send(state)
                return
            if state.must_release():
                log.warning("%s could not be given back: the program ends. Its lease will run out", state.label)
            state.drop_releases()
        finally:
            self._flushing.pop(state, None)
            if state.pending:  # this loop is ending
                self._flush_elsewhere(state)

    async def _send(self, state: SharedLockState) -> None:
        failures = 0
        while state.pending:
            try:
                await state.ask("lower")
                failures = 0
            except Exception as error:
                if not failures and state.must_release():
                    log.warning("%s could not be given back yet: %s", state.label, safe_str(error))
                if self._ending:
                    state.drop_releases()
                    return
                failures += 1
                await anyio.sleep(backoff(failures))


T = TypeVar("T")

IDLE_SECONDS: Final = 1.0
"""Seconds that the thread stays after the last lease, because starting it costs a millisecond."""

ENDING_POLL: Final = 0.02

_register: Final[Any] = getattr(threading, "_register_atexit", None)
"""Registers a callback for the end of the main thread, before other threads are joined; `atexit` calls back after
that.
"""


class BackgroundLoop:
    """The thread. Any other thread may call its methods."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._renewer: LeaseRenewer | None = None
        self._wake_up: asyncio.Event | None = None
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
        with self as renewer:
            # Not in the caller's context: its information about the running loop is wrong in the thread.
            start = contextvars.Context().run
            future = start(asyncio.run_coroutine_threadsafe, function(*args), renewer.loop)
            try:
                return future.result()
            except BaseException:
                future.cancel()
                raise

    def __enter__(self) -> LeaseRenewer:
        """Keep the thread running during the block, and return its renewer."""
        with self._lock:
            renewer = self._start_if_needed()
            self._needed += 1
            return renewer

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._needed -= 1

    def flush(self, state: SharedLockState) -> None:
        """Send the pending releases in the background."""
        with self._lock:
            try:
                renewer = self._start_if_needed()
            except RuntimeError:  # the interpreter is ending
                log.warning("%s could not be given back: the program ends. Its lease will run out", state.label)
                return
            self._needed += 1
            renewer.loop.call_soon_threadsafe(self._flush, renewer, state)

    def _flush(self, renewer: LeaseRenewer, state: SharedLockState) -> None:
        try:
            renewer.flush(state)
        finally:
            self.__exit__()

    def _start_if_needed(self) -> LeaseRenewer:
        if self._renewer is not None:
            return self._renewer
        if not self._registered and _register is not None:
            _register(self.end)
            self._registered = True
        ready: Future[LeaseRenewer] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run(ready)), name="cuelight redis locks", daemon=_register is None
        )
        self._thread.start()
        self._renewer = ready.result()
        return self._renewer

    async def _run(self, ready: Future[LeaseRenewer]) -> None:
        renewer, self._wake_up = LeaseRenewer(self.flush, is_background=True), asyncio.Event()
        ready.set_result(renewer)
        quiet = False
        while True:
            try:
                await asyncio.wait_for(self._wake_up.wait(), ENDING_POLL if self._ending else IDLE_SECONDS)
            except TimeoutError:
                pass
            self._wake_up.clear()
            if self._ending:
                renewer.finish_soon()
                _release_dead(renewer)
            with self._lock:
                idle = not self._needed and renewer.idle
                if idle and (quiet or self._ending):
                    self._renewer = None
                    return
                quiet = idle

    def end(self) -> None:
        """Release abandoned locks after the main thread has ended, and end with the last other thread."""
        with self._lock:
            self._ending = True
            if self._renewer is not None and self._wake_up is not None:
                self._renewer.loop.call_soon_threadsafe(self._wake_up.set)


def _release_dead(renewer: LeaseRenewer) -> None:
    for lease, state in renewer.leases():
        owner = lease.owner
        if owner_ended(owner) or _ends_with_the_program(owner):
            renewer.release_abandoned(state, lease)


def _ends_with_the_program(owner: Any) -> bool:
    thread = owner._thread() if isinstance(owner, ThreadOwner) else None
    return thread is not None and (thread is threading.main_thread() or thread.daemon)


background_loop: Final = BackgroundLoop()

_renewers: Final[dict[Any, LeaseRenewer]] = {}


def current_renewer() -> LeaseRenewer:
    """The renewer of the running loop."""
    loop = running_loop()
    renewer = _renewers.get(loop)
    if renewer is None:
        for old in [old for old in _renewers if loop_has_ended(old)]:
            _renewers.pop(old, None)
        renewer = _renewers[loop] = LeaseRenewer(background_loop.flush)
    return renewer


def _after_fork() -> None:
    background_loop.__init__()  # type: ignore[misc]  # a child has none of the threads of its parent
    _renewers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
