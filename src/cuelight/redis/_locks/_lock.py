"""The lock that processes share. It is held under a lease, and its block is cancelled if the lease is lost.

Invariants:
1. A holder that leaves its block normally held its lease to the end, as far as clocks and servers can tell. Otherwise
   the block raises `LeaseLost`.
2. When a lease is lost, the library cancels the scope of its block. Cancellations by others propagate.
3. A release is sent to the server even if the releasing task is cancelled or its loop ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Self

import anyio

from cuelight.coordination import BaseLock, LockStatistics
from cuelight.coordination._lock_order import debug_by_default
from cuelight.coordination._lock_waiting import acquire, acquire_blocking, acquire_nowait, describe_holders, release
from cuelight.coordination._locks import statistics_of
from cuelight.coordination._owner import current_owner, describe
from cuelight.errors import LeaseLost, LockNotHeld
from cuelight.mailbox import loop_time, new_slot, running_loop
from cuelight.redis._client import DEFAULT_URL, server_for
from cuelight.redis._locks._acquire import acquire_lease, acquire_lease_blocking, acquire_lease_nowait
from cuelight.redis._locks._lease import LeaseOptions, OnLoss, now
from cuelight.redis._locks._renewal import SERVER_ERRORS, background_loop, current_renewer
from cuelight.redis._locks._script import LockState, PendingRelease, lock_names, parse_state
from cuelight.redis._locks._shared_state import shared_state

if TYPE_CHECKING:
    from types import TracebackType

    from cuelight.coordination import LockFactory
    from cuelight.redis._client import Server
    from cuelight.redis._locks._lease import LockLease
    from cuelight.redis._locks._shared_state import SharedLockState


PATIENCE: Final = 1.0
"""Seconds that the end of a block waits for the server. After that, the release continues in the background."""


class RedisWeightedLock(BaseLock):
    """A lock over part of a shared state's capacity. It has no state of its own."""

    __slots__ = ("__weakref__", "_name", "_options", "_state", "_weight")

    _other_weights: tuple[int, ...] = ()
    """Other weights that `release` also releases."""

    def __init__(self, state: SharedLockState, weight: int, name: str, options: LeaseOptions) -> None:
        self._state, self._weight, self._name, self._options = state, weight, name, options

    @property
    def name(self) -> str:
        return self._name

    @property
    def locked(self) -> bool:
        """Whether a holder in this process has the lock. `state` covers all processes."""
        return bool(self._state.held())

    @property
    def lease(self) -> LockLease:
        """The caller's lease.

        Raises:
            LockNotHeld: the caller does not hold the lock.
        """
        caller = current_owner()
        for weight in (self._weight, *self._other_weights):
            lease = self._state.newest_lease(caller, weight)
            if lease is not None:
                return lease
        raise not_held_error(self._state, caller)

    def statistics(self) -> LockStatistics:
        """Return the holders and waiters in this process and their waiting times. `state` covers all processes."""
        return statistics_of(self._state)

    async def state(self) -> LockState:
        """Return the server's state of the lock, over all processes. A checkpoint.

        Raises:
            StoreUnavailable: the server cannot be reached.
        """
        return self._state.read("look", parse_state, await self._state.ask("look"))

    def state_blocking(self) -> LockState:
        """Like `state`, but blocks the thread."""
        return self._state.read("look", parse_state, _blocking(self._state, "look"))

    # Acquiring.

    async def acquire(self, timeout: float | None = None) -> None:
        """Acquire the lock, and wait until it is available. A checkpoint.

        Args:
            timeout: seconds to wait for other holders; None waits without a limit. One round trip is always made.

        Raises:
            LockTimeout: the lock could not be acquired within the timeout.
            DeadlockError: the wait would never end, because the holder in this process waits for the caller.
            StoreUnavailable: the server cannot be reached. Callers that are already in the queue continue to wait.
            StoreRefused: the server rejects the call.
            ValueError: the timeout is negative or not a number.
        """
        state, caller, since = self._state, current_owner(), loop_time()
        await acquire(state, self._weight, timeout)
        try:
            lease = await acquire_lease(state, self._options, self._weight, timeout, since)
        except BaseException:
            state.undo_acquire(caller, self._weight)
            raise
        lease.lock = self

    def acquire_blocking(self, timeout: float | None = None) -> None:
        """Like `acquire`, but blocks the thread: for threads without an event loop."""
        state, caller, since = self._state, current_owner(), time.monotonic()
        acquire_blocking(state, self._weight, timeout)
        try:
            lease = acquire_lease_blocking(state, self._options, self._weight, timeout, since)
        except BaseException:
            state.undo_acquire(caller, self._weight)
            raise
        lease.lock = self

    def acquire_nowait(self) -> None:
        """Acquire the lock without waiting for other holders. Not a checkpoint.

        It blocks the thread, and any event loop in it, for one round trip to the server.

        Raises:
            LockHeld: others hold the lock or wait for it.
            DeadlockError: the caller already holds the lock.
            StoreUnavailable: the server cannot be reached.
            StoreRefused: the server rejects the call.
        """
        state, caller = self._state, current_owner()
        acquire_nowait(state, self._weight)
        try:
            lease = acquire_lease_nowait(state, self._options, self._weight)
        except BaseException:
            state.undo_acquire(caller, self._weight)
            raise
        lease.lock = self

    # Releasing.

    def release(self) -> None:
        """Release the lock; it goes to the next waiter. Not a checkpoint.

        In an event loop, the release is sent in the background. In a thread, this waits up to a second for the server.

        Raises:
            LockNotHeld: the caller does not hold the lock.
            LeaseLost: the caller had lost the lock before.
        """
        lease = self.lease
        if running_loop() is None:
            self._release_lease_blocking(lease)
            return
        lost = lease.lost
        self._end_lease(lease)
        release(self._state, lease.weight)
        current_renewer().flush(self._state)
        if lost:
            raise lease.error()

    def release_part(self, lease: LockLease, left: int, apply_locally: Callable[[], object]) -> None:
        """Release part of a lease. Not a checkpoint.

        Args:
            lease: the caller's lease.
            left: the weight that remains held.
            apply_locally: makes the same change in this process.
        """
        state = self._state
        state.queue_release(lease.request, left, lease.until)
        lease.request.weight = left
        apply_locally()
        if running_loop() is not None:
            current_renewer().flush(state)
            return
        try:
            state.ask_blocking("lower", timeout=PATIENCE)
        finally:
            background_loop.flush(state)

    def _end_lease(self, lease: LockLease) -> PendingRelease:
        """Stop renewing a lease, and queue its release."""
        lease.renewer.stop_renewing(lease)
        lease.end()
        self._state.remove_lease(lease)
        return self._state.queue_release(lease.request, 0, max(lease.until, now() + 1))

    def _release_lease_blocking(self, lease: LockLease) -> None:
        state, lost = self._state, lease.lost
        pending_release = self._end_lease(lease)
        try:
            if not pending_release.over:
                _blocking(state, "lower", PATIENCE)
        except SERVER_ERRORS:  # the thread continues to try
            background_loop.flush(state)
        except BaseException:
            background_loop.flush(state)
            raise
        finally:
            release(state, lease.weight)
        if lost or pending_release.outcome == 0:
            raise lease.error()

    async def _release_lease(self, lease: LockLease) -> bool:
        """Release a lease. Returns whether it was held to the end."""
        state, held = self._state, not lease.lost
        pending_release = self._end_lease(lease)
        release(state, lease.weight)
        try:
            with anyio.move_on_after(PATIENCE, shield=True):
                await state.ask("lower")
                await _wait_until_released(state, pending_release)
        except SERVER_ERRORS:
            pass
        finally:
            if not pending_release.over:
                current_renewer().flush(state)
        return held and pending_release.outcome != 0

    # Blocks.

    async def _enter(self, timeout: float | None) -> None:
        await self.acquire(timeout)
        lease = self.lease
        scope = lease.scope = anyio.CancelScope()
        scope.__enter__()
        self._state.blocks.setdefault(lease.owner, []).append((lease, scope))

    async def __aenter__(self) -> Self:
        await self._enter(None)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lease, scope = self._pop_block()
        lease.scope = None
        left = error
        try:
            if scope.__exit__(kind, error, trace):  # true only for a lost lease
                left = None
        except BaseException as remaining:  # the rest of a group (trio), or an error about scopes that are not nested
            left = remaining
        if lease.over:  # released inside the block
            failure: Exception | None = not_held_error(self._state, lease.owner)
        else:
            failure = None if await self._release_lease(lease) else lease.error()
        if failure is not None and (left is None or isinstance(left, Exception)):
            raise failure
        if left is not error and left is not None:
            raise left

    def _pop_block(self) -> tuple[LockLease, anyio.CancelScope]:
        """The lease and the scope of the caller's innermost block of this lock."""
        blocks = self._state.blocks
        caller = current_owner()
        mine = blocks.get(caller, [])
        for place in range(len(mine) - 1, -1, -1):
            if mine[place][0].lock is self:
                block = mine.pop(place)
                if not mine:
                    del blocks[caller]
                return block
        raise not_held_error(self._state, caller)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._release_lease_blocking(self.lease)
        except LeaseLost:
            if error is None or isinstance(error, Exception):
                raise

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name!r} {'held here' if self.locked else 'not held here'}>"


class HeldLease:
    """A block that returns its lease: `async with lock.hold() as lease: ...`."""

    __slots__ = ("_lock", "_timeout")

    def __init__(self, lock: RedisWeightedLock, timeout: float | None) -> None:
        self._lock, self._timeout = lock, timeout

    async def __aenter__(self) -> LockLease:
        await self._lock._enter(self._timeout)
        return self._lock.lease

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._lock.__aexit__(kind, error, trace)

    def __enter__(self) -> LockLease:
        self._lock.acquire_blocking(self._timeout)
        return self._lock.lease

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.__exit__(kind, error, trace)


def not_held_error(state: SharedLockState, caller: Any) -> LockNotHeld:
    """The error for a release of a lock that the caller does not hold."""
    return LockNotHeld(
        f"{describe(caller)} cannot release {state.label}, because it does not hold it: {describe_holders(state)}. "
        f"Who takes it must give it back; a holder that ended has lost it"
    )


def _blocking(state: SharedLockState, op: str, timeout: float | None = None) -> Any:
    if running_loop() is None:
        return state.ask_blocking(op, timeout=timeout)
    return background_loop.call(state.ask, op, (), timeout)


async def _wait_until_released(state: SharedLockState, pending_release: PendingRelease) -> None:
    """Wait until a release is over, also if a thread sent it first."""
    if pending_release.over:
        return
    slot = new_slot()

    def wake() -> None:
        if not slot.done():
            slot.set_result(None)

    state.on_released(pending_release, wake, running_loop())
    await slot


class RedisLock(RedisWeightedLock):
    """A lock shared by all processes that use one Redis or Valkey server, for threads and event loops at once.

        lock = RedisLock("accounts")
        with lock: ...                           # in a thread
        async with lock: ...                     # in a task, on asyncio or trio
        async with lock.hold() as lease:
            await store.save(document, fence=lease.fence)

    The lock is held under a lease, which is renewed as long as the holder lives. A process that dies or freezes loses
    the lock. **A holder is notified of the loss**: the body of an `async with` block is cancelled, and the block raises
    `LeaseLost`; a thread gets that error from `lease.check()` and when it leaves its block. A holder may learn of the
    loss late, so only the fencing token makes the lock safe: pass `lease.fence` to the protected resource, see
    `fenced_set`.

    Locks with one name in one process are one lock. The waiters in a process are served in the order of arrival, and
    processes take turns in the order in which their first waiters arrived. The lock is not re-entrant.

    Args:
        name: the name of the lock; all users of the lock pass the same name.
        redis_url: the address of the server. Locks with one address share one client.
        server: a `RedisClient`, or another `Server`, instead of `redis_url`.
        lease: seconds without a renewal after which the holder has lost the lock.
        on_loss: "cancel" cancels the block; "flag" does not; a function gets the lease, in the loop of the holder or
            in the thread that renews for threads, and must not block. The block raises `LeaseLost` in any case.
        lock_delay: seconds after the expiry of a lease during which nobody gets the lock, for resources that cannot
            check a fence.
        wait_replicas: the number of replicas that must have a grant before it counts. That makes it less likely, but
            not impossible, that a promoted replica does not know the grant.
        prefix: the prefix of all keys.
        debug: as for `LocalLock`.

    Raises:
        ValueError: an argument is invalid.
    """

    __slots__ = ()

    def __init__(
        self,
        name: str,
        redis_url: str = DEFAULT_URL,
        *,
        server: Server | None = None,
        lease: float = 10.0,
        on_loss: OnLoss = "cancel",
        lock_delay: float = 0.0,
        wait_replicas: int = 0,
        prefix: str = "cuelight",
        debug: bool | None = None,
    ) -> None:
        options = LeaseOptions(lease, on_loss, lock_delay, wait_replicas)
        state = shared_state(
            f"lock {name!r}",
            lock_names(prefix, "lock", name),
            server_for(redis_url, server),
            1,
            debug=debug_by_default() if debug is None else debug,
        )
        super().__init__(state, 1, name, options)

    def hold(self, timeout: float | None = None) -> HeldLease:
        """Return a block that provides the lease: `async with lock.hold() as lease: ...`, or `with` in a thread.

        Args:
            timeout: seconds to wait; None waits without a limit.
        """
        return HeldLease(self, timeout)


DistributedLock = RedisLock
"""The name for a lock of several processes; the implementation uses Redis."""


def redis_locks(
    redis_url: str = DEFAULT_URL,
    *,
    server: Server | None = None,
    lease: float = 10.0,
    on_loss: OnLoss = "cancel",
    lock_delay: float = 0.0,
    wait_replicas: int = 0,
    prefix: str = "cuelight",
) -> LockFactory:
    """Return a factory for the locks of a manager over Redis: `LockManager(redis_locks("redis://localhost:6379"))`.

    Args:
        redis_url: as for `RedisLock`, like all other arguments.
        server: as for `RedisLock`.
        lease: as for `RedisLock`.
        on_loss: as for `RedisLock`.
        lock_delay: as for `RedisLock`.
        wait_replicas: as for `RedisLock`.
        prefix: as for `RedisLock`.

    Raises:
        ValueError: an argument is invalid.
    """
    LeaseOptions(lease, on_loss, lock_delay, wait_replicas)
    server = server_for(redis_url, server)

    def make(name: str, /, *, debug: bool | None = None) -> RedisLock:
        return RedisLock(
            name,
            server=server,
            lease=lease,
            on_loss=on_loss,
            lock_delay=lock_delay,
            wait_replicas=wait_replicas,
            prefix=prefix,
            debug=debug,
        )

    return make
