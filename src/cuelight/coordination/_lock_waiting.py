"""Tickets of threads and of tasks, and joining the queue without a deadlock.

Invariants:
1. A wait that would deadlock, directly or through other waiters, raises `DeadlockError` and leaves no state behind.
2. A wait is in the graph of waits from before the search for a deadlock until it is granted or given up.
3. A grant reaches the owner that waits: a thread by a lock of its own, a task in its own loop. If that loop has ended,
   the next in the queue gets the grant.

The monitor, and the release of locks whose owner has ended, which is reported in the log.

Every step on a core runs under one monitor for the whole process, and so does the search for deadlocks. The monitor is
held for microseconds, never across a wait. It is re-entrant, because the garbage collector may run a finaliser that
releases a lock during a step; `_core` explains why that is harmless.

Invariants:
1. While an owner waits for a lock, the end of each holder of that lock is noticed at once.
2. A lock that an actor holds is released when the actor crashes, otherwise after its `stopped` hook, whether or not
   others wait for it.
3. Holders of other kinds are checked when a request does not get the lock at once.

The operations on a core: acquire at once, by blocking or by waiting, and release.

Invariant: an operation completes or raises, never both. An operation that is cancelled, interrupted or late leaves
nothing acquired.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio

from cuelight._fork import forks
from cuelight._log import get_log
from cuelight._text import safe_repr
from cuelight.actors import Cell, current_cell, find_cycle, format_cycle, held_by, waits_by_node
from cuelight.coordination._lock_order import note_acquired, note_released
from cuelight.coordination._lock_state import DOWNGRADED, GRANTED, WAITING, Core, Ticket
from cuelight.coordination._owner import (
    ThreadParty,
    caller_place,
    describe,
    here,
    my_place,
    party_ended,
    place_now,
    show_place,
    whoever,
)
from cuelight.errors import DeadlockError, LockHeld, LockNotHeld, LockTimeout
from cuelight.mailbox import (
    await_until,
    call_in_loop,
    interruptible,
    loop_of,
    loop_time,
    new_slot,
    running_loop,
    running_task,
    when_task_ends,
)

if TYPE_CHECKING:
    from cuelight.coordination._lock_state import Place
    from cuelight.mailbox import Slot


log = get_log("cuelight")

monitor: Final = threading.RLock()

if hasattr(os, "register_at_fork"):  # a child must not inherit a monitor held by a thread that it does not have
    os.register_at_fork(before=monitor.acquire, after_in_parent=monitor.release, after_in_child=monitor.release)

now: Final = time.monotonic

watched: Final[dict[Any, dict[Core, None]]] = {}
"""For each owner, the cores to check when it ends. Only cores that others wait for."""


class _Holdings:
    """The cores that an actor holds, released when its incarnation ends."""

    __slots__ = ("_cell", "cores")

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self.cores: dict[Core, None] = {}

    def release_all(self) -> None:
        """Release all of them: the incarnation has ended."""
        reports: list[str] = []
        with monitor:
            for core in list(self.cores):
                reports += _take_away(core, self._cell)
        report(reports)


def enter_holding(core: Core, cell: Cell) -> None:
    """Register a core for release at the end of this incarnation of the actor."""
    with monitor:
        held = held_by.get(cell)
        if not isinstance(held, _Holdings):
            held = held_by[cell] = _Holdings(cell)
        held.cores[core] = None


def watch(core: Core, owner: Any) -> None:
    """Check this core when one of its holders ends, because others wait. Call it under the monitor."""
    if owner in watched:
        watched[owner][core] = None
        return
    if isinstance(owner, Cell):
        return
    watched[owner] = {core: None}
    if isinstance(owner, ThreadParty):
        owner.when_ended = _party_ended
        if owner.ended:
            _party_ended(owner)
    elif not when_task_ends(owner, _party_ended):
        _party_ended(owner)


def _party_ended(party: Any) -> None:
    with monitor:
        cores = watched.pop(party, {})
    for core in cores:
        reap(core)


def forget(core: Core, owner: Any) -> None:
    """Remove the records of an owner that has released the core, unless it still holds part of it."""
    if not core.is_held_by(owner):
        if owner in watched:
            watched[owner].pop(core, None)
        held = held_by.get(owner) if held_by else None
        if isinstance(held, _Holdings):
            held.cores.pop(core, None)
            if not held.cores:
                held_by.pop(owner, None)


def reap(core: Core) -> None:
    """Release the core for holders that have ended, and report them."""
    with monitor:
        reports = collect_dead(core)
    report(reports)


def collect_dead(core: Core) -> list[str]:
    """Release the core for holders that have ended. Returns the reports, to be logged outside of the monitor."""
    reports: list[str] = []
    for owner in core.held():
        if party_ended(owner):
            reports += _take_away(core, owner)
    return reports


def _take_away(core: Core, owner: Any) -> list[str]:
    weight = core.held().get(owner)
    hold = (core.details or {}).get(owner)
    if weight is None or not core.release(owner, weight, now()):
        return []
    forget(core, owner)
    if core.debug:
        note_released(core, owner)
    where = f" (taken at {show_place(hold.place)})" if hold is not None and hold.place else ""
    text = f"{describe(owner)} ended while it held {core.thing}{where}: it was released, but what it protects may be in"
    return [f"{text} disorder. Use a `with` block, or release it in a `finally`"]


def report(reports: list[str]) -> None:
    for text in reports:
        log.error(text)


# The messages of lock errors: the holders, their places in the code, and advice.


def holders_of(core: Core) -> str:
    """The holders, in words."""
    details = core.details or {}
    shown: list[str] = []
    for owner in core.held():
        hold = details.get(owner)
        taken = show_place(hold.place) if hold is not None else None
        at = place_now(owner) if taken is None else None
        shown.append(describe(owner) + (f" took it at {taken}" if taken else f", now at {at}" if at else ""))
    return "; ".join(shown) if shown else "nobody holds it"


def timed_out(core: Core, me: Any, timeout: float | None) -> LockTimeout:
    """The error for a timeout."""
    line = len(core.queue or ())
    return LockTimeout(
        f"{describe(me)} did not get {core.thing} within {timeout:g} s: {holders_of(core)}; {line} more wait"
    )


def reentered(core: Core, me: Any, weight: int) -> DeadlockError:
    """The error for a second acquisition by the same owner."""
    held = core.held().get(me, 0)
    if weight == core.capacity != 1 and held < weight:
        return DeadlockError(
            f"{describe(me)} holds {core.thing} for reading and wants to write: two readers who did so would wait for "
            f"each other. Release it first, or take it for writing from the start and downgrade()"
        )
    return DeadlockError(
        f"{describe(me)} holds {core.thing} already and would wait for itself: it is not re-entrant "
        f"({holders_of(core)})"
    )


def deadlock(core: Core, owner: Any, circle: str, *, blocks_loop: bool) -> DeadlockError:
    """The error for a circle of waits."""
    advice = (
        "A `with` here would block the event loop that they need: use `async with`"
        if blocks_loop
        else "Take what several need in one order everywhere, as `LockManager.acquire_all` does"
    )
    return DeadlockError(
        f"{describe(owner)} wants {core.thing} and would wait for ever, because each waits for the next: "
        f"{circle} ({holders_of(core)}). {advice}"
    )


LOOK: Final = 0.25
"""Seconds between two checks for holders whose loop was closed while they held the lock: no event reports that."""

_handling: Final = current_cell.get

is_inside: Final[Any] = getattr(monitor, "_is_owned")  # noqa: B009 - not in the stubs
"""Whether this thread is inside a step, which a finaliser or a signal handler has interrupted."""

awaited_work: Final[list[Callable[[], object]]] = []
"""Functions that do not return None in code that others may wait for, such as a task of a pool."""

blocked_loops: Final[list[int]] = [0]
"""The number of waits that block a whole loop. Changed under the monitor."""


class _Waiting(Ticket):
    """A ticket of an owner that is blocked, and so is in the graph of waits. Used under the monitor only."""

    __slots__ = ("core", "nodes", "thing")

    blocks_loop = False

    def __init__(self, core: Core, owner: Any, weight: int, place: Place) -> None:
        Ticket.__init__(self, owner, weight, now(), place)
        self.core = core
        self.thing = core.thing
        self.nodes: tuple[Any, ...] = ()

    def blockers(self) -> list[Any]:
        """The owners that must act before this ticket can be granted."""
        found = self.core.blockers(self)
        if blocked_loops[0]:  # otherwise the owners ahead wait only for the same holders
            found += self.core.ahead(self)
        return found

    def join_graph(self, nodes: tuple[Any, ...]) -> None:
        """Add this wait to the graph, where later searches for a deadlock see it."""
        self.nodes = nodes
        blocked_loops[0] += self.blocks_loop
        for node in nodes:
            waits_by_node.setdefault(node, []).append(self)

    def leave_graph(self) -> None:
        nodes, self.nodes = self.nodes, ()
        if nodes:
            blocked_loops[0] -= self.blocks_loop
        for node in nodes:
            waits = waits_by_node.get(node, [])
            if self in waits:
                waits.remove(self)
            if not waits:
                waits_by_node.pop(node, None)

    def granted(self) -> None:
        """Leave the graph. The owner is a holder now; if others still wait, its end must be noticed."""
        self.leave_graph()
        if self.core.queue is not None and len(self.core.queue) > 1:
            watch(self.core, self.owner)


class ThreadWaiting(_Waiting):
    """The ticket of a thread, which sleeps on a lock of its own."""

    __slots__ = ("_generation", "_sleep", "blocks_loop")

    def __init__(self, core: Core, owner: Any, weight: int) -> None:
        _Waiting.__init__(self, core, owner, weight, caller_place(2))
        self.blocks_loop = running_loop() is not None
        self._generation = forks.generation
        self._sleep = threading.Lock()
        self._sleep.acquire()

    def wake(self) -> bool:
        if forks.is_old(self._generation):
            return False  # the thread is in the parent process, before the fork
        if self._sleep.locked():
            self.granted()
            self._sleep.release()
        return True

    @interruptible
    def sleep(self, deadline: float) -> None:
        """Block until woken, or until the deadline."""
        while self.state == WAITING:
            seconds = min(deadline - now(), LOOK)
            if seconds <= 0 or self._sleep.acquire(timeout=seconds):
                return
            reap(self.core)


class LoopWaiting(_Waiting):
    """The ticket of a task, which sleeps on a slot that only the thread of its own loop may fill."""

    __slots__ = ("_looks", "loop", "slot")

    def __init__(self, core: Core, owner: Any, weight: int, loop: Any, place: Place) -> None:
        self.owner, self.weight, self.since, self.place, self.state = owner, weight, now(), place, WAITING
        self.core, self.thing, self.nodes = core, core.thing, ()
        self.loop = loop
        self._looks = False  # it wakes up to check, and goes on waiting; on trio its slot then looks cancelled
        self.slot: Slot | None = None

    def gone(self) -> bool:
        return not self._looks and self.slot is not None and self.slot.cancelled()

    def wake(self) -> bool:
        self.granted()
        slot = self.slot
        if slot is None:  # it checks its state before it sleeps
            return True
        if running_loop() is not self.loop:
            return call_in_loop(self.loop, _fill, slot)
        _fill(slot)
        return True

    async def sleep(self, deadline: float) -> None:
        """Sleep until woken, or until the deadline, which is a time of the loop."""
        while self.state == WAITING:
            look = loop_time() + LOOK if self._depends_on_others() else math.inf
            self._looks = look < deadline
            self.slot = new_slot()
            if self.state != WAITING:  # granted by another thread, which may not have seen the slot
                return
            if deadline == look == math.inf:
                await self.slot
            else:
                await await_until(self.slot, min(deadline, look))
                self.slot = None
                if not self._looks:
                    return
                reap(self.core)

    def _depends_on_others(self) -> bool:
        """Whether a holder is a task of another loop, which could be closed before the task releases."""
        mine = self.loop
        for owner in self.core.held():
            loop = loop_of(owner)
            if loop is not None and loop is not mine:
                return True
        return False


def _fill(slot: Slot) -> None:
    if not slot.done():
        slot.set_result(None)


def _nodes(owner: Any, ticket: _Waiting) -> tuple[Any, ...]:
    """The nodes that a wait blocks: its owner, the actor whose handler waits for that task, and a blocked loop."""
    cell = _handling()
    if cell is None and not ticket.blocks_loop:
        return (owner,)
    nodes = [owner]
    if cell is not None and cell is not owner and cell.waits_in_asks() and _is_awaited_by(cell):
        nodes.append(cell)
    if ticket.blocks_loop:
        nodes += [running_loop(), here.me]
    return tuple(nodes)


def _is_awaited_by(cell: object) -> bool:
    """Whether a handler of this actor waits for the running task in a task group, at any depth."""
    coroutine = getattr(cell, "coroutine", None)
    if coroutine is None or running_task() is None:
        return False
    tasks = {task.id: task for task in anyio.get_running_tasks()}
    task: anyio.TaskInfo | None = anyio.get_current_task()
    while task is not None and task.coro is not coroutine:
        task = tasks.get(task.parent_id) if task.parent_id is not None else None
    return task is not None


W = TypeVar("W", bound=_Waiting)


def line_up(core: Core, ticket: W) -> W:
    """Join the queue, unless that would be a deadlock."""
    if is_inside():
        raise DeadlockError(
            f"{describe(ticket.owner)} wants {core.thing} in a finaliser or a signal handler that interrupted a lock: "
            f"it cannot wait there"
        )
    nodes = _nodes(ticket.owner, ticket)
    reports: list[str] = []
    try:
        with monitor:
            if not core.queue:
                reports = collect_dead(core)
            core.enqueue(ticket)
            ticket.join_graph(nodes)
            core.promote(ticket.since)
            if ticket.state == WAITING:
                if len(nodes) > 1 or core.is_held_by(ticket.owner) or not _nobody_waits_for(ticket.owner):
                    way = find_cycle(nodes, [(node, core.thing) for node in ticket.blockers()])
                    if way is not None:
                        raise deadlock(core, ticket.owner, format_cycle(nodes, way), blocks_loop=ticket.blocks_loop)
                if len(core.queue or ()) == 1:
                    for owner in core.held():
                        watch(core, owner)
    except BaseException:
        withdraw(core, ticket)
        raise
    finally:
        report(reports)
    return ticket


def _nobody_waits_for(me: Any) -> bool:
    """Whether nobody can wait for the running task, so that its wait cannot close a circle.

    Others wait for a task in three cases: it holds a lock that others wait for, and then its end is watched; it is work
    of a pool or a queue; or a thread waits and so keeps its whole loop from running.
    """
    if blocked_loops[0] or watched.get(me) or isinstance(me, (Cell, ThreadParty)) or _handling() is not None:
        return False
    return not is_awaited_work()


def is_awaited_work() -> bool:
    """Whether this code belongs to work that others may wait for; see `awaited_work`."""
    for work in awaited_work:  # noqa: SIM110 - a generator takes more time
        if work() is not None:
            return True
    return False


def withdraw(core: Core, ticket: _Waiting) -> None:
    """Leave the queue after a cancellation or an interrupt, or release the grant."""
    with monitor:
        ticket.leave_graph()
        core.leave(ticket, now())


def gave_up(core: Core, ticket: _Waiting) -> bool:
    """Leave the queue after a timeout. Returns False if the ticket was granted at the last moment; it stays granted."""
    with monitor:
        if ticket.state == GRANTED:
            return False
        withdraw(core, ticket)
        return True


def acquire_nowait(core: Core, weight: int) -> None:
    """Acquire at once or raise.

    Raises:
        LockHeld: other owners hold it or wait for it.
        DeadlockError: this owner holds it already.
    """
    if not took(core, weight):
        reap(core)
        if not took(core, weight):
            raise LockHeld(f"{core.thing} is held: {holders_of(core)}")


def acquire_blocking(core: Core, weight: int, timeout: float | None) -> None:
    """Acquire; block this thread until it is granted.

    Raises:
        LockTimeout: it was not granted in time.
        DeadlockError: the wait would never end.
    """
    deadline = now() + _seconds(timeout)
    if took(core, weight):
        return
    me = whoever()
    if timeout == 0:
        raise timed_out(core, me, timeout)
    ticket = line_up(core, ThreadWaiting(core, me, weight))
    try:
        ticket.sleep(deadline)
        late = ticket.state != GRANTED and gave_up(core, ticket)
    except BaseException:
        withdraw(core, ticket)
        raise
    if late:
        raise timed_out(core, me, timeout)
    _note_taken(core, me)


async def acquire(core: Core, weight: int, timeout: float | None) -> None:
    """Acquire; this task sleeps until it is granted.

    Raises:
        LockTimeout: it was not granted in time.
        DeadlockError: the wait would never end.
    """
    seconds = _seconds(timeout)
    if took(core, weight):
        return
    me = whoever()
    if timeout == 0:
        raise timed_out(core, me, timeout)
    deadline = math.inf if seconds == math.inf else loop_time() + seconds
    ticket = line_up(core, LoopWaiting(core, me, weight, running_loop(), caller_place(2)))
    try:
        await ticket.sleep(deadline)
    except BaseException:
        withdraw(core, ticket)
        raise
    if ticket.state != GRANTED and gave_up(core, ticket):
        raise timed_out(core, me, timeout)
    _note_taken(core, me)


def release(core: Core, weight: int, or_weight: int = 0) -> None:
    """Release a weight and grant waiting owners.

    Args:
        core: the core to release.
        weight: the weight to release.
        or_weight: the weight to release if the owner does not hold `weight`.

    Raises:
        LockNotHeld: this owner does not hold that much.
    """
    give_back(core, weight, whoever(), or_weight)


def give_back(core: Core, weight: int, me: Any, or_weight: int = 0) -> None:
    """Release as `release` does, for callers that know their owner."""
    try:
        with monitor:
            if core.details is None and not core.queue:
                released = core.put_back(me, weight) or (or_weight > 0 and core.put_back(me, or_weight))
            else:
                released = core.release(me, weight, now()) or (or_weight > 0 and core.release(me, or_weight, now()))
                forget(core, me)
    except BaseException:  # an interrupt: waiting owners must not depend on the next release
        hand_over(core)
        raise
    if isinstance(me, Cell):
        forget(core, me)
    if not released:
        raise LockNotHeld(
            f"{describe(me)} cannot release {core.thing}, because it does not hold it: {holders_of(core)}. "
            f"Who takes it must give it back; a holder that ended has lost it"
        )
    if core.debug:
        note_released(core, me)


def downgrade(core: Core) -> None:
    """Turn a writer into a reader, without releasing in between.

    Raises:
        LockNotHeld: this owner does not hold it for writing.
    """
    me = whoever()
    with monitor:
        if core.held().get(me) == core.capacity:
            core.change_weight(me, DOWNGRADED, now())
            return
    raise LockNotHeld(f"{describe(me)} cannot downgrade {core.thing}, because it does not write: {holders_of(core)}")


def hand_over(core: Core) -> None:
    """Grant waiting owners, after a release that may not have looked at the queue."""
    with monitor:
        core.promote(now())


def took(core: Core, weight: int) -> bool:
    """Acquire if it is available at once. Returns whether it was.

    Raises:
        DeadlockError: this owner holds it already.
    """
    me = whoever()
    if not core.several and core.is_held_by(me):
        raise reentered(core, me, weight)
    with monitor:
        taken = core.try_acquire(me, weight)
        if taken and core.debug:
            core.note(me, now(), my_place())
    if taken and (core.debug or isinstance(me, Cell)):
        _note_taken(core, me)
    return taken


def _note_taken(core: Core, me: Any) -> None:
    if isinstance(me, Cell):
        enter_holding(core, me)
    if core.debug:
        note_acquired(core, me)


def _seconds(timeout: float | None) -> float:
    if timeout is None:
        return math.inf
    if not timeout >= 0:
        raise ValueError(f"timeout={safe_repr(timeout)}: give seconds, 0 or more, or None to wait as long as it takes")
    return timeout
