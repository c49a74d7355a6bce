"""The operations on a core: acquire at once, by blocking or by waiting, and release.

Invariant: an operation completes or raises, never both. An operation that is cancelled, interrupted or late leaves
nothing acquired.
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
