"""The monitor, and the release of locks whose owner has ended, which is reported in the log.

Every step on a core runs under one monitor for the whole process, and so does the search for deadlocks. The monitor is
held for microseconds, never across a wait. It is re-entrant, because the garbage collector may run a finaliser that
releases a lock during a step; `_core` explains why that is harmless.

Invariants:
1. While an owner waits for a lock, the end of each holder of that lock is noticed at once.
2. A lock that an actor holds is released when the actor crashes, otherwise after its `stopped` hook, whether or not
   others wait for it.
3. Holders of other kinds are checked when a request does not get the lock at once.
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

log = get_log("cuelight")

monitor: Final = threading.RLock()

if hasattr(os, "register_at_fork"):  # a child must not inherit a monitor held by a thread that it does not have
    os.register_at_fork(before=monitor.acquire, after_in_parent=monitor.release, after_in_child=monitor.release)

now: Final = time.monotonic

watched: Final[dict[Any, dict[Core, None]]] = {}
"""For each owner, the cores to check when it ends. Only cores that others wait for."""


class _Holdings:
    """The cores that an actor holds, released when its incarnation ends."""

    __slots__ = ("_cell", "cores")

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self.cores: dict[Core, None] = {}

    def let_go(self) -> None:
        """Release all of them: the incarnation has ended."""
        reports: list[str] = []
        with monitor:
            for core in list(self.cores):
                reports += _take_away(core, self._cell)
        report(reports)


def enter_holding(core: Core, cell: Cell) -> None:
    """Register a core for release at the end of this incarnation of the actor."""
    with monitor:
        held = holdings.get(cell)
        if not isinstance(held, _Holdings):
            held = holdings[cell] = _Holdings(cell)
        held.cores[core] = None


def watch(core: Core, owner: Any) -> None:
    """Check this core when one of its holders ends, because others wait. Call it under the monitor."""
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
    """Remove the records of an owner that has released the core, unless it still holds part of it."""
    if not core.is_held_by(owner):
        if owner in watched:
            watched[owner].pop(core, None)
        held = holdings.get(owner) if holdings else None
        if isinstance(held, _Holdings):
            held.cores.pop(core, None)
            if not held.cores:
                holdings.pop(owner, None)


def reap(core: Core) -> None:
    """Release the core for holders that have ended, and report them."""
    with monitor:
        reports = collect_dead(core)
    report(reports)


def collect_dead(core: Core) -> list[str]:
    """Release the core for holders that have ended. Returns the reports, to be logged outside of the monitor."""
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
    for text in reports:
        log.error(text)
