"""The processes of a storm: started, killed, frozen, woken and replaced."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from chaos._options import Options
from chaos._places import Place
from chaos._verdict import Fault

__all__ = ["Victims"]


@dataclass
class Victims:
    """The processes of a storm, and the place that they share.

    Attributes:
        role: the role of the workers in `chaos._processes`.
        faults: the faults so far.
    """

    options: Options
    folder: Path
    place: Place
    role: str = "work"
    faults: list[Fault] = field(default_factory=list[Fault])
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list[subprocess.Popen[bytes]])
    frozen: dict[int, float] = field(default_factory=dict[int, float])  # pid: when to wake it
    producer: subprocess.Popen[bytes] | None = None
    killed: set[int] = field(default_factory=set[int])
    exited: list[int] = field(default_factory=list[int])

    def start(self, role: str) -> subprocess.Popen[bytes]:
        options = {
            "store": self.place.address,
            **self.place.extras,
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
        """Kill or freeze a process."""
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
        """Wake the processes that were frozen long enough to lose their leases."""
        for pid, when in list(self.frozen.items()):
            if everybody or time.time() >= when:
                del self.frozen[pid]
                os.kill(pid, signal.SIGCONT)

    def replace_the_dead(self) -> None:
        """Keep the wanted number of workers awake."""
        for process in [process for process in self.workers if process.poll() is not None]:
            self.workers.remove(process)
            if process.pid not in self.killed:
                self.exited.append(process.pid)
        awake = [process for process in self.workers if process.pid not in self.frozen]
        while len(awake) < self.options.workers:
            awake.append(self.start(self.role))
            self.workers.append(awake[-1])

    def awake(self) -> list[subprocess.Popen[bytes]]:
        """The workers that can be struck."""
        return [process for process in self.workers if process.pid not in self.frozen and process.poll() is None]

    def keep_producing(self) -> bool:
        """Replace a killed producer. Returns whether it has enqueued everything."""
        if self.producer is None or self.producer.poll() not in {None, 0}:
            self.producer = self.start("produce")
        return self.producer.poll() == 0

    def end(self) -> None:
        """Kill all processes."""
        self.thaw(everybody=True)
        for process in [*self.workers, self.producer]:
            if process is not None:
                process.kill()
                process.wait()

    def strike_somebody(self, random: Random) -> None:
        """Cause a fault of a process or of the place."""
        kinds = {"kill worker": 6, "freeze worker": 3, **self.place.kinds}
        if self.producer is not None:
            kinds["kill producer"] = 1
        kind = random.choices(list(kinds), list(kinds.values()))[0]
        if kind == "kill producer":
            if self.producer is not None and self.producer.poll() is None:
                self.strike(self.producer, kind)
        elif kind in self.place.kinds:
            if self.place.strike(kind, random):
                self.faults.append(Fault(time.time(), 0, kind))
        elif awake := self.awake():
            self.strike(random.choice(awake), kind)
