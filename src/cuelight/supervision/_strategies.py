"""Restart strategies: functions that choose the children to restart after a crash.

To add a strategy, write such a function here: it gets the children in start order and the crashed child, and returns
the children to restart, in start order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")

Strategy: TypeAlias = Callable[[Sequence[Any], Any], Sequence[Any]]
"""A function from `(children, crashed)` to the children to restart."""


def one_for_one(children: Sequence[T], crashed: T) -> Sequence[T]:  # noqa: ARG001 - the shape of a strategy
    """Restart only the crashed child. For children that do not depend on each other."""
    return [crashed]


def one_for_all(children: Sequence[T], crashed: T) -> Sequence[T]:  # noqa: ARG001
    """Restart all children. For children that cannot work without each other."""
    return list(children)


def rest_for_one(children: Sequence[T], crashed: T) -> Sequence[T]:
    """Restart the crashed child and those started after it. For children that depend on earlier ones."""
    return list(children[children.index(crashed) :])
