"""The operations on a lock: acquire at once, by blocking or by waiting, and release; and the search for deadlocks.

Each step on the state of a lock runs under one monitor for the whole process, and so does the search for deadlocks. The
monitor is held for microseconds, never across a wait. It is re-entrant, because the garbage collector may run a
finaliser that releases a lock during a step; `_lock_state` explains why that is harmless.

Invariants:
1. A wait that would deadlock, directly or through other waiters, raises `DeadlockError` and leaves no state behind.
2. A wait is in the graph of waits from before the search for a deadlock until it is granted or given up.
3. A grant reaches the owner that waits: a thread by a lock of its own, a task in its own loop. If that loop has ended,
   the next in the queue gets the grant.
4. While an owner waits for a lock, the end of each holder of that lock is noticed at once. Other holders are checked
   when a request does not get the lock at once. A release for a holder that has ended is reported in the log.
5. A lock that an actor holds is released when the actor crashes, otherwise after its `stopped` hook, whether or not
   others wait for it.
6. An operation completes or raises, never both. An operation that is cancelled, interrupted or late leaves nothing
   acquired.
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
from cuelight.coordination._lock_state import DOWNGRADED, GRANTED, WAITING, CapacityState, LockWaiter
from cuelight.coordination._owner import (
    ThreadOwner,
    caller_location,
    current_owner,
    describe,
    format_location,
    owner_ended,
    owner_location,
    raw_caller_location,
    this_thread,
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
    from cuelight.coordination._lock_state import CodeLocation
    from cuelight.mailbox import Slot


log = get_log("cuelight")

monitor: Final = threading.RLock()

if hasattr(os, "register_at_fork"):  # a child must not inherit a monitor held by a thread that it does not have
    os.register_at_fork(before=monitor.acquire, after_in_parent=monitor.release, after_in_child=monitor.release)

now: Final = time.monotonic

watched_owners: Final[dict[Any, dict[CapacityState, None]]] = {}
"""For each owner, the locks to check when it ends. Only locks that others wait for."""


class _ActorLocks:
    """The locks that an actor holds, released when its incarnation ends."""

    __slots__ = ("_cell", "states")

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self.states: dict[CapacityState, None] = {}

    def release_all(self) -> None:
        """Release all of them: the incarnation has ended."""
        reports: list[str] = []
        with monitor:
            for state in list(self.states):
                reports += _take_from_dead_holder(state, self._cell)
        log_reports(reports)


def track_actor(state: CapacityState, cell: Cell) -> None:
    """Register a lock for release at the end of this incarnation of the actor."""
    with monitor:
        held = held_by.get(cell)
        if not isinstance(held, _ActorLocks):
            held = held_by[cell] = _ActorLocks(cell)
        held.states[state] = None


def watch_holder(state: CapacityState, owner: Any) -> None:
    """Check this lock when one of its holders ends, because others wait. Call it under the monitor."""
    if owner in watched_owners:
        watched_owners[owner][state] = None
        return
    if isinstance(owner, Cell):
        return
    watched_owners[owner] = {state: None}
    if isinstance(owner, ThreadOwner):
        owner.when_ended = _on_owner_ended
        if owner.ended:
            _on_owner_ended(owner)
    elif not when_task_ends(owner, _on_owner_ended):
        _on_owner_ended(owner)


def _on_owner_ended(owner: Any) -> None:
    with monitor:
        states = watched_owners.pop(owner, {})
    for state in states:
        release_dead_holders(state)


def untrack(state: CapacityState, owner: Any) -> None:
    """Remove the records of an owner that has released the lock, unless it still holds part of it."""
    if not state.is_held_by(owner):
        if owner in watched_owners:
            watched_owners[owner].pop(state, None)
        held = held_by.get(owner) if held_by else None
        if isinstance(held, _ActorLocks):
            held.states.pop(state, None)
            if not held.states:
                held_by.pop(owner, None)


def release_dead_holders(state: CapacityState) -> None:
    """Release the lock for holders that have ended, and report them."""
    with monitor:
        reports = take_from_dead_holders(state)
    log_reports(reports)


def take_from_dead_holders(state: CapacityState) -> list[str]:
    """Release the lock for holders that have ended. Returns the reports, to be logged outside of the monitor."""
    reports: list[str] = []
    for owner in state.held():
        if owner_ended(owner):
            reports += _take_from_dead_holder(state, owner)
    return reports


def _take_from_dead_holder(state: CapacityState, owner: Any) -> list[str]:
    weight = state.held().get(owner)
    hold = (state.details or {}).get(owner)
    if weight is None or not state.release(owner, weight, now()):
        return []
    untrack(state, owner)
    if state.debug:
        note_released(state, owner)
    where = f" (taken at {format_location(hold.location)})" if hold is not None and hold.location else ""
    text = (
        f"{describe(owner)} ended while it held {state.label}{where}: it was released, but what it protects may be in"
    )
    return [f"{text} disorder. Use a `with` block, or release it in a `finally`"]


def log_reports(reports: list[str]) -> None:
    for text in reports:
        log.error(text)


# The messages of lock errors: the holders, their places in the code, and advice.


def describe_holders(state: CapacityState) -> str:
    """The holders, in words."""
    details = state.details or {}
    shown: list[str] = []
    for owner in state.held():
        hold = details.get(owner)
        taken = format_location(hold.location) if hold is not None else None
        at = owner_location(owner) if taken is None else None
        shown.append(describe(owner) + (f" took it at {taken}" if taken else f", now at {at}" if at else ""))
    return "; ".join(shown) if shown else "nobody holds it"


def timeout_error(state: CapacityState, caller: Any, timeout: float | None) -> LockTimeout:
    """The error for a timeout."""
    line = len(state.queue or ())
    return LockTimeout(
        f"{describe(caller)} did not get {state.label} within {timeout:g} s: {describe_holders(state)}; {line} more "
        "wait"
    )


def reentry_error(state: CapacityState, caller: Any, weight: int) -> DeadlockError:
    """The error for a second acquisition by the same owner."""
    held = state.held().get(caller, 0)
    if weight == state.capacity != 1 and held < weight:
        return DeadlockError(
            f"{describe(caller)} holds {state.label} for reading and wants to write: two readers who did so would wait "
            f"for each other. Release it first, or take it for writing from the start and downgrade()"
        )
    return DeadlockError(
        f"{describe(caller)} holds {state.label} already and would wait for itself: it is not re-entrant "
        f"({describe_holders(state)})"
    )


def deadlock_error(state: CapacityState, owner: Any, circle: str, *, blocks_loop: bool) -> DeadlockError:
    """The error for a circle of waits."""
    advice = (
        "A `with` here would block the event loop that they need: use `async with`"
        if blocks_loop
        else "Take what several need in one order everywhere, as `LockManager.acquire_all` does"
    )
    return DeadlockError(
        f"{describe(owner)} wants {state.label} and would wait for ever, because each waits for the next: "
        f"{circle} ({describe_holders(state)}). {advice}"
    )


DEAD_LOOP_POLL: Final = 0.25
"""Seconds between two checks for holders whose loop was closed while they held the lock: no event reports that."""

_handling: Final = current_cell.get

inside_monitor: Final[Any] = getattr(monitor, "_is_owned")  # noqa: B009 - not in the stubs
"""Whether this thread is inside a step, which a finaliser or a signal handler has interrupted."""

awaited_work: Final[list[Callable[[], object]]] = []
"""Functions that do not return None in code that others may wait for, such as a task of a pool."""

blocked_loops: Final[list[int]] = [0]
"""The number of waits that block a whole loop. Changed under the monitor."""


class BlockedWaiter(LockWaiter):
    """A blocked owner, which is in the graph of waits. Used under the monitor only."""

    __slots__ = ("lock_state", "nodes", "thing")

    blocks_loop = False

    def __init__(self, state: CapacityState, owner: Any, weight: int, location: CodeLocation) -> None:
        LockWaiter.__init__(self, owner, weight, now(), location)
        self.lock_state = state
        self.thing = state.label
        self.nodes: tuple[Any, ...] = ()

    def blockers(self) -> list[Any]:
        """The owners that must act before this waiter can be granted."""
        found = self.lock_state.blockers(self)
        if blocked_loops[0]:  # otherwise the owners ahead wait only for the same holders
            found += self.lock_state.owners_ahead(self)
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

    def on_granted(self) -> None:
        """Leave the graph. The owner is a holder now; if others still wait, its end must be noticed."""
        self.leave_graph()
        if self.lock_state.queue is not None and len(self.lock_state.queue) > 1:
            watch_holder(self.lock_state, self.owner)


class ThreadWaiter(BlockedWaiter):
    """A waiting thread, which sleeps on a lock of its own."""

    __slots__ = ("_generation", "_sleep", "blocks_loop")

    def __init__(self, state: CapacityState, owner: Any, weight: int) -> None:
        BlockedWaiter.__init__(self, state, owner, weight, raw_caller_location(2))
        self.blocks_loop = running_loop() is not None
        self._generation = forks.generation
        self._sleep = threading.Lock()
        self._sleep.acquire()

    def wake(self) -> bool:
        if forks.is_old(self._generation):
            return False  # the thread is in the parent process, before the fork
        if self._sleep.locked():
            self.on_granted()
            self._sleep.release()
        return True

    @interruptible
    def sleep(self, deadline: float) -> None:
        """Block until woken, or until the deadline."""
        while self.state == WAITING:
            seconds = min(deadline - now(), DEAD_LOOP_POLL)
            if seconds <= 0 or self._sleep.acquire(timeout=seconds):
                return
            release_dead_holders(self.lock_state)


class TaskWaiter(BlockedWaiter):
    """A waiting task, which sleeps on a slot that only the thread of its own loop may fill."""

    __slots__ = ("_polls", "loop", "slot")

    def __init__(self, state: CapacityState, owner: Any, weight: int, loop: Any, location: CodeLocation) -> None:
        self.owner, self.weight, self.since, self.location, self.state = owner, weight, now(), location, WAITING
        self.lock_state, self.thing, self.nodes = state, state.label, ()
        self.loop = loop
        self._polls = False  # it wakes up to check, and goes on waiting; on trio its slot then looks cancelled
        self.slot: Slot | None = None

    def is_cancelled(self) -> bool:
        return not self._polls and self.slot is not None and self.slot.cancelled()

    def wake(self) -> bool:
        self.on_granted()
        slot = self.slot
        if slot is None:  # it checks its state before it sleeps
            return True
        if running_loop() is not self.loop:
            return call_in_loop(self.loop, _wake_slot, slot)
        _wake_slot(slot)
        return True

    async def sleep(self, deadline: float) -> None:
        """Sleep until woken, or until the deadline, which is a time of the loop."""
        while self.state == WAITING:
            next_poll = loop_time() + DEAD_LOOP_POLL if self._depends_on_others() else math.inf
            self._polls = next_poll < deadline
            self.slot = new_slot()
            if self.state != WAITING:  # granted by another thread, which may not have seen the slot
                return
            if deadline == next_poll == math.inf:
                await self.slot
            else:
                await await_until(self.slot, min(deadline, next_poll))
                self.slot = None
                if not self._polls:
                    return
                release_dead_holders(self.lock_state)

    def _depends_on_others(self) -> bool:
        """Whether a holder is a task of another loop, which could be closed before the task releases."""
        mine = self.loop
        for owner in self.lock_state.held():
            loop = loop_of(owner)
            if loop is not None and loop is not mine:
                return True
        return False


def _wake_slot(slot: Slot) -> None:
    if not slot.done():
        slot.set_result(None)


def _blocked_nodes(owner: Any, waiter: BlockedWaiter) -> tuple[Any, ...]:
    """The nodes that a wait blocks: its owner, the actor whose handler waits for that task, and a blocked loop."""
    cell = _handling()
    if cell is None and not waiter.blocks_loop:
        return (owner,)
    nodes = [owner]
    if cell is not None and cell is not owner and cell.waits_in_asks() and _is_awaited_by(cell):
        nodes.append(cell)
    if waiter.blocks_loop:
        nodes += [running_loop(), this_thread.owner]
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


W = TypeVar("W", bound=BlockedWaiter)


def enqueue(state: CapacityState, waiter: W) -> W:
    """Join the queue, unless that would be a deadlock."""
    if inside_monitor():
        raise DeadlockError(
            f"{describe(waiter.owner)} wants {state.label} in a finaliser or a signal handler that interrupted a lock: "
            f"it cannot wait there"
        )
    nodes = _blocked_nodes(waiter.owner, waiter)
    reports: list[str] = []
    try:
        with monitor:
            if not state.queue:
                reports = take_from_dead_holders(state)
            state.enqueue(waiter)
            waiter.join_graph(nodes)
            state.grant_waiters(waiter.since)
            if waiter.state == WAITING:
                if len(nodes) > 1 or state.is_held_by(waiter.owner) or not _nobody_waits_for(waiter.owner):
                    way = find_cycle(nodes, [(node, state.label) for node in waiter.blockers()])
                    if way is not None:
                        raise deadlock_error(
                            state, waiter.owner, format_cycle(nodes, way), blocks_loop=waiter.blocks_loop
                        )
                if len(state.queue or ()) == 1:
                    for owner in state.held():
                        watch_holder(state, owner)
    except BaseException:
        cancel_wait(state, waiter)
        raise
    finally:
        log_reports(reports)
    return waiter


def _nobody_waits_for(caller: Any) -> bool:
    """Whether nobody can wait for the running task, so that its wait cannot close a circle.

    Others wait for a task in three cases: it holds a lock that others wait for, and then its end is watched; it is work
    of a pool or a queue; or a thread waits and so keeps its whole loop from running.
    """
    if (
        blocked_loops[0]
        or watched_owners.get(caller)
        or isinstance(caller, (Cell, ThreadOwner))
        or _handling() is not None
    ):
        return False
    return not is_awaited_work()


def is_awaited_work() -> bool:
    """Whether this code belongs to work that others may wait for; see `awaited_work`."""
    for work in awaited_work:  # noqa: SIM110 - a generator takes more time
        if work() is not None:
            return True
    return False


def cancel_wait(state: CapacityState, waiter: BlockedWaiter) -> None:
    """Leave the queue after a cancellation or an interrupt, or release the grant."""
    with monitor:
        waiter.leave_graph()
        state.remove_waiter(waiter, now())


def cancel_unless_granted(state: CapacityState, waiter: BlockedWaiter) -> bool:
    """Leave the queue after a timeout. Returns False if the waiter was granted at the last moment; it stays granted."""
    with monitor:
        if waiter.state == GRANTED:
            return False
        cancel_wait(state, waiter)
        return True


def acquire_nowait(state: CapacityState, weight: int) -> None:
    """Acquire at once or raise.

    Raises:
        LockHeld: other owners hold it or wait for it.
        DeadlockError: this owner holds it already.
    """
    if not try_acquire_now(state, weight):
        release_dead_holders(state)
        if not try_acquire_now(state, weight):
            raise LockHeld(f"{state.label} is held: {describe_holders(state)}")


def acquire_blocking(state: CapacityState, weight: int, timeout: float | None) -> None:
    """Acquire; block this thread until it is granted.

    Raises:
        LockTimeout: it was not granted in time.
        DeadlockError: the wait would never end.
    """
    deadline = now() + _seconds(timeout)
    if try_acquire_now(state, weight):
        return
    caller = current_owner()
    if timeout == 0:
        raise timeout_error(state, caller, timeout)
    waiter = enqueue(state, ThreadWaiter(state, caller, weight))
    try:
        waiter.sleep(deadline)
        late = waiter.state != GRANTED and cancel_unless_granted(state, waiter)
    except BaseException:
        cancel_wait(state, waiter)
        raise
    if late:
        raise timeout_error(state, caller, timeout)
    _record_acquired(state, caller)


async def acquire(state: CapacityState, weight: int, timeout: float | None) -> None:
    """Acquire; this task sleeps until it is granted.

    Raises:
        LockTimeout: it was not granted in time.
        DeadlockError: the wait would never end.
    """
    seconds = _seconds(timeout)
    if try_acquire_now(state, weight):
        return
    caller = current_owner()
    if timeout == 0:
        raise timeout_error(state, caller, timeout)
    deadline = math.inf if seconds == math.inf else loop_time() + seconds
    waiter = enqueue(state, TaskWaiter(state, caller, weight, running_loop(), raw_caller_location(2)))
    try:
        await waiter.sleep(deadline)
    except BaseException:
        cancel_wait(state, waiter)
        raise
    if waiter.state != GRANTED and cancel_unless_granted(state, waiter):
        raise timeout_error(state, caller, timeout)
    _record_acquired(state, caller)


def release(state: CapacityState, weight: int, or_weight: int = 0) -> None:
    """Release a weight and grant waiting owners.

    Args:
        state: the lock to release.
        weight: the weight to release.
        or_weight: the weight to release if the owner does not hold `weight`.

    Raises:
        LockNotHeld: this owner does not hold that much.
    """
    release_as(state, weight, current_owner(), or_weight)


def release_as(state: CapacityState, weight: int, caller: Any, or_weight: int = 0) -> None:
    """Release as `release` does, for callers that know their owner."""
    try:
        with monitor:
            if state.details is None and not state.queue:
                released = state.remove_holder(caller, weight) or (
                    or_weight > 0 and state.remove_holder(caller, or_weight)
                )
            else:
                released = state.release(caller, weight, now()) or (
                    or_weight > 0 and state.release(caller, or_weight, now())
                )
                untrack(state, caller)
    except BaseException:  # an interrupt: waiting owners must not depend on the next release
        grant_waiters(state)
        raise
    if isinstance(caller, Cell):
        untrack(state, caller)
    if not released:
        raise LockNotHeld(
            f"{describe(caller)} cannot release {state.label}, because it does not hold it: {describe_holders(state)}. "
            f"Who takes it must give it back; a holder that ended has lost it"
        )
    if state.debug:
        note_released(state, caller)


def downgrade(state: CapacityState) -> None:
    """Turn a writer into a reader, without releasing in between.

    Raises:
        LockNotHeld: this owner does not hold it for writing.
    """
    caller = current_owner()
    with monitor:
        if state.held().get(caller) == state.capacity:
            state.change_weight(caller, DOWNGRADED, now())
            return
    raise LockNotHeld(
        f"{describe(caller)} cannot downgrade {state.label}, because it does not write: {describe_holders(state)}"
    )


def grant_waiters(state: CapacityState) -> None:
    """Grant waiting owners, after a release that may not have looked at the queue."""
    with monitor:
        state.grant_waiters(now())


def try_acquire_now(state: CapacityState, weight: int) -> bool:
    """Acquire if it is available at once. Returns whether it was.

    Raises:
        DeadlockError: this owner holds it already.
    """
    caller = current_owner()
    if not state.multiple_holds and state.is_held_by(caller):
        raise reentry_error(state, caller, weight)
    with monitor:
        taken = state.try_acquire(caller, weight)
        if taken and state.debug:
            state.record_hold(caller, now(), caller_location())
    if taken and (state.debug or isinstance(caller, Cell)):
        _record_acquired(state, caller)
    return taken


def _record_acquired(state: CapacityState, caller: Any) -> None:
    if isinstance(caller, Cell):
        track_actor(state, caller)
    if state.debug:
        note_acquired(state, caller)


def _seconds(timeout: float | None) -> float:
    if timeout is None:
        return math.inf
    if not timeout >= 0:
        raise ValueError(f"timeout={safe_repr(timeout)}: give seconds, 0 or more, or None to wait as long as it takes")
    return timeout
