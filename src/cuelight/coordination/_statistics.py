"""The statistics of locks and semaphores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from cuelight.coordination._endings import monitor, now
from cuelight.coordination._parties import describe, place_now, show_place

if TYPE_CHECKING:
    from cuelight.coordination._core import Core


class Holder(msgspec.Struct, frozen=True):
    """An owner that holds a lock.

    Attributes:
        who: the actor, task or thread, in words.
        weight: the weight it holds; 1 unless it holds permits of a semaphore or writes.
        seconds: the age of the hold in seconds, if it is known. Counted from the grant if the owner had to wait or in
            debug mode, otherwise from when others began to wait. None if nobody waits.
        taken_at: where it acquired the lock, as `file:line`, if it had to wait or in debug mode; otherwise None.
        now_at: where it is now, as `file:line`; None for an actor.
    """

    who: str
    weight: int
    seconds: float | None
    taken_at: str | None
    now_at: str | None


class LockStatistics(msgspec.Struct, frozen=True):
    """The statistics of a lock or a semaphore, at one moment.

    Attributes:
        held: the weight that is held; for a read-write lock the number of holders.
        waiting: the number of owners that wait.
        acquisitions: the number of acquisitions.
        waits: the number of acquisitions that had to wait.
        wait_seconds: the total time waited, in seconds.
        longest_wait: the longest wait, in seconds.
        hold_seconds: the total time, in seconds, that it was held while others waited or after a wait; in debug mode
            the total time of all holds.
        longest_hold: the longest of these holds, in seconds.
        holders: the current holders.
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
    """Return the statistics of a core."""
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
