"""The calls of `lease.lua` and their replies."""

# Replies of a server have no type.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from cuelight.redis._client import Argument, Script
from cuelight.redis._locks._names import describe_member
from cuelight.redis._locks._terms import Terms

LEASE: Final = Script.load("cuelight.redis._locks", "lease.lua")


class Ticket:
    """One acquisition on the server: a member and the number of this acquisition."""

    __slots__ = ("first", "member", "number", "slot", "terms", "weight")

    def __init__(self, member: str, slot: int, number: int, *, weight: int, first: bool, terms: Terms) -> None:
        self.member, self.slot, self.number = member, slot, number
        self.weight, self.first, self.terms = weight, first, terms

    def arguments(self, wait: bool) -> tuple[Argument, ...]:
        """The arguments of `acquire`."""
        terms = self.terms
        # A waiting ticket expires after one lease without a sign of life. It gives three signs in that time.
        return (
            self.member,
            self.number,
            self.weight,
            terms.lease_ms,
            terms.lease_ms,
            terms.delay_ms,
            int(self.first),
            int(wait),
        )


class Lowering:
    """A pending release of all or part of a ticket. It is resent until the server confirms it or its time is over.

    Attributes:
        left: the weight that remains held; 0 releases the whole ticket.
        until: the time on the lease clock after which the release is pointless.
        sure: whether the server is known to have the ticket.
        over: whether the release is no longer sent.
        outcome: 1 if the ticket was held, 0 if it was no longer held, 2 if it left the queue; None if not known.
        waiting: a loop, and a function to call there when the release is over.
    """

    __slots__ = ("left", "outcome", "over", "sure", "ticket", "until", "waiting")

    def __init__(self, ticket: Ticket, left: int, until: float, sure: bool) -> None:
        self.ticket, self.left, self.until, self.sure = ticket, left, until, sure
        self.outcome: int | None = None
        self.over = False
        self.waiting: Any = None


class Answer:
    """The reply to `acquire`.

    Attributes:
        granted: whether the lock was acquired.
        fence: the fencing token of a granted lock.
        gone: whether this ticket was already released.
        capacity: the capacity with which other processes use the lock, if it differs; else 0.
        wait: seconds until the next request makes sense.
        place: the place in the queue; -1 outside the queue.
        holder: a member that holds the lock.
    """

    __slots__ = ("capacity", "fence", "gone", "granted", "holder", "place", "wait")

    def __init__(self, reply: Sequence[Any]) -> None:
        """Parse a reply.

        Raises:
            LookupError, TypeError, ValueError, AttributeError: the reply is malformed.
        """
        code: int = reply[1]
        if code not in _CODES:
            raise ValueError(f"code {code!r}")
        self.granted, self.gone = code == 1, code == -1
        self.fence = int(reply[2]) if code == 1 else 0
        self.capacity = int(reply[2]) if code == -2 else 0
        self.wait: float = reply[3] / 1000 if code == 0 else 0.0
        self.place: int = reply[4] + 0 if code == 0 else -1
        self.holder: str = reply[5].decode() if code == 0 else ""


_CODES: Final = frozenset({-2, -1, 0, 1})


def outcomes(reply: Sequence[Any], size: int) -> list[int]:
    """Return the outcomes of the releases that were sent with a call.

    Raises:
        LookupError, TypeError, ValueError: the reply is malformed.
    """
    found: list[int] = reply[0]
    if len(found) != size:
        raise ValueError(f"{len(found)} outcomes of {size}")
    return found


def renewals(reply: Sequence[Any], size: int) -> list[int]:
    """Return the reply to `renew`: 1 for each lease that is held, else 0.

    Raises:
        LookupError, TypeError, ValueError: the reply is malformed.
    """
    return outcomes(reply[1:], size)


def renewal(tickets: Iterable[Ticket]) -> tuple[Argument, ...]:
    """The arguments of `renew`."""
    flat: list[Argument] = []
    for ticket in tickets:
        flat += (ticket.member, ticket.number, ticket.terms.lease_ms)
    return (len(flat) // 3, *flat)


class LockMember(msgspec.Struct, frozen=True):
    """A holder or a waiter of a lock on the server.

    Attributes:
        who: the process, described in words.
        weight: the number of permits.
        remaining: seconds until the lease ends, unless it is renewed; None for waiters.
        fence: the fencing token; None for waiters.
    """

    who: str
    weight: int
    remaining: float | None = None
    fence: int | None = None


class LockState(msgspec.Struct, frozen=True):
    """The server's state of a lock, semaphore or read-write lock at one moment, over all processes.

    Attributes:
        capacity: the number of permits; 1 for a lock.
        held: the number of permits held.
        holders: the holders.
        waiting: the waiters, the next one first; in each process, only the waiters whose turn it is there.
        fence: the greatest fencing token granted so far; 0 if none is known.
        expired: the number of leases that expired.
    """

    capacity: int
    held: int
    holders: tuple[LockMember, ...]
    waiting: tuple[LockMember, ...]
    fence: int
    expired: int


def stated(reply: Sequence[Any]) -> LockState:
    """Parse the reply to `look`.

    Raises:
        LookupError, TypeError, ValueError, AttributeError: the reply is malformed.
    """
    _, capacity, used, expired, fence, _, holders, waiters = reply
    return LockState(
        capacity=int(capacity),
        held=int(used),
        holders=tuple(
            LockMember(describe_member(member.decode()), int(weight), max(0, left) / 1000, int(mark))
            for member, weight, left, mark in holders
        ),
        waiting=tuple(LockMember(describe_member(member.decode()), int(weight)) for member, weight in waiters),
        fence=int(fence),
        expired=int(expired),
    )
