# ruff: noqa: ARG001 - all rules have the same parameters, and each uses only some of them
"""Rules that choose the members of an actor pool for a message: one function for each rule.

To add a rule, write such a function. It gets the members, the message and the number of messages that were routed
before. It returns the positions of the members that get the message, and changes nothing. If it may return no position,
because the message should wait until a member becomes free, mark it with `@may_wait`. The pool then calls it again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


class Member(Protocol):
    """The interface of a member for a rule."""

    @property
    def name(self) -> str:
        """The name of the member, which belongs to its place and survives restarts and resizes."""
        ...

    @property
    def load(self) -> int:
        """Number of messages that the member handles or that wait for it."""
        ...

    @property
    def ready(self) -> bool:
        """Whether the member would handle a message at once: it has no message, and is not restarting."""
        ...


Routing: TypeAlias = Callable[[Sequence[Member], Any, int], Sequence[int]]
"""A rule: maps `(members, message, turn)` to the positions of the members that get the message."""


def may_wait(rule: F) -> F:
    """Mark a rule that may choose no member for now, so that the message waits."""
    rule.__may_wait__ = True  # type: ignore[attr-defined]
    return rule


@may_wait
def pull(members: Sequence[Member], message: Any, turn: int) -> Sequence[int]:
    """Give the next message to the first idle member; until one is idle, messages wait in the pool. The default."""
    return next(([at] for at, member in enumerate(members) if member.ready), ())


def round_robin(members: Sequence[Member], message: Any, turn: int) -> Sequence[int]:
    """Choose one member after the other. For messages that are all alike."""
    return (turn % len(members),)


def least_loaded(members: Sequence[Member], message: Any, turn: int) -> Sequence[int]:
    """Choose the first member with the fewest messages. For actors that keep their own queue."""
    return (min(range(len(members)), key=lambda at: members[at].load),)


def broadcast(members: Sequence[Member], message: Any, turn: int) -> Sequence[int]:
    """Choose all members. For messages that every member must get."""
    return range(len(members))


def by_key(key: Callable[[Any], Any]) -> Routing:
    """Return a rule that sends messages with the same key to the same member. For state that is divided by key.

    Each member bids for a key, and the highest bid wins (rendezvous hashing). So a resize moves only the keys of
    removed members, or the keys that a new member wins.

    Args:
        key: function that returns the key of a message. Equal keys must have equal `repr`.
    """
    from hashlib import blake2b  # noqa: PLC0415 - loads OpenSSL, and few need it

    def route(members: Sequence[Member], message: Any, turn: int) -> Sequence[int]:
        digest = blake2b(repr(key(message)).encode("utf-8", "surrogatepass"), digest_size=16)

        def bid(at: int) -> bytes:
            mine = digest.copy()
            mine.update(members[at].name.encode())
            return mine.digest()

        return (max(range(len(members)), key=bid),)

    return route
