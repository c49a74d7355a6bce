"""Losses of queues over Redis: `python -m bench.kill9`, or `make kill9`.

Each queue gets twenty tasks of three seconds, runs ten at once, and has its defaults in everything else. Each queue has
its own server. One second after ten tasks have begun, one of these faults happens:

* `worker`: the worker is killed (`kill -9`), and a new one starts a second later.
* `zombie`: the worker is stopped (SIGSTOP), and a new one starts a second later. The first continues when the new one
  has begun all tasks of the first, or after half of the cap.
* `server`: the server is killed (its data is in an AOF that is synced every second) and comes back three seconds later;
  the worker is not touched.

A task is done when its function has ended. `again after` is the number of seconds from the fault to the next start of
interrupted tasks. `twice` counts tasks whose function ended more than once. `stuck` counts tasks that were not done
`--cap` seconds (60 by default) after the fault, plus the time of one more task: they are lost, or run later. With
`zombie`, a note says how many of its tasks the first worker ended although another worker had them too, and how many
it broke off.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from bench._harness import reason
from bench.queues._peers import SAFE, Peer
from bench.queues._program import BEGAN, BROKEN_OFF, ENDED, STEP, STEPS, Record
from bench.queues._rig import RedisServer, Rig, kill, over, signal_all, until

TASKS, AT_ONCE = 20, 10
OUTAGE = 3.0
STARTING = 60.0
"""Seconds that workers have to begin: many start at the same time here."""

AOF = ("--appendonly", "yes", "--appendfsync", "everysec")


@dataclass
class Outcome:
    """The outcome for the tasks of one queue."""

    peer: Peer
    done: int = 0
    stuck: int = 0
    twice: int = 0
    caught: int = 0
    again: list[float] = field(default_factory=list)
    seconds: float = 0
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        again = f"{min(self.again):.0f}-{max(self.again):.0f} s" if self.again else "-"
        caught = f"{len(self.again)} of {self.caught}"
        return (
            f"{self.peer.label:<18} {self.done:>3} of {TASKS} {self.stuck:>6} {self.twice:>6} {caught:>9} {again:>11} "
            f"{self.seconds:>6.0f} s  {', '.join(self.notes)}"
        ).rstrip()


HEAD = f"{'':<18} {'done':>9} {'stuck':>6} {'twice':>6} {'run again':>9} {'again after':>11} {'took':>8}"


def began(records: list[Record], process: set[int] | None = None) -> set[int]:
    """The tasks that have begun, in any process or in the given ones."""
    return {r.item for r in records if r.what == BEGAN and (process is None or r.process in process)}


def ended(records: list[Record]) -> Counter[int]:
    """The number of times that each task ended."""
    return Counter(record.item for record in records if record.what == ENDED)


def begin(rig: Rig) -> subprocess.Popen[str]:
    """Start a worker that is in the middle of ten tasks.

    Raises:
        RuntimeError: the worker did not begin them.
    """
    rig.produce("enqueue_slow", count=TASKS)
    worker = rig.start("work")
    if not until(lambda: len(began(rig.records())) >= AT_ONCE or worker.poll() is not None, STARTING):
        raise RuntimeError(f"only {len(began(rig.records()))} tasks began: {rig.log()}")
    if worker.poll() is not None:
        raise RuntimeError(f"the worker ended: {rig.log()}")
    time.sleep(1)
    return worker


def finish(rig: Rig, outcome: Outcome, at: float, cap: float, also: Callable[[], bool] = lambda: True) -> None:
    """Wait until all tasks are done or the cap is reached, and count."""
    until(lambda: len(ended(rig.records())) == TASKS and also(), max(0.0, at + cap - time.monotonic()))
    outcome.seconds = time.monotonic() - at
    time.sleep(STEPS * STEP + 1.5)  # tasks that are still running, or running again, come to their end
    records = rig.records()
    caught = began([r for r in records if r.at < at]) - set(ended([r for r in records if r.at < at]))
    outcome.caught = len(caught)
    first = {r.item: r.at for r in reversed(records) if r.what == BEGAN and r.at > at}
    outcome.again = [first[item] - at for item in caught if item in first]
    counts = ended(records)
    outcome.done, outcome.stuck = len(counts), TASKS - len(counts)
    outcome.twice = sum(times > 1 for times in counts.values())


def kill_worker(peer: Peer, cap: float) -> Outcome:
    outcome = Outcome(peer)
    with RedisServer() as server, Rig(peer, server, pinned=False) as rig:
        worker = begin(rig)
        kill(worker)
        at = time.monotonic()
        time.sleep(1)
        rig.start("work")
        finish(rig, outcome, at, cap)
    return outcome


def make_zombie(peer: Peer, cap: float) -> Outcome:
    outcome = Outcome(peer)
    with RedisServer() as server, Rig(peer, server, pinned=False) as rig:
        worker = begin(rig)
        signal_all(worker, signal.SIGSTOP)
        at = time.monotonic()
        records = rig.records()
        of_zombie = {record.process for record in records}
        had = began(records) - set(ended(records))
        time.sleep(1)
        rig.start("work")
        taken = until(lambda: had <= began([r for r in rig.records() if r.at > at]), cap / 2)
        awake = time.monotonic()
        signal_all(worker, signal.SIGCONT)

        def settled() -> bool:
            return had <= {r.item for r in of_zombie_since(rig, of_zombie, awake) if r.what in {ENDED, BROKEN_OFF}}

        finish(rig, outcome, at, cap, settled)
        since = of_zombie_since(rig, of_zombie, awake)
        carried, broken = (len(had & {r.item for r in since if r.what == what}) for what in (ENDED, BROKEN_OFF))
        outcome.notes.append(f"the zombie ended {carried} and broke off {broken} of its {len(had)}")
        if not taken:
            outcome.notes.append("woken before others had them")
    return outcome


def of_zombie_since(rig: Rig, processes: set[int], since: float) -> list[Record]:
    return [record for record in rig.records() if record.process in processes and record.at >= since]


def kill_server(peer: Peer, cap: float) -> Outcome:
    outcome = Outcome(peer)
    with RedisServer(*AOF) as server, Rig(peer, server, pinned=False) as rig:
        worker = begin(rig)
        server.kill()
        at = time.monotonic()
        time.sleep(OUTAGE)
        server.start()
        finish(rig, outcome, at, cap)
        if worker.poll() is not None:
            outcome.notes.append(f"the worker ended with {worker.returncode}")
    return outcome


FAULTS = {"worker": kill_worker, "zombie": make_zombie, "server": kill_server}


def attempt(fault: str, peer: Peer, cap: float) -> Outcome | str:
    """Return the outcome, or a line about a failure, so that the other queues continue."""
    try:
        return FAULTS[fault](peer, cap)
    except ModuleNotFoundError as error:
        return f"{peer.label:<18} not installed: {error.name}"
    except Exception as error:
        said = reason(error).split()
        return f"{peer.label:<18} {' '.join(said[:12])} ... {' '.join(said[-20:])}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.kill9", description="What queues over Redis lose.")
    parser.add_argument("peers", nargs="*", help="parts of names of queues; all if none is given")
    parser.add_argument("--fault", choices=(*FAULTS, "all"), default="all")
    parser.add_argument("--cap", type=float, default=60.0, help="seconds after a fault (default 60; some need 400)")
    parser.add_argument("--at-once", type=int, default=5, help="queues at a time (default 5)")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that started processes are ended
    peers = [peer for peer in SAFE if not given.peers or any(name in peer.label for name in given.peers)]
    failed = not peers
    for fault in FAULTS if given.fault == "all" else (given.fault,):
        print(f"\n{fault}, within {given.cap:g} s\n{HEAD}", flush=True)
        with ThreadPoolExecutor(given.at_once) as threads:
            try:
                for outcome in threads.map(lambda peer, fault=fault: attempt(fault, peer, given.cap), peers):
                    print(outcome, flush=True)
                    failed |= isinstance(outcome, str)
            except BaseException:
                over.set()  # the threads end their processes
                raise
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
