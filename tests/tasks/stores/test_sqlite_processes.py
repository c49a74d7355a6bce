"""Real processes on one SQLite file, which are killed without warning."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random

import anyio
import pytest

import helpers
from cuelight.tasks import Claim, Query, Record, SQLiteStore

PROGRAM = Path(helpers.__file__).with_name("store_process.py")


class WorkerProcesses:
    """Worker processes, each with a name and a log of its own."""

    def __init__(self, path: Path) -> None:
        self.path, self.number = path, 0
        self.processes: list[subprocess.Popen[bytes]] = []
        self.logs: list[Path] = []

    def start(self) -> None:
        self.number += 1
        name = f"w{self.number}"
        self.logs.append(self.path.with_name(f"{name}.log"))
        command = [sys.executable, str(PROGRAM), str(self.path), name, str(self.logs[-1])]
        self.processes.append(subprocess.Popen(command, start_new_session=True))

    def kill(self, index: int) -> None:
        process = self.processes.pop(index)
        del self.logs[index]
        process.send_signal(signal.SIGKILL)
        process.wait(10)

    def stop_at_work(self, index: int) -> bool:
        """Have it stand still, if it was given something that it has not written down as done; else let it go on."""
        process = self.processes[index]
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        log = self.logs[index].read_text() if self.logs[index].exists() else ""
        if log.count("given ") > log.count("done "):
            return True
        process.send_signal(signal.SIGCONT)
        return False

    def stop_all(self) -> None:
        while self.processes:
            self.kill(0)

    def lines(self, what: str) -> Counter[tuple[str, str]]:
        """(id, epoch) of what all were given, or have done."""
        found: Counter[tuple[str, str]] = Counter()
        for log in self.path.parent.glob("*.log"):
            for line in log.read_text().splitlines():
                kind, task_id, epoch = line.split()
                found[task_id, epoch] += kind == what
        return +found


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # the processes are what is tested here


async def test_processes_that_are_killed_lose_nothing_and_share_nothing(tmp_path: Path, stress: bool) -> None:
    store, workers, random = (
        SQLiteStore(tmp_path / "tasks.db", synchronous="OFF"),
        WorkerProcesses(tmp_path / "tasks.db"),
        Random(7),
    )
    await store.open()
    acknowledged: list[str] = []
    for _ in range(3):
        workers.start()
    try:
        with anyio.fail_after(120 if stress else 50):
            for round_ in range(40 if stress else 6):
                victim, batch = random.randrange(len(workers.processes)), 0
                while batch < 5 or not workers.stop_at_work(victim):
                    batch += 1
                    ids = [f"{round_}-{batch}-{number}" for number in range(20)]
                    await store.add([Record(id=one, type="t", max_crashes=99) for one in ids])
                    acknowledged += ids
                    await anyio.sleep(random.uniform(0.001, 0.02))
                workers.kill(victim)
                workers.start()
            while (size := await store.size()).completed < len(acknowledged):
                assert size.dead_letter == 0
                await store.changed(store.version(), 1.0)
    finally:
        workers.stop_all()
    given, done = workers.lines("given"), workers.lines("done")
    assert max(given.values()) == 1, "somebody was given what another had"
    assert max(Counter(task_id for task_id, _ in done).values()) == 1, "two attempts of one task were accepted"
    completed = await _all(store)
    assert sorted(completed) == sorted(acknowledged)
    assert not set(done) - set(given)
    assert len(given) > len(done), "nobody was killed at work"
    await store.close()


async def _all(store: SQLiteStore) -> list[str]:
    found: list[str] = []
    after = 0
    while page := await store.find(Query(state="completed", after=after, limit=500)):
        found += [there.record.id for there in page]
        after = page[-1].sequence
    return found


async def test_a_process_that_is_killed_while_it_writes_leaves_the_file_whole(tmp_path: Path) -> None:
    program = """
import sys, anyio
from cuelight.tasks import Record, SQLiteStore

async def main():
    store = SQLiteStore(sys.argv[1], synchronous="OFF")
    await store.open()
    for batch in range(10**6):
        names = [f"{batch}-{number}" for number in range(9)]
        await store.add([Record(id=name, type="t", payload=bytes(500), unique=name) for name in names])
        sys.stdout.write(f"{batch}\\n")
        sys.stdout.flush()

anyio.run(main)
"""
    path = tmp_path / "tasks.db"
    acknowledged = _run_and_kill(program, path)
    store = SQLiteStore(path)
    await store.open()
    assert store._writer is not None
    assert store._writer._connection is not None
    assert store._writer._connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    pending = (await store.size()).pending
    assert pending % 9 == 0
    assert pending // 9 in (acknowledged + 1, acknowledged + 2)
    (lease,) = (await store.exchange([], Claim("w", "1", 1, 15.0))).leases
    assert lease.record.id == "0-0"
    await store.close()


def _run_and_kill(program: str, path: Path) -> int:
    """The last batch that the program knew to be written."""
    process = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    until, seen = 0.0, [-1]
    for line in process.stdout:
        seen.append(int(line))
        until = until or time.monotonic() + 0.4
        if time.monotonic() > until:
            break
    os.kill(process.pid, signal.SIGKILL)
    seen += map(int, process.stdout.read().split())
    process.wait(10)
    process.stdout.close()
    return seen[-1]
