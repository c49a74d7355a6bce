"""Debug mode: the order in which locks are acquired. Two locks acquired in both orders can deadlock some day."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, Final

from cuelight._log import get_log
from cuelight.coordination._owner import describe, my_place

if TYPE_CHECKING:
    from cuelight.coordination._lock_state import Core

log = get_log("cuelight")

MOST: Final = 10_000
"""The greatest number of names that are remembered; beyond it, all are forgotten."""

_lock: Final = threading.RLock()
_held: Final[dict[Any, dict[Core, str]]] = {}  # by owner: the cores it holds, and where it acquired them
_after: Final[dict[str, dict[str, str]]] = {}  # by name: the names acquired while it was held, and where
_warned: Final[set[frozenset[str]]] = set()


def debug_by_default() -> bool:
    """Whether the environment variable `CUELIGHT_DEBUG_LOCKS` asks for debug mode."""
    return os.environ.get("CUELIGHT_DEBUG_LOCKS", "") not in ("", "0")


def note_acquired(core: Core, owner: Any) -> None:
    """Record an acquisition, and warn once for each pair of locks that is acquired in both orders."""
    place = my_place() or "?"
    warnings: list[str] = []
    with _lock:
        held = _held.setdefault(owner, {})
        for other, taken in held.items():
            if other.thing != core.thing:
                warnings += _note_order(other.thing, taken, core.thing, place, owner)
        held[core] = place
    for text in warnings:
        log.warning(text)


def _note_order(first: str, taken: str, second: str, place: str, owner: Any) -> list[str]:
    if len(_after) >= MOST:
        _after.clear()
        _warned.clear()
    _after.setdefault(first, {}).setdefault(second, place)
    way = _way(second, first)
    pair = frozenset((first, second))
    if way is None or pair in _warned:
        return []
    _warned.add(pair)
    elsewhere = ", then ".join(f"{later} after {sooner} at {_after[sooner][later]}" for sooner, later in way)
    text = (
        f"locks are taken in two orders, which can end in a deadlock: {describe(owner)} took {first} at {taken} and "
        f"{second} after it at {place}, but elsewhere {elsewhere} was taken. Take them in one order everywhere, or "
        f"both with LockManager.acquire_all"
    )
    return [text]


def _way(start: str, end: str) -> list[tuple[str, str]] | None:
    """Return the steps by which `end` was acquired after `start`, or None."""
    came_from: dict[str, str | None] = {start: None}
    frontier = [start]
    while frontier:
        name = frontier.pop()
        if name == end:
            way: list[tuple[str, str]] = []
            before = came_from[name]
            while before is not None:
                way.append((before, name))
                name, before = before, came_from[before]
            return way[::-1]
        for later in _after.get(name, ()):
            if later not in came_from:
                came_from[later] = name
                frontier.append(later)
    return None


def note_released(core: Core, owner: Any) -> None:
    """Remove the record of a core from an owner that no longer holds it."""
    with _lock:
        held = _held.get(owner)
        if held is not None and not core.is_held_by(owner):
            held.pop(core, None)
            if not held:
                del _held[owner]
