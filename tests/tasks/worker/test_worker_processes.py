"""Workers in processes of their own, over one SQLite file: killed, stopped, blocked and ended by signals."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from cuelight.tasks import Snapshot, SQLiteStore, Task, TaskQueue

WORKER = """
import os, sys, time
import anyio
from cuelight import run
from cuelight.tasks import SQLiteStore, TaskQueue, TaskWorker

folder, backend, name, how, lease = sys.argv[1:6]

def note(what, task_id):
    with open(f"{folder}/log", "a") as log:
        log.write(f"{time.time()} {name} {what} {task_id}\\n")

async def work(task):
    note("began", task.task_id)
    end = "cut"
    try:
        if how == "blocking":
            time.sleep(3.5)
        else:
            with anyio.CancelScope(shield=how == "stubborn"):
                await anyio.sleep({"slow": 30, "stubborn": 3, "quick": 0.05, "medium": 1.0}[how])
        end = "ended"
    finally:
        note(end, task.task_id)
    return name

async def main(system):
    queue = TaskQueue(SQLiteStore(f"{folder}/queue.db"), system=system)
    note("up", "-")
    await TaskWorker(queue, handler=work, worker_id=name, concurrency=5, lease=float(lease), shutdown_timeout=10).run()

run(main, backend=backend, shutdown_timeout=20)
note("down", "-")
"""


class Site:
    """A folder with the queue, the log that all processes write, and the processes."""

    def __init__(self, folder: Path, backend: str) -> None:
        self.folder, self.backend = folder, backend
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, name: str, how: str, lease: float = 1.0) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", WORKER, str(self.folder), self.backend, name, how, str(lease)],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def log(self, name: str | None = None, what: str | None = None) -> list[tuple[float, str, str, str]]:
        path = self.folder / "log"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [
            (float(at), who, did, task_id)
            for at, who, did, task_id in lines
            if (name is None or who == name) and (what is None or did == what)
        ]

    def wait(self, ready: Callable[[], Any], seconds: float = 15.0) -> None:
        """Until other processes have done something: there is nothing but to look again."""
        end = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < end, self.log()
            time.sleep(0.01)

    def stop_process(self, process: subprocess.Popen[str]) -> None:
        """Stop a process between two transactions: the lock of one would keep everybody from the file."""
        while True:
            process.send_signal(signal.SIGSTOP)
            with closing(sqlite3.connect(self.folder / "queue.db", timeout=0.5, isolation_level=None)) as database:
                try:
                    database.execute("BEGIN IMMEDIATE")
                except sqlite3.OperationalError:
                    process.send_signal(signal.SIGCONT)
                    continue
                database.execute("ROLLBACK")
                return

    def ask(self, work: Callable[[TaskQueue], Any]) -> Any:
        async def asked() -> Any:
            async with TaskQueue(SQLiteStore(self.folder / "queue.db")) as queue:
                return await work(queue)

        return anyio.run(asked)

    def give(self, count: int, **fields: Any) -> list[str]:
        tasks = [Task(task_type="work", **fields) for _ in range(count)]

        async def give(queue: TaskQueue) -> None:
            assert all(await queue.enqueue_many(tasks))

        self.ask(give)
        return [task.task_id for task in tasks]

    def look(self, task_ids: list[str]) -> list[Snapshot]:
        async def look(queue: TaskQueue) -> list[Snapshot | None]:
            return await queue.store.get(task_ids)

        found: list[Snapshot] = self.ask(look)
        return found

    def until_completed(self, task_ids: list[str]) -> list[Snapshot]:
        async def completed(queue: TaskQueue) -> None:
            with anyio.fail_after(15):
                for task_id in task_ids:
                    await queue.handle(task_id).result()

        self.ask(completed)
        return self.look(task_ids)


@contextmanager
def open_site(folder: Path, backend: str) -> Generator[Site]:
    site = Site(folder, backend)
    try:
        yield site
    finally:
        for process in site.processes:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGCONT)
                process.kill()
            process.communicate()


@pytest.fixture(params=["asyncio", "trio"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with open_site(tmp_path, request.param) as site:
        yield site


def test_what_a_worker_ran_that_was_killed_runs_elsewhere_within_its_lease(site: Site) -> None:
    task_ids = site.give(8)
    first = site.start("first", "slow")
    site.wait(lambda: len(site.log("first", "began")) == 5)
    site.start("second", "quick")
    site.wait(lambda: site.log("second", "up"))
    killed = time.time()
    first.kill()
    kept = site.until_completed(task_ids)
    orphans = {task_id for *_, task_id in site.log("first", "began")}
    reruns = [at - killed for at, _, _, task_id in site.log("second", "began") if task_id in orphans]
    assert len(reruns) == 5
    assert max(reruns) < 1.0 + 1.0
    assert [snapshot.counts.crashes for snapshot in kept if snapshot.record.id in orphans] == [1] * 5
    assert len(site.log(what="ended")) == 8


@pytest.mark.parametrize("how", ["slow", "stubborn"])
def test_a_worker_that_was_stopped_past_its_lease_is_cut_off_and_counts_no_more(site: Site, how: str) -> None:
    [task_id] = site.give(1)
    first = site.start("first", how, lease=2.0)
    site.wait(lambda: site.log("first", "began"))
    site.stop_process(first)
    site.start("second", "medium", lease=2.0)  # renewed also when this machine is busy
    site.wait(lambda: site.log("second", "began"))
    woken = time.time()
    first.send_signal(signal.SIGCONT)
    [kept] = site.until_completed([task_id])
    assert kept.worker == "second"
    assert kept.counts.crashes == 1
    site.wait(lambda: site.log("first", "cut") or site.log("first", "ended"))
    if how == "slow":
        assert site.log("first", "cut")[0][0] - woken < 1.0
        assert not site.log("first", "ended")
    first.terminate()
    _, errors = first.communicate(timeout=15)
    assert "lease_lost" in errors
    assert site.look([task_id])[0].worker == "second"


def test_a_loop_that_is_blocked_for_three_leases_keeps_its_tasks(site: Site) -> None:
    task_ids = site.give(1)
    first = site.start("first", "blocking")
    site.wait(lambda: site.log("first", "began"))
    site.start("second", "quick")
    [kept] = site.until_completed(task_ids)
    assert (kept.worker, kept.counts.crashes) == ("first", 0)
    assert len(site.log(what="began")) == 1
    first.terminate()
    _, errors = first.communicate(timeout=15)
    assert "the event loop of first has been blocked" in errors
    assert "time.sleep(3.5)" in errors or "in work" in errors


def test_a_task_is_cancelled_from_another_process_within_a_second(site: Site) -> None:
    [task_id] = site.give(1)
    site.start("first", "slow")
    site.wait(lambda: site.log("first", "began"))

    async def cancel(queue: TaskQueue) -> str:
        return await queue.cancel(task_id)

    asked = time.time()
    assert site.ask(cancel) == "cancelling"
    site.wait(lambda: site.log("first", "cut"))
    assert site.log("first", "cut")[0][0] - asked < 1.0
    site.wait(lambda: site.look([task_id])[0].state == "cancelled")


def test_sigterm_lets_what_runs_end_and_gives_the_rest_back(site: Site) -> None:
    task_ids = site.give(8)
    first = site.start("first", "medium")
    site.wait(lambda: len(site.log("first", "began")) == 5)
    first.send_signal(signal.SIGTERM)
    _, errors = first.communicate(timeout=15)
    assert (first.returncode, errors) == (0, "")
    states = [snapshot.state for snapshot in site.look(task_ids)]
    assert (states.count("completed"), states.count("pending")) == (5, 3)
    assert len(site.log(what="ended")) == 5
    assert site.log("first", "down")
