"""Who is restarted when a child crashes: one function for each strategy.

To add one, write such a function here: it gets the children in their start order and the one that crashed, and
returns those to restart, in start order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

__all__ = ["Strategy", "one_for_all", "one_for_one", "rest_for_one"]

T = TypeVar("T")

Strategy: TypeAlias = Callable[[Sequence[Any], Any], Sequence[Any]]
"""`(children, crashed)` to the children to restart."""


def one_for_one(children: Sequence[T], crashed: T) -> Sequence[T]:  # noqa: ARG001 - the shape of a strategy
    """Restart the one that crashed. For children that do not depend on each other."""
    return [crashed]


def one_for_all(children: Sequence[T], crashed: T) -> Sequence[T]:  # noqa: ARG001
    """Restart all. For children that make no sense without each other."""
    return list(children)


def rest_for_one(children: Sequence[T], crashed: T) -> Sequence[T]:
    """Restart the one that crashed and those started after it. For children that depend on earlier ones."""
    return list(children[children.index(crashed) :])
