"""The calls of `lease.lua`, and what they answer."""

# What a server answers has no type.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from cuelight.redis._client import Argument, Script
from cuelight.redis._locks._names import describe_member
from cuelight.redis._locks._terms import Terms

__all__ = [
    "Answer",
    "LEASE",
    "LockMember",
    "LockState",
    "Lowering",
    "Ticket",
    "outcomes",
    "renewal",
    "renewals",
    "stated",
]

LEASE: Final = Script.load("cuelight.redis._locks", "lease.lua")


class Ticket:
    """One acquisition, as the server knows it: a member, and the number of this time."""

    __slots__ = ("first", "member", "number", "slot", "terms", "weight")

    def __init__(self, member: str, slot: int, number: int, *, weight: int, first: bool, terms: Terms) -> None:
        self.member, self.slot, self.number = member, slot, number
        self.weight, self.first, self.terms = weight, first, terms

    def arguments(self, wait: bool) -> tuple[Argument, ...]:
        """Of `acquire`."""
        terms = self.terms
        # It stays in line for a lease without a sign of life, and gives three.
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
    """So much of a ticket is to be given back: it is sent until the server has answered or its time is over.

    Attributes:
        left: the weight that stays; 0 gives it back wholly.
        until: when there is no use in it any more, by the clock of leases.
        sure: whether the server is known to have something of it.
        over: whether it is sent no more.
        outcome: 1 if it was held, 0 if not any more, 2 if it left the line; None if that is not known.
        waiting: whom to wake when it is over: a loop, and what to call there.
    """

    __slots__ = ("left", "outcome", "over", "sure", "ticket", "until", "waiting")

    def __init__(self, ticket: Ticket, left: int, until: float, sure: bool) -> None:
        self.ticket, self.left, self.until, self.sure = ticket, left, until, sure
        self.outcome: int | None = None
        self.over = False
        self.waiting: Any = None


class Answer:
    """What the server said to `acquire`.

    Attributes:
        granted: whether it is ours.
        fence: the fencing token if so.
        gone: whether this ticket was given back already.
        capacity: another capacity that others use it with now; 0 if it is the same.
        wait: seconds until a look is worth the while.
        place: in the line; -1 outside of it.
        holder: a member that holds it.
    """

    __slots__ = ("capacity", "fence", "gone", "granted", "holder", "place", "wait")

    def __init__(self, reply: Sequence[Any]) -> None:
        """Read it.

        Raises:
            LookupError, TypeError, ValueError, AttributeError: it is none.
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
    """What became of lowerings that went with a call.

    Raises:
        LookupError, TypeError, ValueError: it does not say.
    """
    found: list[int] = reply[0]
    if len(found) != size:
        raise ValueError(f"{len(found)} outcomes of {size}")
    return found


def renewals(reply: Sequence[Any], size: int) -> list[int]:
    """What `renew` answered: 1 for each lease that is held, else 0.

    Raises:
        LookupError, TypeError, ValueError: it does not say.
    """
    return outcomes(reply[1:], size)


def renewal(tickets: Iterable[Ticket]) -> tuple[Argument, ...]:
    """The arguments of `renew`."""
    flat: list[Argument] = []
    for ticket in tickets:
        flat += (ticket.member, ticket.number, ticket.terms.lease_ms)
    return (len(flat) // 3, *flat)


class LockMember(msgspec.Struct, frozen=True):
    """Somebody who holds something on the server, or waits there.

    Attributes:
        who: the process, in words.
        weight: how much.
        remaining: seconds until the lease ends, unless it is renewed; None of those who wait.
        fence: the fencing token; None of those who wait.
    """

    who: str
    weight: int
    remaining: float | None = None
    fence: int | None = None


class LockState(msgspec.Struct, frozen=True):
    """What a server knows of a lock, semaphore or read-write lock, at one moment, over all processes.

    Attributes:
        capacity: how much there is of it: 1 of a lock.
        held: how much of it is held.
        holders: by whom.
        waiting: who waits, the next first; of each process only those whose turn it is among its own.
        fence: the greatest fencing token that was given; 0 if none is known.
        expired: how many leases ran out.
    """

    capacity: int
    held: int
    holders: tuple[LockMember, ...]
    waiting: tuple[LockMember, ...]
    fence: int
    expired: int


def stated(reply: Sequence[Any]) -> LockState:
    """What `look` answered.

    Raises:
        LookupError, TypeError, ValueError, AttributeError: it makes no sense.
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
