"""The monitor, and those who end while they hold something: it is given back, and reported.

Every step on a core is taken under one monitor for the whole process, the searches for circles too. It is held for
microseconds, never across a wait. It is re-entrant, because the garbage collector may run a finaliser that releases
something while a step is under way; see `_core` for why that is harmless.

Invariants:
1. While somebody waits for a thing, the end of each of its holders is noticed when it comes.
2. What an actor holds is given back when it crashes, else after its `stopped` hook, whether somebody waits or not.
3. What others hold is looked at when somebody comes who does not get it.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from cuelight._log import get_log
from cuelight.actors import Cell, holdings
from cuelight.coordination._order import note_released
from cuelight.coordination._parties import ThreadParty, describe, party_ended, show_place
from cuelight.mailbox import when_task_ends

if TYPE_CHECKING:
    from cuelight.coordination._core import Core

__all__ = ["collect_dead", "enter_holding", "forget", "monitor", "now", "reap", "report", "watch", "watched"]

log = get_log("cuelight")

monitor: Final = threading.RLock()

if hasattr(os, "register_at_fork"):  # a child must not inherit it in the hands of a thread that it does not have
    os.register_at_fork(before=monitor.acquire, after_in_parent=monitor.release, after_in_child=monitor.release)

now: Final = time.monotonic

watched: Final[dict[Any, dict[Core, None]]] = {}
"""By party: what to look at when it ends. That is only what others wait for."""


class _Holdings:
    """What an actor holds: given back when its incarnation is over."""

    __slots__ = ("_cell", "cores")

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self.cores: dict[Core, None] = {}

    def let_go(self) -> None:
        """The incarnation is over."""
        reports: list[str] = []
        with monitor:
            for core in list(self.cores):
                reports += _take_away(core, self._cell)
        report(reports)


def enter_holding(core: Core, cell: Cell) -> None:
    """Have it given back when the incarnation of this actor is over."""
    with monitor:
        held = holdings.get(cell)
        if not isinstance(held, _Holdings):
            held = holdings[cell] = _Holdings(cell)
        held.cores[core] = None


def watch(core: Core, owner: Any) -> None:
    """Have it noticed when a holder ends that others wait for. Under the monitor."""
    if owner in watched:
        watched[owner][core] = None
        return
    if isinstance(owner, Cell):
        return
    watched[owner] = {core: None}
    if isinstance(owner, ThreadParty):
        owner.when_ended = _party_ended
        if owner.ended:
            _party_ended(owner)
    elif not when_task_ends(owner, _party_ended):
        _party_ended(owner)


def _party_ended(party: Any) -> None:
    with monitor:
        cores = watched.pop(party, {})
    for core in cores:
        reap(core)


def forget(core: Core, owner: Any) -> None:
    """An owner has given it back, perhaps not all of it."""
    if not core.is_held_by(owner):
        if owner in watched:
            watched[owner].pop(core, None)
        held = holdings.get(owner) if holdings else None
        if isinstance(held, _Holdings):
            held.cores.pop(core, None)
            if not held.cores:
                holdings.pop(owner, None)


def reap(core: Core) -> None:
    """Give back what is held by those who have ended, and report it."""
    with monitor:
        reports = collect_dead(core)
    report(reports)


def collect_dead(core: Core) -> list[str]:
    """Take it away from those who have ended; returns what to report once outside of the monitor."""
    reports: list[str] = []
    for owner in core.held():
        if party_ended(owner):
            reports += _take_away(core, owner)
    return reports


def _take_away(core: Core, owner: Any) -> list[str]:
    weight = core.held().get(owner)
    hold = (core.details or {}).get(owner)
    if weight is None or not core.release(owner, weight, now()):
        return []
    forget(core, owner)
    if core.debug:
        note_released(core, owner)
    where = f" (taken at {show_place(hold.place)})" if hold is not None and hold.place else ""
    text = f"{describe(owner)} ended while it held {core.thing}{where}: it was released, but what it protects may be in"
    return [f"{text} disorder. Use a `with` block, or release it in a `finally`"]


def report(reports: list[str]) -> None:
    """Write it to the log."""
    for text in reports:
        log.error(text)
