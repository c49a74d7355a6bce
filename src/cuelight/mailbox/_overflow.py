"""Overflow policies: functions that decide which item is dropped when there is no room.

A policy is a pure function of the buffered items and the new item. It is called only when there is no room. Think of
the new item as standing behind the last item of the buffer. The policy does one of these:

* it returns an `int`, the position of the item to drop; `len(buffer)` is the new item itself;
* it returns `None`: nothing is dropped, and the sender waits for room;
* it raises an exception: the sender gets the exception, and nothing has changed.

To add a policy, write one such function here. It may read the buffer but must not change it, so that the owner of the
buffer can report the dropped item. Channels and actor mailboxes use the same policies.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeAlias, TypeVar

from cuelight._text import safe_repr
from cuelight.errors import MailboxFull

T = TypeVar("T")

Overflow: TypeAlias = Callable[[Sequence[T], T], int | None]
"""An overflow policy: maps `(buffer, item)` to the position of the item to drop, or to `None` to wait."""


def checked_overflow(overflow: Overflow[T]) -> Overflow[T]:
    """Return the policy if it is a function.

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
    """Return the result of an overflow policy if it is valid.

    Args:
        position: the result of the policy.
        size: the number of buffered items.
        owner: the owner of the buffer, for the error.

    Raises:
        ValueError: the result is neither None nor a position from 0 to `size`.
    """
    if position is None or (isinstance(position, int) and 0 <= position <= size):
        return position
    raise ValueError(f"the overflow policy of {owner!r} said {safe_repr(position)}: no position in 0..{size}")


def policy_name(overflow: Overflow[T]) -> str:
    """Return the name of a policy, as used in the reasons of dead letters, or `overflow` if it has none."""
    try:
        name: object = getattr(overflow, "__name__", None)
    except Exception:  # `overflow` may be an instance of a user's class
        return "overflow"
    return name if type(name) is str else "overflow"


def wait(buffer: Sequence[object], item: object) -> None:
    """Let the sender wait: back-pressure. Use this policy unless you know that losing items is harmless."""


def drop_oldest(buffer: Sequence[object], item: object) -> int:  # noqa: ARG001
    """Drop the item that has waited longest. Use this policy if only recent items matter, as with measurements."""
    return 0


def drop_newest(buffer: Sequence[object], item: object) -> int:  # noqa: ARG001
    """Drop the new item. Use this policy if accepted work must be finished first."""
    return len(buffer)


def fail(buffer: Sequence[object], item: object) -> None:  # noqa: ARG001
    """Refuse the new item. Use this policy if the sender can do something better than wait.

    Raises:
        MailboxFull: always.
    """
    message = f"no room: {len(buffer)} items wait, and the overflow policy is to fail"
    raise MailboxFull(message)


def coalesce(key: Callable[[T], Hashable]) -> Overflow[T]:
    """Make a policy that drops the older item with the same key. If there is none, the sender waits.

    Use it for items that replace each other, such as the latest price of each stock. Nothing is dropped while there is
    room. The new item is added at the end, so the remaining items stay in order.

    Args:
        key: returns the key of an item. Items with equal keys replace each other. It is called for the new item and for
            the buffered ones.
    """

    def coalesce_by_key(buffer: Sequence[T], item: T) -> int | None:
        wanted = key(item)
        return next((position for position, other in enumerate(buffer) if key(other) == wanted), None)

    return coalesce_by_key
