"""The run itself."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Final

import anyio

from cuelight._text import describe_error, type_name
from helpers.redis_servers import RedisServer
from soak._balance import Balance, Excess, balance, excesses
from soak._loads import Load, Loads
from soak._options import Options

__all__ = ["Verdict", "soak"]

LONG: Final = 60.0
"""Seconds from which on memory is judged."""

QUIET: Final = 2.0
"""Seconds of rest, after which nothing is in progress, and keys with a time to live of one second have expired."""


@dataclass
class Verdict:
    """The result of a run.

    Attributes:
        rounds: the rounds of each load.
        errors: the errors of loads, with their counts.
        before: the figures after the loads had warmed up.
        after: the figures at the end.
        excesses: the figures above their limits.
    """

    rounds: Counter[str] = field(default_factory=Counter[str])
    errors: Counter[str] = field(default_factory=Counter[str])
    before: Balance = field(default_factory=Balance)
    after: Balance = field(default_factory=Balance)
    excesses: list[Excess] = field(default_factory=list[Excess])

    @property
    def passed(self) -> bool:
        return not self.errors and not self.excesses


def soak(options: Options, say: Callable[[str], object] = print) -> Verdict:
    """Run all loads at once, and compare the figures before and after."""
    logging.getLogger("cuelight").setLevel(logging.CRITICAL)  # crashes are wanted
    with RedisServer() if options.redis else nullcontext() as server:
        return anyio.run(_soak, options, None if server is None else server.url, say, backend=options.backend)


async def _soak(options: Options, url: str | None, say: Callable[[str], object]) -> Verdict:
    verdict = Verdict()
    loads = Loads(options.seed)
    async with AsyncExitStack() as stack:
        await loads.begin(stack, url)
        share = options.rounds // 4 if options.rounds else 0
        await _run(loads, options, options.seconds / 4, share, verdict, say)
        verdict.before = await _count(loads)
        await _run(loads, options, options.seconds * 3 / 4, options.rounds - share, verdict, say)
        verdict.after = await _count(loads)
    long = not options.rounds and options.seconds >= LONG
    verdict.excesses = excesses(verdict.before, verdict.after, loads.limits(), long=long)
    return verdict


async def _count(loads: Loads) -> Balance:
    await anyio.sleep(QUIET)
    return await balance(loads.server, loads.kept())


async def _run(  # noqa: PLR0917 - it is called here only
    loads: Loads, options: Options, seconds: float, rounds: int, verdict: Verdict, say: Callable[[str], object]
) -> None:
    """Run each load repeatedly, for some seconds or a number of rounds."""
    ended = False

    async def repeat(name: str, load: Load) -> None:
        done = 0
        while not ended and not (options.rounds and done >= rounds):
            try:
                with anyio.fail_after(60):
                    await load()
            except Exception as error:
                kind = f"{name}: {type_name(error)}"
                if kind not in verdict.errors:
                    say(f"{name}: {describe_error(error, 300)}")
                verdict.errors[kind] += 1
                await anyio.sleep(0.01)
            verdict.rounds[name] += 1
            done += 1
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        for name, load in loads.loads.items():
            tasks.start_soon(repeat, name, load)
        if not options.rounds:
            began = anyio.current_time()
            while (left := began + seconds - anyio.current_time()) > 0:
                await anyio.sleep(min(left, options.every))
                say(_line(verdict, await balance(loads.server, loads.kept())))
            ended = True


def _line(verdict: Verdict, now: Balance) -> str:
    return (
        f"{verdict.rounds.total():>9,} rounds, {verdict.errors.total()} errors, {now.memory:.0f} MB, "
        f"{now.objects:,} objects, {now.files} files, {now.threads} threads, {now.tasks} tasks, {now.keys} keys"
    )
