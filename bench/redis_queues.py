"""Queues over Redis, each in its own processes: sending tasks, draining by one worker, and the delay of an idle worker.

The 100 producers are tasks of one event loop, for the libraries that have async producers.

The server has its own core, and the measured process another. The data is in memory only, or `--aof everysec`. Each
library runs with its defaults, except for the number of concurrent tasks, and logs only warnings and errors. Each run
checks, after the worker has been asked to end, that it ran each task exactly once.
"""

from __future__ import annotations

import atexit
import functools
import os
import statistics
from collections import Counter
from collections.abc import Callable

from bench._harness import Aim, Result, Rivals, Workload, reason
from bench.queues._peers import ENQUEUING, FAST, Peer
from bench.queues._program import RAN
from bench.queues._rig import RedisServer, Rig, cores, pin

SAMPLES, PAUSE = 200, 0.02
COUNTED = 2000

AOF = "BENCH_AOF"
"""The environment variable for the value of `--aof`."""


@functools.cache
def server() -> RedisServer:
    """The server for all rows: Valkey."""
    aof = os.environ.get(AOF, "no")
    options = () if aof == "no" else ("--appendonly", "yes", "--appendfsync", aof)
    made = RedisServer(*options)
    made.start()
    assert made.process is not None
    pin(made.process.pid, cores()[0])
    atexit.register(made.remove)
    return made


def enqueue(peer: Peer, role: str, loop: str) -> Workload:
    """One producer sends tasks."""

    def run(n: int) -> float:
        with Rig(peer, server(), loop=loop) as rig:
            seconds: float = rig.produce(role, count=n)
            return seconds

    return run


def drain(peer: Peer, loop: str) -> Workload:
    """One worker process runs queued tasks; the time is from the start of the first task to that of the last one."""

    def run(n: int) -> float:
        with Rig(peer, server(), loop=loop) as rig:
            return drained(rig, n)

    return run


def drained(rig: Rig, n: int) -> float:
    """The seconds for `n` tasks, after a check that each ran exactly once."""
    rig.produce("enqueue_many" if rig.peer.many else "enqueue", count=n)
    rig.forget_commands()
    worker = rig.start("work")
    rig.wait_for(n, worker)
    rig.end(worker)
    records = rig.records()
    check(rig.peer, [record.item for record in records], n)
    return (records[-1].at - records[0].at) * n / (n - 1)


def check(peer: Peer, items: list[int], n: int) -> None:
    """Check that each task ran exactly once."""
    times = Counter(items)
    wrong = {item: times[item] for item in range(n) if times[item] != 1}
    if wrong or len(times) != n:
        raise AssertionError(f"{peer.label}: of {n} tasks, these did not run once: {dict(list(wrong.items())[:5])}")


def delays(peer: Peer, loop: str) -> list[float]:
    """Seconds from just before a task is sent to its start in an idle worker, sorted."""
    with Rig(peer, server(), loop=loop, pinned=False) as rig:
        rig.produce("enqueue", count=1)
        worker = rig.start("work")
        rig.wait_for(1, worker)
        rig.journal.write_bytes(b"")
        sent = rig.produce("trickle", count=SAMPLES, pause=PAUSE)
        rig.wait_for(SAMPLES, worker)
        rig.end(worker)
        started = {record.item: record.at for record in rig.records() if record.what == RAN}
        check(peer, [record.item for record in rig.records()], SAMPLES)
    return sorted(started[item] - at for item, at in enumerate(sent))


@functools.cache
def all_delays(loop: str) -> tuple[dict[str, list[float]], dict[str, str]]:
    """The delays of all peers, and the failures."""
    return _each(lambda peer: delays(peer, loop))


def idle(name: str, loop: str) -> Result:
    """Two rows from one measurement."""
    found, failures = all_delays(loop)
    result = Result("redis_queues", name, loop, unit="s", failures=failures)
    for label, seconds in found.items():
        result.figures[label] = seconds[len(seconds) * 99 // 100] if "p99" in name else statistics.median(seconds)
    result.compare()
    ours, huey = (result.figures.get(label) for label in ("cuelight", "huey 100 threads"))
    if "p50" in name and ours and huey:
        result.aim, result.aim_ratio = "0.9 x huey 100 threads", huey / ours
        result.met = result.aim_ratio >= 0.9
    return result


def commands(name: str, loop: str) -> Result:
    """Commands that the server ran for each drained task, including those in scripts."""

    def count(peer: Peer) -> float:
        with Rig(peer, server(), loop=loop) as rig:
            drained(rig, COUNTED)
            return sum(rig.commands().values()) / COUNTED

    figures, failures = _each(count)
    result = Result("redis_queues", name, loop, unit="", figures=figures, failures=failures)
    result.compare()
    return result


def _each(measure: Callable[[Peer], object]) -> tuple[dict, dict[str, str]]:
    figures, failures = {}, {}
    for peer in FAST:
        try:
            figures[peer.label] = measure(peer)
        except ImportError as error:
            failures[peer.label] = f"not installed: {error.name}"
        except Exception as error:
            failures[peer.label] = reason(error)
    return figures, failures


def workloads(loop: str) -> dict[str, Rivals]:
    """The rows that are races."""
    return {
        "Redis queue, enqueue one by one": {peer.label: enqueue(peer, "enqueue", loop) for peer in ENQUEUING},
        "Redis queue, enqueue, 100 producers": {
            peer.label: enqueue(peer, "enqueue_at_once", loop) for peer in ENQUEUING if not peer.threads
        },
        "Redis queue, enqueue in batches of 100": {
            **{peer.label: enqueue(peer, "enqueue_many", loop) for peer in ENQUEUING if peer.many},
        },
        "Redis queue, drained by one worker": {peer.label: drain(peer, loop) for peer in FAST},
    }


MEASURES = {
    "Redis queue, idle worker, p50": idle,
    "Redis queue, idle worker, p99": idle,
    "Redis queue, commands per task drained": commands,
}

AIMS = {
    "Redis queue, enqueue one by one": Aim("dramatiq 100 threads", 0.8),
    "Redis queue, enqueue in batches of 100": Aim("BullMQ", 2.3),
    "Redis queue, drained by one worker": Aim("dramatiq 100 threads", 3.3),
}
