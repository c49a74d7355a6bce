"""What happens to an item when there is no room for it: one function for each policy.

A policy is a pure function of what waits and what comes. It is asked only when there is no room, and says
which item has to go: think of the new item as standing behind the last one in the buffer.

* an `int`: drop the item at this position; `len(buffer)` is the new item itself;
* `None`: drop nothing, the sender waits for room;
* raising an exception refuses the item: the sender gets the exception, nothing has changed.

To add a policy, write one such function here. It sees the buffer and must not change it, so that whoever
owns the buffer can tell what was dropped. Channels and actor mailboxes use the same policies.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeAlias, TypeVar

from cuelight._text import safe_repr
from cuelight.errors import MailboxFull

__all__ = [
    "Overflow",
    "checked_overflow",
    "checked_position",
    "coalesce",
    "drop_newest",
    "drop_oldest",
    "fail",
    "policy_name",
    "wait",
]

T = TypeVar("T")

Overflow: TypeAlias = Callable[[Sequence[T], T], int | None]
"""An overflow policy: `(buffer, item)` to the position that is dropped, or `None` to wait."""


def checked_overflow(overflow: Overflow[T]) -> Overflow[T]:
    """The policy, if it is one.

    Raises:
        TypeError: it cannot be called.
    """
    if not callable(overflow):
        message = (
            f"overflow={overflow!r}: give a function, such as cuelight.fail or cuelight.drop_oldest, and not its name"
        )
        raise TypeError(message)
    return overflow


def checked_position(position: object, size: int, owner: object) -> int | None:
    """What an overflow policy said, if it makes sense.

    Args:
        position: what it returned.
        size: how many items wait.
        owner: whose policy it is, for the error.

    Raises:
        ValueError: it is neither None nor a position of the buffer with the new item behind it.
    """
    if position is None or (isinstance(position, int) and 0 <= position <= size):
        return position
    raise ValueError(f"the overflow policy of {owner!r} said {safe_repr(position)}: no position in 0..{size}")


def policy_name(overflow: Overflow[T]) -> str:
    """The name of a policy, as reasons of dead letters have it; `overflow` if it has none."""
    try:
        name: object = getattr(overflow, "__name__", None)
    except Exception:  # an object of a class of the user
        return "overflow"
    return name if type(name) is str else "overflow"


def wait(buffer: Sequence[object], item: object) -> None:
    """Let the sender wait: back-pressure. Use it unless you know that losing items is harmless."""


def drop_oldest(buffer: Sequence[object], item: object) -> int:  # noqa: ARG001
    """Drop the item that waited longest. Use it where only recent items matter, as with measurements."""
    return 0


def drop_newest(buffer: Sequence[object], item: object) -> int:  # noqa: ARG001
    """Drop the item that comes. Use it where work already accepted must be finished first."""
    return len(buffer)


def fail(buffer: Sequence[object], item: object) -> None:  # noqa: ARG001
    """Refuse the item. Use it where the sender can do something better than wait.

    Raises:
        MailboxFull: always.
    """
    message = f"no room: {len(buffer)} items wait, and the overflow policy is to fail"
    raise MailboxFull(message)


def coalesce(key: Callable[[T], Hashable]) -> Overflow[T]:
    """Make a policy that drops the older item with the same key; if there is none, the sender waits.

    Use it for items that replace each other, such as the latest price of each stock. While there is room
    nothing is dropped. The new item takes its place at the end, so what survives stays in order.

    Args:
        key: says which items replace each other. Called for the new item and for those that wait.
    """

    def coalesce_by_key(buffer: Sequence[T], item: T) -> int | None:
        wanted = key(item)
        return next((position for position, other in enumerate(buffer) if key(other) == wanted), None)

    return coalesce_by_key
