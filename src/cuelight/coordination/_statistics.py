"""What a lock or a semaphore can tell of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from cuelight.coordination._endings import monitor, now
from cuelight.coordination._parties import describe, place_now, show_place

if TYPE_CHECKING:
    from cuelight.coordination._core import Core

__all__ = ["Holder", "LockStatistics", "statistics_of"]


class Holder(msgspec.Struct, frozen=True):
    """Somebody who holds a lock.

    Attributes:
        who: the actor, task or thread, in words.
        weight: how much of it; 1 unless it is a semaphore or a writer.
        seconds: for how long, as far as that is known: since the grant if it had to wait or in debug mode, else since
            others began to wait for it; None if nobody does.
        taken_at: where it took it, as `file:line`, if it had to wait or in debug mode; else None.
        now_at: where it is now, as `file:line`; None of an actor.
    """

    who: str
    weight: int
    seconds: float | None
    taken_at: str | None
    now_at: str | None


class LockStatistics(msgspec.Struct, frozen=True):
    """What a lock or a semaphore has seen, at one moment.

    Attributes:
        held: how much of it is held; of a read-write lock the number of holders.
        waiting: how many wait.
        acquisitions: how often it was taken.
        waits: how many of these had to wait.
        wait_seconds: how long they waited, together.
        longest_wait: the longest of these waits, in seconds.
        hold_seconds: how long it was held while others waited or after a wait, together; in debug mode always.
        longest_hold: the longest of these, in seconds.
        holders: who holds it now.
    """

    held: int
    waiting: int
    acquisitions: int
    waits: int
    wait_seconds: float
    longest_wait: float
    hold_seconds: float
    longest_hold: float
    holders: tuple[Holder, ...]


def statistics_of(core: Core, *, by_weight: bool = True) -> LockStatistics:
    """Look at a core."""
    with monitor:
        at, details, held = now(), core.details or {}, core.held()
        holders: list[Holder] = []
        for owner, weight in held.items():
            hold = details.get(owner)
            seconds = None if hold is None else at - hold.since
            place = None if hold is None else show_place(hold.place)
            holders.append(Holder(describe(owner), weight, seconds, place, place_now(owner)))
        return LockStatistics(
            held=sum(held.values()) if by_weight else len(held),
            waiting=len(core.queue or ()),
            acquisitions=core.acquired,
            waits=core.waited,
            wait_seconds=core.wait_seconds,
            longest_wait=core.longest_wait,
            hold_seconds=core.hold_seconds,
            longest_hold=core.longest_hold,
            holders=tuple(holders),
        )
