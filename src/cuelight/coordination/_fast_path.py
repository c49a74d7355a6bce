"""Faster waiting and hand-over for the usual case: plain tasks of one asyncio loop.

The functions have the effect of `enqueue`, `CapacityState.release` and `CapacityState.grant_waiters` in that case. In
any unusual case they, or their callers, use those functions instead.
"""

# Tasks and loops are those of asyncio or uvloop, which no annotation describes.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import asyncio
from typing import Any, Final

from cuelight.actors import waits_by_node
from cuelight.coordination._lock_state import WAITING, FastLockState, FastSemaphoreState
from cuelight.coordination._lock_waiting import (
    TaskWaiter,
    blocked_loops,
    cancel_wait,
    enqueue,
    grant_waiters,
    inside_monitor,
    is_awaited_work,
    monitor,
    now,
    watch_holder,
    watched_owners,
)
from cuelight.coordination._owner import raw_caller_location

_Future: Final = asyncio.Future
_Task: Final = asyncio.Task


def enqueue_task(state: FastLockState | FastSemaphoreState, caller: Any, loop: Any) -> TaskWaiter:
    """Join the queue as `enqueue` does, for a running task that is not part of a handler and wants one permit.

    Raises:
        DeadlockError: it would wait for itself.
    """
    waiter = TaskWaiter(state, caller, 1, loop, raw_caller_location(3))
    queue = state.queue
    if (
        queue
        and caller not in waits_by_node
        and not blocked_loops[0]
        and not (watched_owners.get(caller))  # it holds nothing that other owners wait for
        and not is_awaited_work()
        and not inside_monitor()
        and _is_held_within(state, loop)
    ):
        waiter.slot = _Future(loop=loop)
        try:
            with monitor:
                if queue:  # so its holders are watched, and their holds recorded
                    waiter.nodes = (caller,)
                    waits_by_node[caller] = [waiter]
                    queue.append(waiter)
                    if state.free_permits or queue[0].state != WAITING:  # a release was interrupted, or is under way
                        state.grant_waiters(waiter.since)
                    return waiter
        except BaseException:
            cancel_wait(state, waiter)
            raise
        waiter.slot = None
    return enqueue(state, waiter)


def _is_held_within(state: FastLockState | FastSemaphoreState, loop: Any) -> bool:
    """Whether all holders are tasks of this loop, so that no holder can lose its loop unnoticed."""
    if type(state) is FastLockState:
        owner = state.owner
        return type(owner) is _Task and owner.get_loop() is loop
    for owner in state.held():  # noqa: SIM110 - a generator takes more time
        if type(owner) is not _Task or owner.get_loop() is not loop:
            return False
    return True


def transfer_permit(state: FastLockState | FastSemaphoreState, caller: Any, loop: Any) -> bool:
    """Pass a permit of the running task straight to the head of the queue, if that waits in the same loop.

    Returns:
        Whether the permit was passed on. If not, nothing was done.
    """
    queue = state.queue
    if not queue:
        return False
    try:
        with monitor:
            head: Any = queue[0] if queue else None
            if type(head) is not TaskWaiter or head.loop is not loop or head.state != WAITING:
                return False
            slot = head.slot
            if slot is None or slot.done():
                return False
            at = now()
            hold = state.transfer(caller, head)
            if hold is None:
                return False
            state.acquired += 1
            state.waited += 1
            seconds = at - hold.since
            state.hold_seconds += seconds
            state.longest_hold = max(state.longest_hold, seconds)
            seconds = at - head.since
            state.wait_seconds += seconds
            state.longest_wait = max(state.longest_wait, seconds)
            head.since = at  # from here on it is the start of the hold
            next_owner = head.owner
            if len(head.nodes) == 1 and next_owner in waits_by_node and len(waits_by_node[next_owner]) == 1:
                head.nodes = ()
                del waits_by_node[next_owner]
            else:
                head.leave_graph()
            if caller in watched_owners:
                watched_owners[caller].pop(state, None)
            if len(queue) > 1:
                if next_owner in watched_owners:
                    watched_owners[next_owner][state] = None
                else:
                    watch_holder(state, next_owner)
            slot.set_result(None)
            if queue and queue[0] is head:
                queue.popleft()
    except BaseException:  # an interrupt: the next owner, which may have the grant already, must wake
        grant_waiters(state)
        raise
    return True
