"""A server, a journal, and the processes of one queue that use them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from bench.queues._peers import ROOT, Peer
from bench.queues._program import LINE, Record, Settings, read_journal

sys.path.append(str(ROOT / "tests"))  # at the end, where it hides nothing
from helpers.redis_servers import RedisServer

PATIENCE = 60.0
"""Seconds without progress after which a run is given up."""

ENDING = 15.0
"""Seconds that a worker has to end after being asked to."""


def cores() -> tuple[set[int], set[int]]:
    """One core for the server and one for everything else; the same core if there is only one."""
    having = sorted(range(os.cpu_count() or 1))
    return {having[0]}, {having[-1]}


def pin(process: int, where: set[int]) -> None:
    """Keep a process and its children on these cores, so that rounds are comparable."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(process, where)


__all__ = ["RedisServer", "Rig", "cores", "kill", "over", "pin", "signal_all", "until"]


class Rig:
    """One queue on a server. A context manager: leaving it ends all processes that it started.

    Args:
        peer: the queue.
        server: a running server, which is emptied.
        loop: asyncio, uvloop or trio, for libraries that offer the choice.
        pinned: whether the processes keep to one core, which is not the server's.
    """

    def __init__(self, peer: Peer, server: RedisServer, *, loop: str = "asyncio", pinned: bool = True) -> None:
        self.peer, self.server, self.loop, self.pinned = peer, server, loop, pinned
        self.folder = Path(tempfile.mkdtemp(prefix="bench-queue-"))
        self.journal = self.folder / "journal"
        self.journal.touch()
        self._processes: list[subprocess.Popen[str]] = []
        server.command("FLUSHALL")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            kill(process)
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, role: str, **settings: Any) -> subprocess.Popen[str]:
        what = Settings(
            url=self.server.url,
            journal=str(self.journal),
            loop="asyncio" if self.loop == "trio" and not self.peer.trio else self.loop,
            variant=self.peer.variant,
            concurrency=self.peer.concurrency,
            **settings,
        )
        process = subprocess.Popen(
            [self.peer.python, "-m", "bench.queues", self.peer.program, role],
            cwd=ROOT,
            env=os.environ | what.as_environment(),
            stdout=subprocess.PIPE if role != "work" else subprocess.DEVNULL,
            stderr=self._log.open("a"),
            text=True,
            start_new_session=True,  # so that `kill` finds its children, whatever process groups they make
        )
        self._processes.append(process)
        pin(process.pid, cores()[1] if self.pinned else cores()[0] | cores()[1])
        return process

    @property
    def _log(self) -> Path:
        return self.folder / "log"

    def log(self) -> str:
        """The end of the output of the processes."""
        return self._log.read_text("utf-8", "replace")[-1500:] if self._log.exists() else ""

    def produce(self, role: str, **settings: Any) -> Any:
        """Run a producer to its end and return its result.

        Raises:
            RuntimeError: it failed.
        """
        process = self.start(role, **settings)
        said, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(f"the producer of {self.peer.label} ended with {process.returncode}: {self.log()}")
        return json.loads(said.strip().splitlines()[-1])

    def records(self) -> list[Record]:
        """The events so far."""
        return read_journal(self.journal.read_bytes())

    def lines(self) -> int:
        """The number of events so far."""
        return self.journal.stat().st_size // LINE

    def wait_for(self, lines: int, worker: subprocess.Popen[str]) -> None:
        """Return when the journal has `lines` events.

        Raises:
            RuntimeError: the worker ended or got stuck.
        """
        seen, since = 0, time.monotonic()
        while (now := self.lines()) < lines:
            if now > seen:
                seen, since = now, time.monotonic()
            if worker.poll() is not None:
                raise RuntimeError(f"the worker ended after {now} of {lines}: {self.log()}")
            if time.monotonic() - since > PATIENCE:
                raise RuntimeError(f"the worker got stuck after {now} of {lines}: {self.log()}")
            time.sleep(0.005)

    def end(self, worker: subprocess.Popen[str]) -> None:
        """Ask a worker to end, and kill it if it does not."""
        if worker.poll() is None:
            worker.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(ENDING)
        kill(worker)

    def commands(self) -> dict[str, int]:
        """The number of calls of each command since `forget_commands`, including those in scripts."""
        with contextlib.closing(_Info(self.server)) as info:
            return info.commands()

    def forget_commands(self) -> None:
        """Reset the counts of commands."""
        self.server.command("CONFIG", "RESETSTAT")


class _Info:
    """`INFO commandstats` is longer than the amount that `RedisServer.command` reads at once."""

    def __init__(self, server: RedisServer) -> None:
        import redis

        self._client = redis.Redis.from_url(server.url)

    def close(self) -> None:
        self._client.close()

    def commands(self) -> dict[str, int]:
        stats: Any = self._client.info("commandstats")
        return {name.removeprefix("cmdstat_"): numbers["calls"] for name, numbers in stats.items()}


def session(process: subprocess.Popen[str]) -> Iterator[int]:
    """The identifiers of the live processes in the session of a session leader."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == process.pid and fields[0] != "Z":
                    yield int(entry.name)


def signal_all(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Send a signal to a process and all its children at once, as the end of a container or a machine does."""
    for one in list(session(process)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, number)


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a process and its children with `kill -9`."""
    while list(session(process)):
        signal_all(process, signal.SIGKILL)
        time.sleep(0.01)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


over = threading.Event()
"""Set when everything is cancelled."""


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Poll a condition; False if it did not hold within `seconds`.

    Raises:
        RuntimeError: everything was cancelled.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        if over.wait(0.05):
            raise RuntimeError("broken off")
    return True
