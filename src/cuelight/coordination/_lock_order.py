"""Debug mode: the order in which locks are acquired. Two locks acquired in both orders can deadlock some day."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, Final

from cuelight._log import get_log
from cuelight.coordination._owner import caller_location, describe

if TYPE_CHECKING:
    from cuelight.coordination._lock_state import CapacityState

log = get_log("cuelight")

MAX_NAMES: Final = 10_000
"""The greatest number of names that are remembered; beyond it, all are forgotten."""

_lock: Final = threading.RLock()
_held: Final[dict[Any, dict[CapacityState, str]]] = {}  # by owner: the locks it holds, and where it acquired them
_after: Final[dict[str, dict[str, str]]] = {}  # by name: the names acquired while it was held, and where
_warned: Final[set[frozenset[str]]] = set()


def debug_by_default() -> bool:
    """Whether the environment variable `CUELIGHT_DEBUG_LOCKS` asks for debug mode."""
    return os.environ.get("CUELIGHT_DEBUG_LOCKS", "") not in ("", "0")


def note_acquired(state: CapacityState, owner: Any) -> None:
    """Record an acquisition, and warn once for each pair of locks that is acquired in both orders."""
    location = caller_location() or "?"
    warnings: list[str] = []
    with _lock:
        held = _held.setdefault(owner, {})
        for other, first_location in held.items():
            if other.label != state.label:
                warnings += _note_order(other.label, first_location, state.label, location, owner)
        held[state] = location
    for text in warnings:
        log.warning(text)


def _note_order(first: str, first_location: str, second: str, location: str, owner: Any) -> list[str]:
    if len(_after) >= MAX_NAMES:
        _after.clear()
        _warned.clear()
    _after.setdefault(first, {}).setdefault(second, location)
    path = _find_order(second, first)
    pair = frozenset((first, second))
    if path is None or pair in _warned:
        return []
    _warned.add(pair)
    elsewhere = ", then ".join(f"{later} after {sooner} at {_after[sooner][later]}" for sooner, later in path)
    text = (
        f"locks are taken in two orders, which can end in a deadlock: {describe(owner)} took {first} at "
        f"{first_location} and {second} after it at {location}, but elsewhere {elsewhere} was taken. Take them in one "
        f"order everywhere, or both with LockManager.acquire_all"
    )
    return [text]


def _find_order(start: str, end: str) -> list[tuple[str, str]] | None:
    """Return the steps by which `end` was acquired after `start`, or None."""
    came_from: dict[str, str | None] = {start: None}
    frontier = [start]
    while frontier:
        name = frontier.pop()
        if name == end:
            path: list[tuple[str, str]] = []
            before = came_from[name]
            while before is not None:
                path.append((before, name))
                name, before = before, came_from[before]
            return path[::-1]
        for later in _after.get(name, ()):
            if later not in came_from:
                came_from[later] = name
                frontier.append(later)
    return None


def note_released(state: CapacityState, owner: Any) -> None:
    """Remove the record of a lock from an owner that no longer holds it."""
    with _lock:
        held = _held.get(owner)
        if held is not None and not state.is_held_by(owner):
            held.pop(state, None)
            if not held:
                del _held[owner]
