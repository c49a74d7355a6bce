"""The operations on a core: take it at once, by blocking or by waiting, and give it back.

Invariant: an operation completes or raises, never both. Who is cancelled, interrupted or late leaves nothing taken
behind.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from cuelight._text import safe_repr
from cuelight.actors import Cell
from cuelight.coordination._core import DOWNGRADED, GRANTED
from cuelight.coordination._endings import enter_holding, forget, monitor, now, reap
from cuelight.coordination._order import note_acquired, note_released
from cuelight.coordination._parties import caller_place, describe, my_place, whoever
from cuelight.coordination._waiting import LoopWaiting, ThreadWaiting, gave_up, line_up, withdraw
from cuelight.coordination._words import holders_of, reentered, timed_out
from cuelight.errors import LockHeld, LockNotHeld
from cuelight.mailbox import loop_time, running_loop

if TYPE_CHECKING:
    from cuelight.coordination._core import Core

__all__ = [
    "acquire",
    "acquire_blocking",
    "acquire_nowait",
    "downgrade",
    "give_back",
    "hand_over",
    "release",
    "took",
]


def acquire_nowait(core: Core, weight: int) -> None:
    """Take it at once or not at all.

    Raises:
        LockHeld: others hold it, or stand in line.
        DeadlockError: this owner holds it already.
    """
    if not took(core, weight):
        reap(core)
        if not took(core, weight):
            raise LockHeld(f"{core.thing} is held: {holders_of(core)}")


def acquire_blocking(core: Core, weight: int, timeout: float | None) -> None:
    """Take it; block this thread until it is there.

    Raises:
        LockTimeout: it was not there in time.
        DeadlockError: this would last for ever.
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
    """Take it; have this task sleep until it is there.

    Raises:
        LockTimeout: it was not there in time.
        DeadlockError: this would last for ever.
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
    """Give it back, and the next in line gets it.

    Args:
        core: what.
        weight: how much of it.
        or_weight: how much, if the owner does not hold that.

    Raises:
        LockNotHeld: this owner does not hold so much of it.
    """
    give_back(core, weight, whoever(), or_weight)


def give_back(core: Core, weight: int, me: Any, or_weight: int = 0) -> None:
    """As `release`, for those who know who they are."""
    try:
        with monitor:
            if core.details is None and not core.queue:
                released = core.put_back(me, weight) or (or_weight > 0 and core.put_back(me, or_weight))
            else:
                released = core.release(me, weight, now()) or (or_weight > 0 and core.release(me, or_weight, now()))
                forget(core, me)
    except BaseException:  # an interrupt: those in line are not to wait for the next release
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
    """Have a writer become a reader, without letting go.

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
    """It may have been given back without a look at the line: serve that."""
    with monitor:
        core.promote(now())


def took(core: Core, weight: int) -> bool:
    """Take it if it is to be had at once.

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
