"""Tickets of threads and of tasks, and joining the queue without a deadlock.

Invariants:
1. A wait that would deadlock, directly or through other waiters, raises `DeadlockError` and leaves no state behind.
2. A wait is in the graph of waits from before the search for a deadlock until it is granted or given up.
3. A grant reaches the owner that waits: a thread by a lock of its own, a task in its own loop. If that loop has ended,
   the next in the queue gets the grant.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio

from cuelight._fork import forks
from cuelight.actors import Cell, blocked, find_circle, handling, show_circle
from cuelight.coordination._core import GRANTED, WAITING, Core, Ticket
from cuelight.coordination._endings import collect_dead, monitor, now, reap, report, watch, watched
from cuelight.coordination._parties import ThreadParty, caller_place, describe, here
from cuelight.coordination._words import deadlock
from cuelight.errors import DeadlockError
from cuelight.mailbox import (
    await_until,
    call_in_loop,
    interruptible,
    loop_of,
    loop_time,
    new_slot,
    running_loop,
    running_task,
)

if TYPE_CHECKING:
    from cuelight.coordination._core import Place
    from cuelight.mailbox import Slot

LOOK: Final = 0.25
"""Seconds between two checks for holders whose loop was closed while they held the lock: no event reports that."""

_handling: Final = handling.get

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
            blocked.setdefault(node, []).append(self)

    def leave_graph(self) -> None:
        nodes, self.nodes = self.nodes, ()
        if nodes:
            blocked_loops[0] -= self.blocks_loop
        for node in nodes:
            waits = blocked.get(node, [])
            if self in waits:
                waits.remove(self)
            if not waits:
                blocked.pop(node, None)

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


def _is_awaited_by(cell: Cell) -> bool:
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
                    way = find_circle(nodes, [(node, core.thing) for node in ticket.blockers()])
                    if way is not None:
                        raise deadlock(core, ticket.owner, show_circle(nodes, way), blocks_loop=ticket.blocks_loop)
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
