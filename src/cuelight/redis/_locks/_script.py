"""The calls of `lease.lua` and their replies."""

# Replies of a server have no type.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import os
import re
import secrets
import socket
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from cuelight._text import safe_repr
from cuelight.redis._client import Argument, Script
from cuelight.tasks._stores._checks import check_text

if TYPE_CHECKING:
    from cuelight.redis._locks._lease import LeaseRequest


# The names of keys and channels on the server, and the name of this process there.


LONGEST: Final = 512
"""The largest length of a name. Longer texts are most likely data that was passed by mistake."""


class LockNames:
    """The keys and channels of one lock. All have one hash tag, so a cluster keeps them in one slot."""

    __slots__ = ("channels", "keys", "tag")

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self.keys: tuple[str, ...] = tuple(f"{{{tag}}}:{part}" for part in ("state", "held", "line", "members", "gone"))
        self.channels = f"{{{tag}}}:to:"


def lock_names(prefix: str, kind: str, name: str) -> LockNames:
    """Return the keys of a lock.

    Args:
        prefix: separates the keys of one application from others on the same server.
        kind: the kind of lock.
        name: the user's name for the lock. Braces are escaped, because they would end the hash tag.

    Raises:
        TypeError: the name or the prefix is not a str.
        ValueError: it is empty, too long or not Unicode text.
    """
    for what, text in {"name": name, "prefix": prefix}.items():
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"{what}={safe_repr(text)}: the {what} of a lock is a str")
        if not 0 < len(text) <= LONGEST:
            raise ValueError(f"{what}={text[:40]!r}: give 1 to {LONGEST} characters, not {len(text)}")
        check_text("a lock", **{what: text})
    return LockNames(f"{_escaped(prefix).replace(':', '%3A')}:{kind}:{_escaped(name)}")


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("{", "%7B").replace("}", "%7D")


_name = ""


def client_name() -> str:
    """The name of this process on the server: host, process identifier and a random part that makes it unique."""
    global _name  # noqa: PLW0603 - a child of a fork is another process
    if not _name:
        host = re.sub("[^A-Za-z0-9_-]", "-", socket.gethostname().partition(".")[0])[:24] or "host"
        _name = f"{host}.{os.getpid()}.{secrets.token_hex(4)}"
    return _name


def _forget() -> None:
    global _name  # noqa: PLW0603
    _name = ""


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def describe_member(member: str) -> str:
    """Describe a member of the script in words."""
    client = member.partition("/")[0]
    host, _, rest = client.partition(".")
    return f"process {rest.partition('.')[0]} on {host}" if rest else "another process"


LEASE_SCRIPT: Final = Script.load("cuelight.redis._locks", "lease.lua")


class PendingRelease:
    """A pending release of all or part of a request. It is resent until the server confirms it or its time is over.

    Attributes:
        left: the weight that remains held; 0 releases the whole request.
        until: the time on the lease clock after which the release is pointless.
        sure: whether the server is known to have the request.
        over: whether the release is no longer sent.
        outcome: 1 if the request was held, 0 if it was no longer held, 2 if it left the queue; None if not known.
        waiting: a loop, and a function to call there when the release is over.
    """

    __slots__ = ("left", "outcome", "over", "request", "sure", "until", "waiting")

    def __init__(self, request: LeaseRequest, left: int, until: float, sure: bool) -> None:
        self.request, self.left, self.until, self.sure = request, left, until, sure
        self.outcome: int | None = None
        self.over = False
        self.waiting: Any = None


class AcquireReply:
    """The reply to `acquire`.

    Attributes:
        granted: whether the lock was acquired.
        fence: the fencing token of a granted lock.
        gone: whether this request was already released.
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


def parse_outcomes(reply: Sequence[Any], size: int) -> list[int]:
    """Return the outcomes of the releases that were sent with a call.

    Raises:
        LookupError, TypeError, ValueError: the reply is malformed.
    """
    found: list[int] = reply[0]
    if len(found) != size:
        raise ValueError(f"{len(found)} outcomes of {size}")
    return found


def parse_renewals(reply: Sequence[Any], size: int) -> list[int]:
    """Return the reply to `renew`: 1 for each lease that is held, else 0.

    Raises:
        LookupError, TypeError, ValueError: the reply is malformed.
    """
    return parse_outcomes(reply[1:], size)


def renewal_arguments(requests: Iterable[LeaseRequest]) -> tuple[Argument, ...]:
    """The arguments of `renew`."""
    flat: list[Argument] = []
    for request in requests:
        flat += (request.member, request.number, request.options.lease_ms)
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


def parse_state(reply: Sequence[Any]) -> LockState:
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
