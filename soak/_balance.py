"""What there is of everything that may leak, and how much of it may be more at the end."""

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
    """Figures of one moment at which nothing is under way.

    Attributes:
        memory: resident, in MB; 0 where the system does not say it.
        objects: that the garbage collector knows.
        files: open descriptors; 0 where the system does not say it.
        threads: that run.
        tasks: of the loop.
        keys: in the server, that nothing will ever delete.
        kept: what structures of the loads remember, by their names.
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
    """Something of which there is more than there may be."""

    what: str
    before: float
    after: float
    most: float


async def balance(server: RedisClient | None, kept: dict[str, int]) -> Balance:
    """Collect what is garbage, and count."""
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
    """Keys without a time to live, but those of queues, which are there for as long as their queue is."""
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
"""By how much a figure may be more at the end: a factor, and as much again."""

GROWING: Final = frozenset({"memory", "objects"})
"""What grows at first in any program, and is judged in long runs only."""


def excesses(before: Balance, after: Balance, limits: dict[str, int], *, long: bool) -> list[Excess]:
    """What does not come out.

    Args:
        before: the figures when the loads had warmed up.
        after: those at the end.
        limits: how much of what is kept there may be.
        long: whether the run was long enough to judge what grows at first.
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
