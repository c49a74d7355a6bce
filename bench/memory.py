"""Bytes of an idle actor: resident memory, in a fresh process for each figure.

`python -m bench.memory KIND STATE COUNT LOOP` is that process.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench._actors import ADD, TOTAL, Async, Plain, actio_counter, pykka_counter
from bench._harness import OURS, Result, run_in
from cuelight import ActorSystem

KINDS = {"def": Plain, "async": Async}

STATES = ("idle", "warm", "settled")
"""`idle` has had no message yet; `warm` has just handled one; `settled` has handled one, and the task started for it
has ended. Each state also exists as `... traced`: the memory allocated by Python, as measured by tracemalloc, without
the reserves of the allocator.
"""

COUNTS = {"cuelight": 100_000, "actio": 10_000, "pykka": 1_000}
WARM_COUNT = 20_000  # each actor may have a task

AT_LEAST = 1200
"""Our goal for the bytes of an idle actor."""

AFTER_A_MESSAGE = 1500
"""The same for one that has handled a message; on trio one with `async def` handlers has a task then."""

PATIENCE = 20.0


def resident() -> int:
    """Bytes of resident memory of this process."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not say how much memory a process has")


class Scales:
    """Weighs the objects made between `begin` and `per`."""

    def __init__(self, *, traced: bool) -> None:
        self.traced = traced
        self.before = 0

    def _weigh(self) -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0] if self.traced else resident()

    def begin(self) -> None:
        if self.traced:
            tracemalloc.start()
        self.before = self._weigh()

    def per(self, count: int) -> float:
        return (self._weigh() - self.before) / count


async def _ours(kind: str, state: str, count: int) -> float:
    import anyio

    state, _, traced = state.partition(" ")
    scales = Scales(traced=bool(traced))
    async with ActorSystem("bench") as system:
        await (await system.spawn(KINDS[kind])).ask(TOTAL)
        scales.begin()
        refs = [await system.spawn(KINDS[kind]) for _ in range(count)]
        if state in {"warm", "settled"}:
            for ref in refs:
                ref.tell_nowait(ADD)
            await system.wait_until_idle()
        weight = scales.per(count)
        deadline = time.monotonic() + PATIENCE
        while state == "settled" and system.tasks and time.monotonic() < deadline:
            await anyio.sleep(0.5)
            weight = scales.per(count)
        assert len(refs) == count
        # Stopping takes a while and is not measured: leave the process without it.
        print(json.dumps(weight), flush=True)
        os._exit(0)


async def _actio(count: int) -> float:
    from actio import ActorSystem as ActioSystem

    scales = Scales(traced=False)
    system = ActioSystem()
    system.create(actio_counter())
    await asyncio.sleep(0.01)
    scales.begin()
    refs = [system.create(actio_counter(), name=str(index)) for index in range(count)]
    await asyncio.sleep(0.01)
    weight = scales.per(count)
    assert len(refs) == count
    print(json.dumps(weight), flush=True)
    os._exit(0)


def _pykka(count: int) -> None:
    scales = Scales(traced=False)
    pykka_counter()
    scales.begin()
    refs = [pykka_counter() for _ in range(count)]
    weight = scales.per(count)
    assert len(refs) == count
    print(json.dumps(weight), flush=True)
    os._exit(0)


def _in_process(rival: str, kind: str, state: str, count: int, loop: str) -> float:
    command = [sys.executable, "-m", "bench.memory", rival, kind, state, str(count), loop]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().rpartition("\n")[2] or f"ended with {done.returncode}")
    return float(json.loads(done.stdout))


def _measure(kind: str, state: str, name: str, loop: str) -> Result:
    result = Result("memory", name, loop, unit="B")
    rivals = {OURS: COUNTS[OURS] if state.startswith("idle") else WARM_COUNT}
    if state == "idle":
        rivals |= {peer: count for peer, count in COUNTS.items() if peer != OURS}
    for rival, count in rivals.items():
        try:
            where = "asyncio" if rival != OURS and loop == "trio" else loop
            result.figures[rival] = _in_process(rival, kind, state, count, where)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            result.failures[rival] = str(error)
    result.compare()
    limit = AT_LEAST if state.startswith("idle") else AFTER_A_MESSAGE if state == "warm" and loop != "trio" else None
    if limit is not None and OURS in result.figures:
        result.aim = f"at most {limit} B"
        result.aim_ratio = limit / result.figures[OURS]
        result.met = result.aim_ratio >= 1
    return result


SHOWN = {
    "idle": "idle actor",
    "warm": "after a message",
    "settled": "settled after a message",
}

MEASURES: dict[str, Callable[[str, str], Result]] = {
    f"bytes, {SHOWN[state]}{', traced' * bool(traced)}, {kind}": partial(_measure, kind, state + traced)
    for kind in KINDS
    for state in STATES
    for traced in ("", " traced")
}


def main(rival: str, kind: str, state: str, count: int, loop: str) -> Any:
    if rival == "pykka":
        return _pykka(count)
    if rival == "actio":
        return run_in(loop, _actio, count)
    return run_in(loop, _ours, kind, state, count)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5])
