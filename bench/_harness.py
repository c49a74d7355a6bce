"""Measures rivals in turn, round after round, and takes the median of the rounds.

A workload is a function of `n`, the number of operations. It may return the seconds that its measured part took, to
exclude preparations; otherwise all of it is timed. A coroutine function runs in a fresh event loop. A plain function
(for libraries with their own threads) runs without a loop.
"""

from __future__ import annotations

import gc
import inspect
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import anyio

Workload = Callable[[int], Awaitable[float | None]] | Callable[[int], float | None]
Rivals = Mapping[str, Workload]

OURS = "cuelight"
ASYNCIO_ONLY = frozenset(
    {"actio", "aiochan", "aiolimiter", "asyncio.Lock", "asyncio.Queue", "asyncio.Semaphore", "limits"}
    | {"redis-py", "redis-py in blocks"}
)
"""Peers that do not run on trio. Beside Cuelight on trio, they run on asyncio, in their own loop."""

BATCH = 1000
"""Numbers of operations are multiples of this."""


@dataclass(frozen=True)
class Aim:
    """Our goal for one row, as a multiple of a peer's figure.

    Attributes:
        peer: the peer to compare with.
        times: our goal, as a multiple of the peer's speed.
        trio: the goal on trio, if it differs.
        absent: whether the peer stands for a rival that cannot run here (BEAM, Thespian): `times` relates that rival to
            the peer on the reference machine. Such a peer is only a yardstick and always runs on asyncio.
        why: the rival that the peer stands for.
    """

    peer: str
    times: float
    trio: float | None = None
    absent: bool = False
    why: str = ""

    def on(self, loop: str) -> float:
        """The goal on this loop, as a multiple of the peer's speed."""
        return self.trio if loop == "trio" and self.trio is not None else self.times


@dataclass
class Result:
    """One row: a figure for each rival, and the comparison with ours."""

    family: str
    name: str
    loop: str
    unit: str = "/s"
    figures: dict[str, float] = field(default_factory=dict)
    spread: dict[str, tuple[float, float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    best_peer: str | None = None
    ratio: float | None = None
    aim: str | None = None
    aim_ratio: float | None = None
    met: bool | None = None

    def compare(self) -> None:
        """Find the best peer and our ratio to it."""
        less_is_more = self.unit != "/s"
        peers = {peer: figure for peer, figure in self.figures.items() if peer != OURS and figure > 0}
        ours = self.figures.get(OURS)
        if not peers or not ours:
            return
        self.best_peer = (min if less_is_more else max)(peers, key=lambda peer: peers[peer])
        best = peers[self.best_peer]
        self.ratio = best / ours if less_is_more else ours / best

    def compare_with_aim(self, aim: Aim | None) -> None:
        """Find whether the aim is met."""
        ours = self.figures.get(OURS)
        if aim is None or ours is None:
            return
        times = aim.on(self.loop)
        self.aim = f"{times:g} x {aim.peer}" + (f" ({aim.why})" if aim.why else "")
        beside = self.figures.get(_yardstick(aim, self.loop), self.figures.get(_label(aim.peer, self.loop)))
        if beside:
            self.aim_ratio = ours / beside
            self.met = self.aim_ratio >= times

    def as_dict(self) -> dict[str, Any]:
        """The row for JSON."""
        return asdict(self)


def _label(peer: str, loop: str) -> str:
    return f"{peer} (asyncio)" if loop == "trio" and peer in ASYNCIO_ONLY else peer


def _yardstick(aim: Aim, loop: str) -> str:
    """The label of an aim's peer."""
    return f"{aim.peer} (asyncio)" if aim.absent and loop == "uvloop" else _label(aim.peer, loop)


def run_in(loop: str, function: Callable[..., Awaitable[Any]], *args: object) -> Any:
    """Run a coroutine function in a fresh event loop: asyncio, uvloop or trio."""
    if loop == "uvloop":
        return anyio.run(function, *args, backend_options={"use_uvloop": True})
    return anyio.run(function, *args, backend=loop)


def once(workload: Workload, n: int, loop: str) -> float:
    """The seconds that `n` operations take."""
    gc.collect()
    if not inspect.iscoroutinefunction(workload):
        started = time.perf_counter()
        took: Any = workload(n)
        return time.perf_counter() - started if took is None else took

    async def timed() -> float:
        begun = time.perf_counter()
        measured: float | None = await workload(n)
        return time.perf_counter() - begun if measured is None else measured

    return run_in(loop, timed)


def calibrate(workload: Workload, seconds: float, loop: str) -> int:
    """The number of operations that take about `seconds`. This also warms up."""
    n = BATCH
    while True:
        took = max(once(workload, n, loop), 1e-6)
        if took >= seconds / 2:
            return max(BATCH, round(n * seconds / took / BATCH) * BATCH)
        n = max(n + BATCH, round(n * min(20, seconds / took) / BATCH) * BATCH)


@dataclass
class _Lane:
    label: str
    workload: Workload
    loop: str
    n: int = 0
    rates: list[float] = field(default_factory=list)


def _lanes(rivals: Rivals, aim: Aim | None, loop: str) -> list[_Lane]:
    lanes = [
        _Lane(_label(name, loop), workload, "asyncio" if loop == "trio" and name in ASYNCIO_ONLY else loop)
        for name, workload in rivals.items()
    ]
    if aim is not None and aim.peer in rivals and _yardstick(aim, loop) not in {lane.label for lane in lanes}:
        lanes.append(_Lane(_yardstick(aim, loop), rivals[aim.peer], "asyncio"))
    return lanes


def race(result: Result, rivals: Rivals, aim: Aim | None, *, rounds: int, seconds: float) -> Result:
    """Run the rivals one after another, `rounds` times, and fill in the result."""
    loop = result.loop
    running: list[_Lane] = []
    for lane in _lanes(rivals, aim, loop):
        try:
            lane.n = calibrate(lane.workload, seconds, lane.loop)
        except ImportError as error:
            result.failures[lane.label] = f"not installed: {error.name}"
        except Exception as error:
            result.failures[lane.label] = reason(error)
        else:
            running.append(lane)
    for _ in range(rounds):
        for lane in tuple(running):
            try:
                lane.rates.append(lane.n / once(lane.workload, lane.n, lane.loop))
            except Exception as error:
                result.failures[lane.label] = reason(error)
                running.remove(lane)
    for lane in running:
        result.figures[lane.label] = statistics.median(lane.rates)
        result.spread[lane.label] = min(lane.rates), max(lane.rates)
    result.compare()
    result.compare_with_aim(aim)
    return result


def reason(error: BaseException) -> str:
    """Describe an error in one line: the first error of a group, and its cause."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    text = f"{type(error).__name__}: {error}"
    return text if error.__cause__ is None else f"{reason(error.__cause__)}, hence {text}"


def figure(value: float, unit: str) -> str:
    """Format a figure with about three significant digits."""
    if unit == "s":
        return f"{value:.3g} s"
    if unit == "B":
        return f"{value:,.0f} B"
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}" if value < 100 * size else f"{value / size:.0f}{letter}"
    return f"{value:.3g}"


def print_row(result: Result) -> None:
    """Print one row of the table, with its failures below."""
    ours = figure(result.figures[OURS], result.unit) if OURS in result.figures else "failed"
    peers = ", ".join(f"{peer} {figure(value, result.unit)}" for peer, value in result.figures.items() if peer != OURS)
    ratio = "" if result.ratio is None else f"{result.ratio:.2f} x"
    aim = ""
    if result.aim is not None:
        verdict = {True: "met", False: "MISSED", None: "not measured"}[result.met]
        reached = "" if result.aim_ratio is None else f": {result.aim_ratio:.2f} x,"
        aim = f"{result.aim}{reached} {verdict}"
    print(f"{result.name:<44} {ours:>10} {ratio:>9}  {peers:<58} {aim}".rstrip(), flush=True)
    for rival, problem in result.failures.items():
        print(f"    {rival}: {problem[:200]}", file=sys.stderr, flush=True)


def print_head(title: str) -> None:
    """Print the head of a table."""
    print(f"\n{title}")
    print(f"{'':<44} {OURS:>10} {'best peer':>9}  {'peers':<58} aim", flush=True)
