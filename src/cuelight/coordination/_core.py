"""The one state machine under locks, semaphores and read-write locks: so much room, holders, and a line.

Nothing here waits, looks at a clock or knows a loop: every step is plain code, taken under the monitor of
`_parking`. A lock has room for 1, a semaphore for n; of a read-write lock a reader takes 1 and a writer all.

Invariants:
1. What is held never exceeds the capacity, and is the sum of what the holders hold.
2. Who comes finds either room and no line, or the end of the line: nobody overtakes. With `writers_first` those who
   want all of it stand before those who do not.
3. The head of a line at rest does not fit. So a large request is not starved by small ones.
4. A ticket is granted at most once; whoever leaves the line, or is granted and cannot take it, leaves the room to the
   next.

A signal or the garbage collector may run other code between any two steps, and that may raise or come back in here.
So what belongs together is written down without a call in between, and everything is looked at again after a call.
"""

from __future__ import annotations

from collections import deque
from types import CodeType
from typing import Any, Final

__all__ = [
    "ALL",
    "Core",
    "CountedCore",
    "DOWNGRADED",
    "GONE",
    "GRANTED",
    "Hold",
    "LockCore",
    "Place",
    "READ",
    "Ticket",
    "WAITING",
]

WAITING, GRANTED, GONE = range(3)

ALL: Final = 1 << 30
"""The capacity of a read-write lock: more than there will ever be readers."""

READ, DOWNGRADED = 1, 2
"""What a reader takes, and what is left to a writer who has become one: it can be told from a reader."""


Place = str | tuple[CodeType, int] | None
"""A place in the code: `file:line`, or code and the offset of an instruction, which takes less time to get."""

_NOTHING: Final[list[None]] = []


class Ticket:
    """A place in the line, and then what is known of the hold. Subclasses know how to wake whoever waits there."""

    __slots__ = ("owner", "place", "since", "state", "weight")

    def __init__(self, owner: Any, weight: int, since: float, place: Place = None) -> None:
        self.owner, self.weight, self.since, self.place = owner, weight, since, place
        self.state = WAITING

    def gone(self) -> bool:
        """Whether whoever waits has been cancelled and will not take it."""
        return False

    def wake(self) -> bool:
        """It was granted. May be called more than once. Returns False if nobody is left to wake."""
        return True


class Hold:
    """What is known of a hold besides its weight: only of those that somebody waits for, or in debug mode."""

    __slots__ = ("place", "since")

    def __init__(self, since: float, place: Place) -> None:
        self.since, self.place = since, place


class Core:
    """The state of one lock, semaphore or read-write lock."""

    __slots__ = (
        "__weakref__",
        "acquired",
        "capacity",
        "debug",
        "details",
        "hold_seconds",
        "holders",
        "longest_hold",
        "longest_wait",
        "queue",
        "several",
        "thing",
        "used",
        "wait_seconds",
        "waited",
        "writers_first",
    )

    def __init__(
        self, thing: str, capacity: int, *, several: bool = False, writers_first: bool = False, debug: bool = False
    ) -> None:
        self.thing = thing
        self.capacity = capacity
        self.several = several  # whether one owner may hold it more than once
        self.debug = debug
        self.writers_first = writers_first
        self.used = 0
        self.holders: dict[Any, int] | None = None
        self.details: dict[Any, Hold | Ticket] | None = None
        self.queue: deque[Ticket] | None = None
        self.acquired: int = 0
        self.waited: int = 0
        self.wait_seconds = self.longest_wait = self.hold_seconds = self.longest_hold = 0.0

    # What a lock does in another way.

    free: list[None] = _NOTHING  # nothing can be taken without the monitor
    owner: Any = None

    def take(self, owner: Any, weight: int) -> bool:
        """Give an owner its weight if there is room; the line is the caller's business."""
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

    def put_back(self, owner: Any, weight: int) -> bool:
        """Take so much weight from an owner. Returns False if it does not hold that much."""
        holders = self.holders
        held = 0 if holders is None else holders.get(owner, 0)
        if holders is None or held < weight or not (held == weight or self.several):
            return False
        if held == weight:
            del holders[owner]
        else:
            holders[owner] = held - weight
        self.used -= weight
        return True

    def held(self) -> dict[Any, int]:
        """The weights of all holders, by owner: a copy."""
        return {} if self.holders is None else self.holders.copy()

    def is_held_by(self, owner: Any) -> bool:
        """Whether this owner holds any of it."""
        return self.holders is not None and owner in self.holders

    # The steps.

    def try_acquire(self, owner: Any, weight: int) -> bool:
        """Take it if there is room and no line."""
        return not self.queue and self.take(owner, weight)

    def enqueue(self, ticket: Ticket) -> None:
        """Join the line. Whoever held it before is timed from now on."""
        queue = self.queue
        if queue is None:
            queue = self.queue = deque()
        if self.writers_first and ticket.weight == self.capacity:
            place = len(queue)
            while place and queue[place - 1].weight < self.capacity:
                place -= 1
            queue.insert(place, ticket)
        else:
            queue.append(ticket)
        if len(queue) == 1:
            if self.details is None:
                self.details = {}  # from now on nobody gives it back without the monitor
            for owner in self.held():
                self.note(owner, ticket.since, None)

    @property
    def quiet(self) -> bool:
        """Whether nobody waits, and nothing is known of the holders: then giving it back is all there is to do."""
        return self.details is None and not self.queue

    def release(self, owner: Any, weight: int, now: float) -> bool:
        """Give it back and serve the line. Returns False if this owner does not hold that much."""
        if not self.put_back(owner, weight):
            return False
        self._account(owner, now)
        self.promote(now)
        return True

    def leave(self, ticket: Ticket, now: float) -> None:
        """Whoever waited has given up: leave the line, or give back what was granted."""
        state, ticket.state = ticket.state, GONE
        if state == GRANTED:
            self.release(ticket.owner, ticket.weight, now)
        elif state == WAITING and self.queue and ticket in self.queue:
            self.queue.remove(ticket)
            self.promote(now)

    def promote(self, now: float) -> None:
        """Serve the line from its head as far as there is room."""
        queue = self.queue
        while queue:
            head = queue[0]
            if head.state == WAITING and head.gone():
                head.state = GONE
            elif head.state == WAITING:
                if not self.take(head.owner, head.weight):
                    return
                head.state = GRANTED
                self._account_wait(head, now)
                details = self.details
                if details is None:
                    self.details = {head.owner: head}
                elif head.owner not in details:
                    details[head.owner] = head
                head.since = now  # from here on it tells of the hold
            alive = head.state == GONE or head.wake()
            if queue and queue[0] is head:
                queue.popleft()
            if not alive:
                head.state = GONE
                self.put_back(head.owner, head.weight)
                self._account(head.owner, now)

    def change_weight(self, owner: Any, weight: int, now: float) -> bool:
        """Lower what an owner holds to `weight`, without ever letting go. Returns False if it holds less."""
        held = self.held().get(owner, 0)
        if held < weight or self.holders is None:
            return False
        self.holders[owner] = weight
        self.used -= held - weight
        self.promote(now)
        return True

    # Who keeps whom.

    def blockers(self, ticket: Ticket) -> list[Any]:
        """The owners without whom a waiting ticket cannot be granted: those that hold more than it can leave them.

        Of a semaphore with room for several that may be nobody, since whichever holder comes first will do.
        """
        if ticket.state != WAITING:
            return []
        room = self.capacity - ticket.weight
        held = self.held()
        if self.used - len(held) + 1 <= room and self.used:
            return []  # even if all the others hold but 1 each
        return [owner for owner, weight in held.items() if weight > room]

    def ahead(self, ticket: Ticket) -> list[Any]:
        """The owners that stand before it in the line and must have had their turn by then, for the same reason."""
        if ticket.state != WAITING:
            return []
        room = self.capacity - ticket.weight
        found: list[Any] = []
        for other in self.queue or ():
            if other is ticket:
                break
            if other.state == WAITING and other.weight > room:
                found.append(other.owner)
        return found

    # Figures.

    def note(self, owner: Any, since: float, place: str | None) -> None:
        """Remember since when, and from where, an owner holds it, unless that is known."""
        if self.details is None:
            self.details = {}
        self.details.setdefault(owner, Hold(since, place))

    def _account_wait(self, ticket: Ticket, now: float) -> None:
        self.waited += 1
        seconds = now - ticket.since
        self.wait_seconds += seconds
        self.longest_wait = max(self.longest_wait, seconds)

    def _account(self, owner: Any, now: float) -> None:
        if self.details is None or self.is_held_by(owner):
            return
        hold = self.details.pop(owner, None)
        if not self.details:
            self.details = None
        if hold is not None:
            seconds = now - hold.since
            self.hold_seconds += seconds
            self.longest_hold = max(self.longest_hold, seconds)


class LockCore(Core):
    """Room for one, which can be taken and given back without the monitor.

    `free` has one item as long as nobody holds the lock. Deleting it takes the lock: one step of the interpreter, that
    one thread alone can succeed with. Who gives it back that way looks at the line afterwards, and who joins the line
    looks at `free` afterwards: one of them sees the other. Once `details` are known of the holder, it uses the monitor.
    """

    __slots__ = ("free", "owner")

    def __init__(self, thing: str) -> None:
        self.thing = thing
        self.capacity = 1
        self.several = self.debug = self.writers_first = False
        self.used = self.acquired = self.waited = 0
        self.holders = self.details = self.queue = None
        self.wait_seconds = self.longest_wait = self.hold_seconds = self.longest_hold = 0.0
        self.free: list[None] = [None]
        self.owner: Any = None

    def take(self, owner: Any, weight: int) -> bool:
        try:
            del self.free[0]
        except IndexError:
            return False
        self.owner = owner
        self.details = None
        self.acquired += 1
        return True

    def put_back(self, owner: Any, weight: int) -> bool:
        if self.owner is not owner or owner is None:
            return False
        self.owner = None
        self.free.append(None)
        return True

    def pass_on(self, owner: Any, head: Ticket) -> Hold | Ticket | None:
        """Give it from its holder straight to the head of the line, which waits and will not be gone.

        It is never free in between. Figures are the caller's business. Returns what was known of the hold; None, with
        nothing done, if the owner does not hold it or nothing is known.
        """
        details = self.details
        if self.owner is not owner or details is None or owner not in details:
            return None
        hold, heir = details[owner], head.owner
        after: dict[Any, Hold | Ticket] = {heir: head}
        self.owner = heir
        self.details = after
        head.state = GRANTED
        return hold

    def held(self) -> dict[Any, int]:
        owner = self.owner
        return {} if owner is None else {owner: 1}

    def is_held_by(self, owner: Any) -> bool:
        return self.owner is owner

    def _account(self, owner: Any, now: float) -> None:
        Core._account(self, owner, now)
        self.details = None


class CountedCore(Core):
    """Room for a few, single places of which can be taken and given back without the monitor, as of `LockCore`.

    `free` has an item for each free place. Deleting one takes a place. What a party holds is written down by its own
    thread alone, without a call in between.
    """

    __slots__ = ("free",)

    holders: dict[Any, int]  # there from the start

    def __init__(self, thing: str, capacity: int, *, debug: bool = False) -> None:
        Core.__init__(self, thing, capacity, several=True, debug=debug)
        self.free: list[None] = [None] * capacity
        self.holders = {}  # pyright: ignore[reportIncompatibleVariableOverride] - never None

    @property
    def used(self) -> int:
        """How many places are taken."""
        return self.capacity - len(self.free)

    @used.setter
    def used(self, _: int) -> None: ...

    def take(self, owner: Any, weight: int) -> bool:
        free, holders = self.free, self.holders
        last, places = -weight, slice(-weight, None)
        try:  # in one go: the list is looked at and cut without a call in between
            free[last]
            del free[places]
        except IndexError:
            return False
        holders[owner] = holders[owner] + weight if owner in holders else weight
        self.acquired += 1
        return True

    def put_back(self, owner: Any, weight: int) -> bool:
        holders, places = self.holders, [None] * weight
        held = holders[owner] if owner in holders else 0  # noqa: SIM401 - no call from here on
        if held < weight:
            return False
        if held == weight:
            del holders[owner]
        else:
            holders[owner] = held - weight
        self.free.extend(places)
        return True

    def pass_on(self, owner: Any, head: Ticket) -> Hold | Ticket | None:
        """Give the one place that an owner holds straight to the head of the line, as in `LockCore`."""
        holders, details, heir = self.holders, self.details, head.owner
        if details is None or head.weight != 1 or self.free or heir in holders:
            return None
        if owner not in holders or holders[owner] != 1 or owner not in details:
            return None
        hold = details[owner]
        del holders[owner], details[owner]
        holders[heir] = 1
        details[heir] = head
        head.state = GRANTED
        return hold

    def change_weight(self, owner: Any, weight: int, now: float) -> bool:
        held = self.holders.get(owner, 0)
        return held >= weight and (held == weight or self.release(owner, held - weight, now))
