# ruff: noqa: ARG001 - rules have one shape, and each looks at what it needs
"""Which members of an actor pool get a message: one function for each rule.

To add one, write such a function here: it gets the members, the message and how many messages were routed before, and
returns the positions of those that get the message. It looks and changes nothing. If it may return none, because the
message should wait until some member has finished what it does, mark it with `@may_wait`: it is asked again then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

__all__ = ["Member", "Routing", "broadcast", "by_key", "least_loaded", "may_wait", "pull", "round_robin"]

F = TypeVar("F", bound=Callable[..., Any])


class Member(Protocol):
    """A member, as a rule sees it."""

    @property
    def name(self) -> str:
        """Its name, which stays with its place over restarts and resizes."""
        ...

    @property
    def load(self) -> int:
        """Messages that it handles or that wait for it."""
        ...

    @property
    def ready(self) -> bool:
        """Whether it would handle a message at once: it has none, and is not being restarted."""
        ...


Routing: TypeAlias = Callable[[Sequence[Member], Any, int], Sequence[int]]
"""`(members, message, turn)` to the positions of those that get the message."""


def may_wait(rule: F) -> F:
    """Mark a rule that may choose nobody for now."""
    rule.__may_wait__ = True  # type: ignore[attr-defined]
    return rule


@may_wait
def pull(members: Sequence[Member], message: Any, turn: int) -> Sequence[int]:
    """The first member that is idle takes the next message; until then it waits in the pool. The default."""
    return next(([at] for at, member in enumerate(members) if member.ready), ())


def round_robin(members: Sequence[Member], message: Any, turn: int) -> Sequence[int]:
    """One member after the other. For messages that are all alike."""
    return (turn % len(members),)


def least_loaded(members: Sequence[Member], message: Any, turn: int) -> Sequence[int]:
    """The member with the fewest messages; the first of them. For actors that keep a queue of their own."""
    return (min(range(len(members)), key=lambda at: members[at].load),)


def broadcast(members: Sequence[Member], message: Any, turn: int) -> Sequence[int]:
    """All members. For what each of them must know."""
    return range(len(members))


def by_key(key: Callable[[Any], Any]) -> Routing:
    """Messages with the same key to the same member. For state that is divided by key.

    Each member bids for a key and the highest bid wins, so a resize moves only the keys of members that go, or those
    that a new member wins.

    Args:
        key: the key of a message. Equal keys must have equal `repr`.
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
