"""The command: choose families or rows by name, loops, rounds and seconds."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import platform
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from bench._harness import Aim, Result, Rivals, print_head, print_row, race

FAMILIES = (
    "tell",
    "ask",
    "ping_pong",
    "fan_out",
    "spawn",
    "channels",
    "select",
    "coordination",
    "limiters",
    "pools",
    "tasks",
    "redis_actors",
    "redis_client",
    "redis_limiters",
    "redis_locks",
    "redis_queues",
    "memory",
    "scale",
)
LOOPS = ("asyncio", "uvloop", "trio")

# The aims of families whose own files have only the workloads.
AIMS = {
    "channel cap 0": Aim("aiochan", 1.2, trio=0.65),
    "channel cap 100": Aim("aiochan", 2.1, absent=True, why="a million"),
    "select over 4, cap 0": Aim("aiochan", 1.8, trio=1),
    "select over 4, cap 100": Aim("aiochan", 2),
    "select over 4, sleeping each time": Aim("aiochan", 1.7, trio=1),
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Cuelight beside its peers.")
    parser.add_argument("names", nargs="*", help=f"families ({', '.join(FAMILIES)}) or parts of names of rows")
    parser.add_argument("--loop", choices=(*LOOPS, "all"), default="asyncio")
    parser.add_argument("--rounds", type=int, default=5, help="how often each rival has its turn (default 5)")
    parser.add_argument("--seconds", type=float, default=0.5, help="how long a turn lasts (default 0.5)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the results to a file, too")
    parser.add_argument(
        "--aof", choices=("no", "everysec", "always"), default="no", help="of the server of redis_queues"
    )
    parser.add_argument("--no-pin", action="store_true", help="do not keep the process on one core")
    return parser.parse_args()


def _pin() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def _rows(module: ModuleType, loop: str) -> Iterator[tuple[str, Rivals]]:
    on_trio = getattr(module, "TRIO_WORKLOADS", {}) if loop == "trio" else {}
    workloads = module.workloads(loop) if hasattr(module, "workloads") else getattr(module, "WORKLOADS", {})
    for name, rivals in workloads.items():
        yield name, {**rivals, **on_trio.get(name, {})}


def _chosen(names: list[str], family: str, row: str) -> bool:
    return not names or family in names or any(name not in FAMILIES and name in row for name in names)


def _family(family: str, loop: str, given: argparse.Namespace) -> Iterator[Result]:
    module = importlib.import_module(f"bench.{family}")
    aims = {**AIMS, **getattr(module, "AIMS", {})}
    for name, rivals in _rows(module, loop):
        if _chosen(given.names, family, name):
            result = Result(family, name, loop)
            yield race(result, rivals, aims.get(name), rounds=given.rounds, seconds=given.seconds)
    for name, measure in getattr(module, "MEASURES", {}).items():
        if _chosen(given.names, family, name):
            yield measure(name, loop)


def main() -> int:
    given = _arguments()
    if not given.no_pin:
        _pin()
    os.environ["BENCH_AOF"] = given.aof
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that started processes are ended
    logging.disable(logging.ERROR)
    results: list[Result] = []
    for loop in LOOPS if given.loop == "all" else (given.loop,):
        print_head(f"{loop}, Python {platform.python_version()}, median of {given.rounds} rounds, per second")
        for family in FAMILIES:
            for result in _family(family, loop, given):
                print_row(result)
                results.append(result)
    if given.json is not None:
        given.json.write_text(json.dumps([result.as_dict() for result in results], indent=1), encoding="utf-8")
    if not results:
        print("nothing has that name", file=sys.stderr)
    return 1 if not results or any(result.failures for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
