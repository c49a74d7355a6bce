"""Faster waiting and hand-over for the usual case: plain tasks of one asyncio loop.

The functions have the effect of `line_up`, `Core.release` and `Core.promote` in that case. In any unusual case they, or
their callers, use those functions instead.
"""

# Tasks and loops are those of asyncio or uvloop, which no annotation describes.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import asyncio
from typing import Any, Final

from cuelight.actors import waits_by_node
from cuelight.coordination._lock_state import WAITING, CountedCore, LockCore
from cuelight.coordination._lock_waiting import (
    LoopWaiting,
    blocked_loops,
    hand_over,
    is_awaited_work,
    is_inside,
    line_up,
    monitor,
    now,
    watch,
    watched,
    withdraw,
)
from cuelight.coordination._owner import caller_place

_Future: Final = asyncio.Future
_Task: Final = asyncio.Task


def stand_in_line(core: LockCore | CountedCore, me: Any, loop: Any) -> LoopWaiting:
    """Join the queue as `line_up` does, for a running task that is not part of a handler and wants one permit.

    Raises:
        DeadlockError: it would wait for itself.
    """
    ticket = LoopWaiting(core, me, 1, loop, caller_place(3))
    queue = core.queue
    if (
        queue
        and me not in waits_by_node
        and not blocked_loops[0]
        and not (watched.get(me))  # it holds nothing that other owners wait for
        and not is_awaited_work()
        and not is_inside()
        and _is_held_within(core, loop)
    ):
        ticket.slot = _Future(loop=loop)
        try:
            with monitor:
                if queue:  # so its holders are watched, and their holds recorded
                    ticket.nodes = (me,)
                    waits_by_node[me] = [ticket]
                    queue.append(ticket)
                    if core.free or queue[0].state != WAITING:  # a release was interrupted, or is under way
                        core.promote(ticket.since)
                    return ticket
        except BaseException:
            withdraw(core, ticket)
            raise
        ticket.slot = None
    return line_up(core, ticket)


def _is_held_within(core: LockCore | CountedCore, loop: Any) -> bool:
    """Whether all holders are tasks of this loop, so that no holder can lose its loop unnoticed."""
    if type(core) is LockCore:
        owner = core.owner
        return type(owner) is _Task and owner.get_loop() is loop
    for owner in core.held():  # noqa: SIM110 - a generator takes more time
        if type(owner) is not _Task or owner.get_loop() is not loop:
            return False
    return True


def pass_on(core: LockCore | CountedCore, me: Any, loop: Any) -> bool:
    """Pass a permit of the running task straight to the head of the queue, if that waits in the same loop.

    Returns:
        Whether the permit was passed on. If not, nothing was done.
    """
    queue = core.queue
    if not queue:
        return False
    try:
        with monitor:
            head: Any = queue[0] if queue else None
            if type(head) is not LoopWaiting or head.loop is not loop or head.state != WAITING:
                return False
            slot = head.slot
            if slot is None or slot.done():
                return False
            at = now()
            hold = core.pass_on(me, head)
            if hold is None:
                return False
            core.acquired += 1
            core.waited += 1
            seconds = at - hold.since
            core.hold_seconds += seconds
            core.longest_hold = max(core.longest_hold, seconds)
            seconds = at - head.since
            core.wait_seconds += seconds
            core.longest_wait = max(core.longest_wait, seconds)
            head.since = at  # from here on it is the start of the hold
            heir = head.owner
            if len(head.nodes) == 1 and heir in waits_by_node and len(waits_by_node[heir]) == 1:
                head.nodes = ()
                del waits_by_node[heir]
            else:
                head.leave_graph()
            if me in watched:
                watched[me].pop(core, None)
            if len(queue) > 1:
                if heir in watched:
                    watched[heir][core] = None
                else:
                    watch(core, heir)
            slot.set_result(None)
            if queue and queue[0] is head:
                queue.popleft()
    except BaseException:  # an interrupt: the next owner, which may have the grant already, must wake
        hand_over(core)
        raise
    return True
