"""The storm over a queue: faults in its workers, its producer and its place until all tasks are finished."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import anyio

from chaos._ledger import Ledger
from chaos._options import Options
from chaos._places import Place, SQLitePlace
from chaos._processes import QUEUE, task_id
from chaos._verdict import Verdict, judge
from chaos._victims import Victims
from cuelight.errors import StoreUnavailable
from cuelight.tasks import Size, Store, Task, TaskQueue

__all__ = ["storm"]


def storm(options: Options, say: Callable[[str], None] = lambda _line: None) -> Verdict:
    """Run the storm in a temporary folder, and judge the outcome of every task."""
    with tempfile.TemporaryDirectory(prefix="chaos") as folder:
        place = _place(options, Path(folder))
        try:
            return anyio.run(_storm, Victims(options, Path(folder), place), say)
        finally:
            place.close()


def _place(options: Options, folder: Path) -> Place:
    if options.store == "sqlite":
        return SQLitePlace(folder, QUEUE)
    if options.store != "redis":
        raise ValueError(f"--store {options.store}: give sqlite or redis")
    from chaos._redis_place import RedisPlace  # noqa: PLC0415 - a file needs none of it

    return RedisPlace(QUEUE, fsync=options.fsync, outage=options.outage, replicas=options.replicas)


async def _storm(state: Victims, say: Callable[[str], None]) -> Verdict:
    options = state.options
    ledger = Ledger(state.folder / "ledger.txt")
    store = state.place.store()
    await store.open()
    try:
        await _rage(state, store, say)
        deaf = await _find_the_deaf(state, ledger)
    finally:
        state.end()
    ids = [task_id(number) for number in range(options.tasks)]
    found = zip(ids, await store.get(ids), strict=True)
    await store.close()
    states = {name: snapshot.state for name, snapshot in found if snapshot is not None}
    verdict = judge(ledger.events(), states, state.faults, state.place.troubles)
    verdict.exited, verdict.deaf = state.exited, deaf
    return verdict


async def _rage(state: Victims, store: Store, say: Callable[[str], None]) -> None:
    """Cause faults and replace dead processes until all tasks are finished."""
    options, random = state.options, Random(state.options.seed)
    begun = next_fault = time.time()
    size: Size | None = None
    while time.time() - begun < options.timeout:
        await anyio.sleep(0.05)
        state.thaw()
        await anyio.to_thread.run_sync(state.place.go_on)
        state.replace_the_dead()
        given = state.keep_producing()
        if len(state.faults) < options.faults:
            if time.time() >= next_fault + options.every:
                next_fault = time.time() + random.uniform(-0.5, 0.5) * options.every
                await anyio.to_thread.run_sync(state.strike_somebody, random)
            continue
        size = await _size(store)
        if size is not None and given and not _open(size) and not state.frozen:
            say(f"all tasks are through after {time.time() - begun:.1f} s")
            break
    else:
        say(f"not through after {options.timeout:g} s: {size}")
    await anyio.to_thread.run_sync(state.place.heal)


async def _size(store: Store) -> Size | None:
    try:
        return await store.size()
    except StoreUnavailable:  # in trouble, as intended
        return None


def _open(size: Size) -> int:
    return size.pending + size.scheduled + size.in_flight + size.parked


async def _find_the_deaf(state: Victims, ledger: Ledger) -> list[int]:
    """Enqueue more tasks than the other workers could take, and return the workers that take none."""
    state.thaw(everybody=True)
    options, since = state.options, time.time()
    listening: set[int] = set()
    async with TaskQueue(state.place.store(), max_length=None) as queue:
        for attempt in range(20):
            probes = [
                Task(task_id=f"probe-{attempt}-{number}", task_type="work", payload=number)
                for number in range(options.workers * options.concurrency * 2)
            ]
            await queue.enqueue_many(probes)
            await queue.drain()
            listening |= {event.pid for event in ledger.events() if event.what == "begun" and event.at > since}
            if listening >= {process.pid for process in state.workers}:
                break
    return sorted({process.pid for process in state.workers} - listening)
