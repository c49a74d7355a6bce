"""The state machine under locks, semaphores and read-write locks: a capacity, holders, and a queue of waiting owners.

Nothing here waits, reads a clock or knows an event loop. Each step is plain code that runs under the monitor of
`_lock_waiting`. A lock has a capacity of 1, a semaphore of n. In a read-write lock a reader takes 1 and a writer all.

Invariants:
1. The used capacity never exceeds the capacity, and is the sum of the weights of the holders.
2. A new request is granted only if there is room and no queue; otherwise it joins the end of the queue. No request
   overtakes another. With `writers_first`, requests for the whole capacity stand before all others in the queue.
3. Between steps, the head of the queue does not fit. So small requests do not starve a large one.
4. A waiter is granted at most once. If its owner leaves the queue, or cannot accept the grant, the room goes to the
   next waiter.

A signal or the garbage collector may run other code between any two steps. That code may raise, or call this module
again. So changes that belong together are made without a call in between, and state is read again after each call.
"""

from __future__ import annotations

from collections import deque
from types import CodeType
from typing import Any, Final

WAITING, GRANTED, CANCELLED = range(3)

ALL: Final = 1 << 30
"""The capacity of a read-write lock: more than there will ever be readers."""

READ, DOWNGRADED = 1, 2
"""The weight of a reader, and of a writer after a downgrade. They differ, so that the two can be told apart."""


CodeLocation = str | tuple[CodeType, int] | None
"""A place in the code: `file:line`, or a code object and the offset of an instruction, which takes less time to get."""

_NOTHING: Final[list[None]] = []


class LockWaiter:
    """A place in the queue, and after the grant a record of the hold. Subclasses wake the owner that waits."""

    __slots__ = ("location", "owner", "since", "state", "weight")

    def __init__(self, owner: Any, weight: int, since: float, location: CodeLocation = None) -> None:
        self.owner, self.weight, self.since, self.location = owner, weight, since, location
        self.state = WAITING

    def is_cancelled(self) -> bool:
        """Return whether the wait was cancelled, so that a grant would not be accepted."""
        return False

    def wake(self) -> bool:
        """Tell the owner of the grant, perhaps more than once. Returns False if the owner can no longer be woken."""
        return True


class HoldInfo:
    """Start and place of a hold. Recorded only while others wait for the holder, or in debug mode."""

    __slots__ = ("location", "since")

    def __init__(self, since: float, location: CodeLocation) -> None:
        self.since, self.location = since, location


class CapacityState:
    __slots__ = (
        "__weakref__",
        "acquired",
        "capacity",
        "debug",
        "details",
        "hold_seconds",
        "holders",
        "label",
        "longest_hold",
        "longest_wait",
        "multiple_holds",
        "queue",
        "used",
        "wait_seconds",
        "waited",
        "writers_first",
    )

    def __init__(
        self,
        label: str,
        capacity: int,
        *,
        multiple_holds: bool = False,
        writers_first: bool = False,
        debug: bool = False,
    ) -> None:
        self.label = label
        self.capacity = capacity
        self.multiple_holds = multiple_holds  # whether one owner may hold it more than once
        self.debug = debug
        self.writers_first = writers_first
        self.used = 0
        self.holders: dict[Any, int] | None = None
        self.details: dict[Any, HoldInfo | LockWaiter] | None = None
        self.queue: deque[LockWaiter] | None = None
        self.acquired: int = 0
        self.waited: int = 0
        self.wait_seconds = self.longest_wait = self.hold_seconds = self.longest_hold = 0.0

    # `FastLockState` and `FastSemaphoreState` override these.

    free_permits: list[None] = _NOTHING  # always empty: every acquisition needs the monitor
    owner: Any = None

    def add_holder(self, owner: Any, weight: int) -> bool:
        """Grant the weight to an owner if there is room. Does not check the queue: the caller does."""
        holders = self.holders
        if holders is None:
            holders = self.holders = {}
        already = holders.get(owner, 0)
        if self.used + weight > self.capacity:
            return False
        self.used += weight
        holders[owner] = already + weight
        self.acquired += 1
        return True

    def remove_holder(self, owner: Any, weight: int) -> bool:
        """Take the weight back from an owner. Returns False if the owner does not hold that much."""
        holders = self.holders
        held = 0 if holders is None else holders.get(owner, 0)
        if holders is None or held < weight or not (held == weight or self.multiple_holds):
            return False
        if held == weight:
            del holders[owner]
        else:
            holders[owner] = held - weight
        self.used -= weight
        return True

    def held(self) -> dict[Any, int]:
        """Return a copy of the weights of all holders, by owner."""
        return {} if self.holders is None else self.holders.copy()

    def is_held_by(self, owner: Any) -> bool:
        return self.holders is not None and owner in self.holders

    # The steps.

    def try_acquire(self, owner: Any, weight: int) -> bool:
        """Acquire if there is room and nobody waits."""
        return not self.queue and self.add_holder(owner, weight)

    def enqueue(self, waiter: LockWaiter) -> None:
        """Join the queue. The holds of the current holders are timed from now on."""
        queue = self.queue
        if queue is None:
            queue = self.queue = deque()
        if self.writers_first and waiter.weight == self.capacity:
            index = len(queue)
            while index and queue[index - 1].weight < self.capacity:
                index -= 1
            queue.insert(index, waiter)
        else:
            queue.append(waiter)
        if len(queue) == 1:
            if self.details is None:
                self.details = {}  # from now on every release uses the monitor
            for owner in self.held():
                self.record_hold(owner, waiter.since, None)

    @property
    def quiet(self) -> bool:
        """Whether nobody waits and no details of holders are recorded, so that a release has nothing else to do."""
        return self.details is None and not self.queue

    def release(self, owner: Any, weight: int, now: float) -> bool:
        """Release `weight` and grant waiting owners. Returns False if the owner holds less than `weight`."""
        if not self.remove_holder(owner, weight):
            return False
        self._count_hold(owner, now)
        self.grant_waiters(now)
        return True

    def remove_waiter(self, waiter: LockWaiter, now: float) -> None:
        """Give up a wait: leave the queue, or release a weight that was granted already."""
        state, waiter.state = waiter.state, CANCELLED
        if state == GRANTED:
            self.release(waiter.owner, waiter.weight, now)
        elif state == WAITING and self.queue and waiter in self.queue:
            self.queue.remove(waiter)
            self.grant_waiters(now)

    def grant_waiters(self, now: float) -> None:
        """Grant waiters from the head of the queue, as far as there is room."""
        queue = self.queue
        while queue:
            head = queue[0]
            if head.state == WAITING and head.is_cancelled():
                head.state = CANCELLED
            elif head.state == WAITING:
                if not self.add_holder(head.owner, head.weight):
                    return
                head.state = GRANTED
                self._count_wait(head, now)
                details = self.details
                if details is None:
                    self.details = {head.owner: head}
                elif head.owner not in details:
                    details[head.owner] = head
                head.since = now  # from here on it is the start of the hold
            alive = head.state == CANCELLED or head.wake()
            if queue and queue[0] is head:
                queue.popleft()
            if not alive:
                head.state = CANCELLED
                self.remove_holder(head.owner, head.weight)
                self._count_hold(head.owner, now)

    def change_weight(self, owner: Any, weight: int, now: float) -> bool:
        """Lower the weight of an owner to `weight` without a gap in the hold. Returns False if the owner holds less."""
        held = self.held().get(owner, 0)
        if held < weight or self.holders is None:
            return False
        self.holders[owner] = weight
        self.used -= held - weight
        self.grant_waiters(now)
        return True

    # Dependencies between owners, for the search for deadlocks.

    def blockers(self, waiter: LockWaiter) -> list[Any]:
        """Return the owners that must release before a waiting waiter can be granted: each holds too much.

        In a semaphore with room for several there may be none, because a release by any one of the holders is enough.
        """
        if waiter.state != WAITING:
            return []
        room = self.capacity - waiter.weight
        held = self.held()
        if self.used - len(held) + 1 <= room and self.used:
            return []  # no holder has more than `room`, even if all the others hold only 1
        return [owner for owner, weight in held.items() if weight > room]

    def owners_ahead(self, waiter: LockWaiter) -> list[Any]:
        """Return the owners before a waiter in the queue that must be served first, by the rule of `blockers`."""
        if waiter.state != WAITING:
            return []
        room = self.capacity - waiter.weight
        found: list[Any] = []
        for other in self.queue or ():
            if other is waiter:
                break
            if other.state == WAITING and other.weight > room:
                found.append(other.owner)
        return found

    # Statistics.

    def record_hold(self, owner: Any, since: float, location: str | None) -> None:
        """Record the start and the place of a hold, unless they are recorded already."""
        if self.details is None:
            self.details = {}
        self.details.setdefault(owner, HoldInfo(since, location))

    def _count_wait(self, waiter: LockWaiter, now: float) -> None:
        self.waited += 1
        seconds = now - waiter.since
        self.wait_seconds += seconds
        self.longest_wait = max(self.longest_wait, seconds)

    def _count_hold(self, owner: Any, now: float) -> None:
        if self.details is None or self.is_held_by(owner):
            return
        hold = self.details.pop(owner, None)
        if not self.details:
            self.details = None
        if hold is not None:
            seconds = now - hold.since
            self.hold_seconds += seconds
            self.longest_hold = max(self.longest_hold, seconds)


class FastLockState(CapacityState):
    """Capacity for one, which can be acquired and released without the monitor.

    `free_permits` has one item as long as nobody holds the lock. Deleting that item acquires the lock: this is one step
    of the interpreter, and only one thread can succeed with it. A release without the monitor looks at the queue
    afterwards, and a request that joins the queue looks at `free_permits` afterwards: at least one of them sees the
    other. Once `details` of the holder are recorded, the holder uses the monitor.
    """

    __slots__ = ("free_permits", "owner")

    def __init__(self, label: str) -> None:
        self.label = label
        self.capacity = 1
        self.multiple_holds = self.debug = self.writers_first = False
        self.used = self.acquired = self.waited = 0
        self.holders = self.details = self.queue = None
        self.wait_seconds = self.longest_wait = self.hold_seconds = self.longest_hold = 0.0
        self.free_permits: list[None] = [None]
        self.owner: Any = None

    def add_holder(self, owner: Any, weight: int) -> bool:
        try:
            del self.free_permits[0]
        except IndexError:
            return False
        self.owner = owner
        self.details = None
        self.acquired += 1
        return True

    def remove_holder(self, owner: Any, weight: int) -> bool:
        if self.owner is not owner or owner is None:
            return False
        self.owner = None
        self.free_permits.append(None)
        return True

    def transfer(self, owner: Any, head: LockWaiter) -> HoldInfo | LockWaiter | None:
        """Pass the lock from its holder straight to the head of the queue, which must be waiting and not cancelled.

        The lock is never free in between. The caller updates the statistics. Returns the record of the former hold.
        Returns None, with nothing done, if the owner does not hold the lock or its hold has no record.
        """
        details = self.details
        if self.owner is not owner or details is None or owner not in details:
            return None
        hold, next_owner = details[owner], head.owner
        after: dict[Any, HoldInfo | LockWaiter] = {next_owner: head}
        self.owner = next_owner
        self.details = after
        head.state = GRANTED
        return hold

    def held(self) -> dict[Any, int]:
        owner = self.owner
        return {} if owner is None else {owner: 1}

    def is_held_by(self, owner: Any) -> bool:
        return self.owner is owner

    def _count_hold(self, owner: Any, now: float) -> None:
        CapacityState._count_hold(self, owner, now)
        self.details = None


class FastSemaphoreState(CapacityState):
    """Capacity for a few. Single permits can be acquired and released without the monitor, as in `FastLockState`.

    `free_permits` has an item for each free permit, and deleting one acquires a permit. The permits of an owner are
    recorded only by the owner's thread, without a call in between.
    """

    __slots__ = ("free_permits",)

    holders: dict[Any, int]  # never None here

    def __init__(self, label: str, capacity: int, *, debug: bool = False) -> None:
        CapacityState.__init__(self, label, capacity, multiple_holds=True, debug=debug)
        self.free_permits: list[None] = [None] * capacity
        self.holders = {}  # pyright: ignore[reportIncompatibleVariableOverride] - never None

    @property
    def used(self) -> int:
        """The number of permits that are taken."""
        return self.capacity - len(self.free_permits)

    @used.setter
    def used(self, _: int) -> None: ...

    def add_holder(self, owner: Any, weight: int) -> bool:
        free_permits, holders = self.free_permits, self.holders
        last, places = -weight, slice(-weight, None)
        try:  # atomic: the list is checked and cut without a call in between
            free_permits[last]
            del free_permits[places]
        except IndexError:
            return False
        holders[owner] = holders[owner] + weight if owner in holders else weight
        self.acquired += 1
        return True

    def remove_holder(self, owner: Any, weight: int) -> bool:
        holders, places = self.holders, [None] * weight
        held = holders[owner] if owner in holders else 0  # noqa: SIM401 - no call from here on
        if held < weight:
            return False
        if held == weight:
            del holders[owner]
        else:
            holders[owner] = held - weight
        self.free_permits.extend(places)
        return True

    def transfer(self, owner: Any, head: LockWaiter) -> HoldInfo | LockWaiter | None:
        """Pass the only permit of an owner straight to the head of the queue, as in `FastLockState`."""
        holders, details, next_owner = self.holders, self.details, head.owner
        if details is None or head.weight != 1 or self.free_permits or next_owner in holders:
            return None
        if owner not in holders or holders[owner] != 1 or owner not in details:
            return None
        hold = details[owner]
        del holders[owner], details[owner]
        holders[next_owner] = 1
        details[next_owner] = head
        head.state = GRANTED
        return hold

    def change_weight(self, owner: Any, weight: int, now: float) -> bool:
        held = self.holders.get(owner, 0)
        return held >= weight and (held == weight or self.release(owner, held - weight, now))
