"""Waiting in line and handing over in less time, for the usual case: plain tasks of one loop of asyncio.

What is done here is what `line_up`, `Core.release` and `Core.promote` come to in that case. Whenever something is
unusual these functions leave it to them, or the caller does.
"""

# Tasks and loops are those of asyncio or uvloop: no annotation could say more.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import asyncio
from typing import Any, Final

from cuelight.actors import blocked
from cuelight.coordination._core import WAITING, CountedCore, LockCore
from cuelight.coordination._endings import monitor, now, watch, watched
from cuelight.coordination._operations import hand_over
from cuelight.coordination._parties import caller_place
from cuelight.coordination._waiting import LoopWaiting, blocked_loops, is_awaited_work, is_inside, line_up, withdraw

__all__ = ["pass_on", "stand_in_line"]

_Future: Final = asyncio.Future
_Task: Final = asyncio.Task


def stand_in_line(core: LockCore | CountedCore, me: Any, loop: Any) -> LoopWaiting:
    """As `line_up`, for the running task, which is not part of a handler and wants one place.

    Raises:
        DeadlockError: it would wait for itself.
    """
    ticket = LoopWaiting(core, me, 1, loop, caller_place(3))
    queue = core.queue
    if (
        queue
        and me not in blocked
        and not blocked_loops[0]
        and not (watched.get(me))  # it holds nothing that others wait for
        and not is_awaited_work()
        and not is_inside()
        and _is_held_within(core, loop)
    ):
        ticket.slot = _Future(loop=loop)
        try:
            with monitor:
                if queue:  # so its holders are watched, and what is known of them has been noted
                    ticket.nodes = (me,)
                    blocked[me] = [ticket]
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
    """Whether all that hold it are tasks of this loop, so that no holder can lose its loop unnoticed."""
    if type(core) is LockCore:
        owner = core.owner
        return type(owner) is _Task and owner.get_loop() is loop
    for owner in core.held():  # noqa: SIM110 - a generator takes more time
        if type(owner) is not _Task or owner.get_loop() is not loop:
            return False
    return True


def pass_on(core: LockCore | CountedCore, me: Any, loop: Any) -> bool:
    """Give a place of the running task straight to the head of the line, if that waits in the same loop.

    Returns:
        Whether it did. If not, nothing was done.
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
            head.since = at  # from here on it tells of the hold
            heir = head.owner
            if len(head.nodes) == 1 and heir in blocked and len(blocked[heir]) == 1:
                head.nodes = ()
                del blocked[heir]
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
    except BaseException:  # an interrupt: the heir, which may have been granted it, must wake
        hand_over(core)
        raise
    return True
