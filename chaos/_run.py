"""The storm: starts the processes, kills and freezes them, and starts others in their stead until all is done."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import anyio

from chaos._ledger import Ledger
from chaos._processes import QUEUE, task_id
from chaos._verdict import Fault, Verdict, judge
from cuelight.tasks import SQLiteStore

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


@dataclass
class _Storm:
    options: Options
    folder: Path
    faults: list[Fault] = field(default_factory=list[Fault])
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list[subprocess.Popen[bytes]])
    frozen: dict[int, float] = field(default_factory=dict[int, float])  # pid: when to wake it

    def start(self, role: str) -> subprocess.Popen[bytes]:
        options = {
            "store": str(self.folder / "queue.db"),
            "ledger": str(self.folder / "ledger.txt"),
            "tasks": self.options.tasks,
            "pause": self.options.every * self.options.faults / self.options.tasks / 2,
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
            if self.file_is_locked():
                # In the midst of a commit: SQLite has everybody else wait for that process, as long as it stands still.
                kind = "freeze worker in a commit, for a moment"
                process.send_signal(signal.SIGCONT)
            else:
                self.frozen[process.pid] = at + self.options.lease * 1.3
        else:
            process.kill()
            process.wait()
        self.faults.append(Fault(at, process.pid, kind))

    def file_is_locked(self) -> bool:
        """Whether somebody is in the midst of a commit and does not get on with it."""
        with closing(sqlite3.connect(self.folder / "queue.db", timeout=0.5, isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return True
            connection.execute("ROLLBACK")
        return False

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
        awake = [process for process in self.workers if process.pid not in self.frozen]
        while len(awake) < self.options.workers:
            awake.append(self.start("work"))
            self.workers.append(awake[-1])

    def awake(self) -> list[subprocess.Popen[bytes]]:
        """The workers that can be struck."""
        return [process for process in self.workers if process.pid not in self.frozen and process.poll() is None]

    def end(self, *others: subprocess.Popen[bytes]) -> None:
        """Kill whatever still runs."""
        self.thaw(everybody=True)
        for process in [*self.workers, *others]:
            process.kill()
            process.wait()


def storm(options: Options, say: Callable[[str], None] = lambda _line: None) -> Verdict:
    """Run the storm in a folder of its own, and judge what became of every task."""
    with tempfile.TemporaryDirectory(prefix="chaos") as folder:
        return anyio.run(_storm, _Storm(options, Path(folder)), say)


async def _storm(state: _Storm, say: Callable[[str], None]) -> Verdict:
    options, random = state.options, Random(state.options.seed)
    ledger = Ledger(state.folder / "ledger.txt")
    store = SQLiteStore(state.folder / "queue.db", queue=QUEUE)
    await store.open()
    producer = state.start("produce")
    begun = next_fault = time.time()
    try:
        while time.time() - begun < options.timeout:
            await anyio.sleep(0.05)
            state.thaw()
            state.replace_the_dead()
            if producer.poll() not in {None, 0}:
                producer = state.start("produce")
            if len(state.faults) < options.faults and time.time() >= next_fault + options.every:
                next_fault = time.time() + random.uniform(-0.5, 0.5) * options.every
                _strike_somebody(state, producer, random)
            size = await store.size()
            if producer.poll() == 0 and size.completed + size.dead_letter == options.tasks and not state.frozen:
                say(f"all tasks are through after {time.time() - begun:.1f} s")
                break
        else:
            say(f"not through after {options.timeout:g} s: {await store.size()}")
    finally:
        state.end(producer)
    ids = [task_id(number) for number in range(options.tasks)]
    found = zip(ids, await store.get(ids), strict=True)
    await store.close()
    states = {name: snapshot.state for name, snapshot in found if snapshot is not None}
    return judge(ledger.events(), states, state.faults)


def _strike_somebody(state: _Storm, producer: subprocess.Popen[bytes], random: Random) -> None:
    kind = random.choices(["kill worker", "freeze worker", "kill producer"], [6, 3, 1])[0]
    if kind == "kill producer":
        if producer.poll() is None:
            state.strike(producer, kind)
    elif awake := state.awake():
        state.strike(random.choice(awake), kind)
