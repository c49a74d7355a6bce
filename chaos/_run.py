"""The storm: starts the processes, kills and freezes them, and starts others in their stead until all is done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import anyio

from chaos._ledger import Ledger
from chaos._places import Place, SQLitePlace
from chaos._processes import QUEUE, task_id
from chaos._verdict import Fault, Verdict, judge
from cuelight.errors import StoreUnavailable
from cuelight.tasks import Size, Store, Task, TaskQueue

__all__ = ["Options", "storm"]


@dataclass(frozen=True)
class Options:
    """What to do.

    Attributes:
        tasks: how many.
        workers: processes that run them.
        concurrency: tasks at once in each.
        lease: seconds.
        work: the least and the most seconds that a task takes.
        faults: how many, drawn from `seed`.
        every: seconds from one fault to the next, about.
        timeout: seconds after which the run is over, whatever is left.
        backend: the event loop of the processes.
        store: "sqlite" or "redis".
        fsync: of the server: "always" or "everysec".
        outage: the most seconds for which a server is in trouble.
        replicas: of the server; with one it is promoted now and then.
    """

    tasks: int = 3000
    workers: int = 4
    concurrency: int = 10
    lease: float = 15.0
    work: tuple[float, float] = (0.05, 0.5)
    faults: int = 20
    every: float = 1.0
    seed: int = 0
    timeout: float = 240.0
    backend: str = "asyncio"
    store: str = "sqlite"
    fsync: str = "everysec"
    outage: float = 5.0
    replicas: int = 1


@dataclass
class _Storm:
    options: Options
    folder: Path
    place: Place
    faults: list[Fault] = field(default_factory=list[Fault])
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list[subprocess.Popen[bytes]])
    frozen: dict[int, float] = field(default_factory=dict[int, float])  # pid: when to wake it
    producer: subprocess.Popen[bytes] | None = None
    killed: set[int] = field(default_factory=set[int])
    exited: list[int] = field(default_factory=list[int])

    def start(self, role: str) -> subprocess.Popen[bytes]:
        options = {
            "store": self.place.address,
            "ledger": str(self.folder / "ledger.txt"),
            "tasks": self.options.tasks,
            "pause": self.options.every * self.options.faults / self.options.tasks,
            "concurrency": self.options.concurrency,
            "lease": self.options.lease,
            "work": self.options.work,
            "backend": self.options.backend,
        }
        root = Path(__file__).parent.parent
        return subprocess.Popen(
            [sys.executable, "-c", "from chaos._processes import main; main()", role, json.dumps(options)],
            cwd=root,
            stdin=subprocess.DEVNULL,
        )

    def strike(self, process: subprocess.Popen[bytes], kind: str) -> None:
        """Do something bad to a process."""
        at = time.time()
        if kind == "freeze worker":
            process.send_signal(signal.SIGSTOP)
            if not self.place.can_freeze(process):
                kind = "freeze worker in a commit, for a moment"
                process.send_signal(signal.SIGCONT)
            else:
                self.frozen[process.pid] = at + self.options.lease * 1.3
        else:
            self.killed.add(process.pid)
            process.kill()
            process.wait()
        self.faults.append(Fault(at, process.pid, kind))

    def thaw(self, *, everybody: bool = False) -> None:
        """Wake those who were frozen long enough to lose their leases."""
        for pid, when in list(self.frozen.items()):
            if everybody or time.time() >= when:
                del self.frozen[pid]
                os.kill(pid, signal.SIGCONT)

    def replace_the_dead(self) -> None:
        """Keep as many workers awake as there should be."""
        for process in [process for process in self.workers if process.poll() is not None]:
            self.workers.remove(process)
            if process.pid not in self.killed:
                self.exited.append(process.pid)
        awake = [process for process in self.workers if process.pid not in self.frozen]
        while len(awake) < self.options.workers:
            awake.append(self.start("work"))
            self.workers.append(awake[-1])

    def awake(self) -> list[subprocess.Popen[bytes]]:
        """The workers that can be struck."""
        return [process for process in self.workers if process.pid not in self.frozen and process.poll() is None]

    def keep_producing(self) -> bool:
        """Have a producer in place of one that was killed. Whether it has given everything."""
        if self.producer is None or self.producer.poll() not in {None, 0}:
            self.producer = self.start("produce")
        return self.producer.poll() == 0

    def end(self) -> None:
        """Kill whatever still runs."""
        self.thaw(everybody=True)
        for process in [*self.workers, self.producer]:
            if process is not None:
                process.kill()
                process.wait()


def storm(options: Options, say: Callable[[str], None] = lambda _line: None) -> Verdict:
    """Run the storm in a folder of its own, and judge what became of every task."""
    with tempfile.TemporaryDirectory(prefix="chaos") as folder:
        place = _place(options, Path(folder))
        try:
            return anyio.run(_storm, _Storm(options, Path(folder), place), say)
        finally:
            place.close()


def _place(options: Options, folder: Path) -> Place:
    if options.store == "sqlite":
        return SQLitePlace(folder, QUEUE)
    if options.store != "redis":
        raise ValueError(f"--store {options.store}: give sqlite or redis")
    from chaos._redis_place import RedisPlace  # noqa: PLC0415 - a file needs none of it

    return RedisPlace(QUEUE, fsync=options.fsync, outage=options.outage, replicas=options.replicas)


async def _storm(state: _Storm, say: Callable[[str], None]) -> Verdict:
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


async def _rage(state: _Storm, store: Store, say: Callable[[str], None]) -> None:
    """Strike, and replace the dead, until all tasks are through."""
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
                await anyio.to_thread.run_sync(_strike_somebody, state, random)
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
    except StoreUnavailable:  # in trouble, as it is to be
        return None


def _open(size: Size) -> int:
    return size.pending + size.scheduled + size.in_flight + size.parked


async def _find_the_deaf(state: _Storm, ledger: Ledger) -> list[int]:
    """Give every worker more than the others could take, and see who takes nothing."""
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


def _strike_somebody(state: _Storm, random: Random) -> None:
    kinds = {"kill worker": 6, "freeze worker": 3, "kill producer": 1, **state.place.kinds}
    kind = random.choices(list(kinds), list(kinds.values()))[0]
    if kind == "kill producer":
        if state.producer is not None and state.producer.poll() is None:
            state.strike(state.producer, kind)
    elif kind in state.place.kinds:
        if state.place.strike(kind, random):
            state.faults.append(Fault(time.time(), 0, kind))
    elif awake := state.awake():
        state.strike(random.choice(awake), kind)
