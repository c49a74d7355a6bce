"""Counts of resources that may leak, and limits for their growth."""

from __future__ import annotations

import gc
import os
import threading
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Final

import anyio

from cuelight.redis import RedisClient

__all__ = ["Balance", "Excess", "balance", "excesses"]

_PAGE: Final = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


@dataclass(frozen=True)
class Balance:
    """Figures at a moment of rest.

    Attributes:
        memory: resident memory in MB; 0 where the system does not report it.
        objects: objects known to the garbage collector.
        files: open descriptors; 0 where the system does not report it.
        threads: running threads.
        tasks: tasks of the loop.
        keys: keys in the server that nothing will ever delete.
        kept: sizes of the loads' long-lived structures, by their names.
    """

    memory: float = 0.0
    objects: int = 0
    files: int = 0
    threads: int = 0
    tasks: int = 0
    keys: int = 0
    kept: dict[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True)
class Excess:
    """A figure above its limit."""

    what: str
    before: float
    after: float
    most: float


async def balance(server: RedisClient | None, kept: dict[str, int]) -> Balance:
    """Collect garbage and count."""
    for _ in range(3):
        gc.collect()
    return Balance(
        memory=_memory(),
        objects=len(gc.get_objects()),
        files=_files(),
        threads=threading.active_count(),
        tasks=len(anyio.get_running_tasks()),
        keys=0 if server is None else await _lasting_keys(server),
        kept=kept,
    )


def _memory() -> float:
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * _PAGE / 1e6 if status.exists() else 0.0


def _files() -> int:
    descriptors = Path("/proc/self/fd")
    return len(list(descriptors.iterdir())) if descriptors.exists() else 0


async def _lasting_keys(server: RedisClient) -> int:
    """Keys without a time to live, except those of queues, which exist as long as their queue."""
    cursor, found = b"0", 0
    while True:
        cursor, keys = await server.execute("SCAN", cursor, "COUNT", 1000)
        for key in keys:
            if b":tasks:" not in key and await server.execute("PTTL", key) == -1:
                found += 1
        if cursor == b"0":
            return found


MORE: Final = {
    "memory": (1.3, 20.0),
    "objects": (1.3, 20_000),
    "files": (1.0, 4),
    "threads": (1.0, 3),
    "tasks": (1.0, 5),
}
"""The largest growth of a figure: a factor and a summand."""

GROWING: Final = frozenset({"memory", "objects"})
"""Figures that grow at first in any program. They are judged only in long runs."""


def excesses(before: Balance, after: Balance, limits: dict[str, int], *, long: bool) -> list[Excess]:
    """Return the figures above their limits.

    Args:
        before: the figures after the loads had warmed up.
        after: the figures at the end.
        limits: the limits of the figures in `kept`.
        long: whether the run was long enough to judge figures that grow at first.
    """
    found: list[Excess] = []
    for one in fields(Balance):
        if one.name in MORE and (long or one.name not in GROWING):
            factor, more = MORE[one.name]
            was, now = float(getattr(before, one.name)), float(getattr(after, one.name))
            if now > was * factor + more:
                found.append(Excess(one.name, was, now, was * factor + more))
    if after.keys:
        found.append(Excess("keys without a time to live", before.keys, after.keys, 0))
    found += [
        Excess(what, before.kept.get(what, 0), after.kept.get(what, 0), most)
        for what, most in limits.items()
        if after.kept.get(what, 0) > most
    ]
    return found
