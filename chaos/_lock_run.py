"""The storm over a lock: faults in its holders and its server, and a check of holders and writes afterwards.

A holder records when it got the lock, until when it certainly held it, and its fence. It also sets a fenced value on
another server, which has no faults.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import anyio

from chaos._ledger import Event, Ledger
from chaos._options import Options
from chaos._redis_place import RedisPlace
from chaos._verdict import Trouble
from chaos._victims import Victims
from helpers.redis_servers import RedisServer

__all__ = ["LockVerdict", "judge_holders", "lock_storm"]


@dataclass
class LockVerdict:
    """The result of a storm over a lock.

    Attributes:
        grants: the number of acquisitions.
        losses: the number of losses that were reported to holders.
        writes: the number of fenced writes.
        stale: the number of writes rejected because of a greater fence.
        fences_twice: fences that two holders had.
        overlaps: pairs of fences whose holders both certainly held the lock at the same time.
        forgotten: such pairs of which the server had forgotten the first.
        faults: the number of faults of each kind.
        exited: processes that ended by themselves.
        deaf: processes that lived at the end and never got the lock again.
    """

    grants: int = 0
    losses: int = 0
    writes: int = 0
    stale: int = 0
    fences_twice: list[int] = field(default_factory=list[int])
    overlaps: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    forgotten: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    faults: Counter[str] = field(default_factory=Counter[str])
    exited: list[int] = field(default_factory=list[int])
    deaf: list[int] = field(default_factory=list[int])

    @property
    def passed(self) -> bool:
        """Whether the lock was exclusive and every process continued to work."""
        return not (self.fences_twice or self.overlaps or self.exited or self.deaf)


def judge_holders(events: Iterable[Event], troubles: Sequence[Trouble] = ()) -> LockVerdict:
    """Compare the records of holders. A holder certainly held the lock from its "got" to its last "sure"."""
    verdict = LockVerdict()
    got: dict[int, Event] = {}
    sure: defaultdict[int, float] = defaultdict(float)
    for event in events:
        if event.what == "got":
            verdict.grants += 1
            if event.epoch in got:
                verdict.fences_twice.append(event.epoch)
            got[event.epoch] = event
        elif event.what == "sure":
            sure[event.epoch] = max(sure[event.epoch], event.at)
        elif event.what == "lost":
            verdict.losses += 1
        elif event.what == "written":
            verdict.writes += 1
        elif event.what == "stale":
            verdict.stale += 1
    latest: int | None = None  # the earlier fence whose holder was sure for longest
    for fence in sorted(got, key=lambda fence: got[fence].at):
        if latest is not None and got[fence].at < sure[latest]:
            forgot = any(trouble.forgot(got[latest].at) for trouble in troubles)
            (verdict.forgotten if forgot else verdict.overlaps).append((latest, fence))
        if latest is None or sure[fence] > sure[latest]:
            latest = fence
    return verdict


def lock_storm(options: Options, say: Callable[[str], None] = lambda _line: None) -> LockVerdict:
    """Run the storm in a temporary folder, and check the holders."""
    with TemporaryDirectory(prefix="chaos") as folder, RedisServer() as guard:
        place = RedisPlace("lock", fsync=options.fsync, outage=options.outage, replicas=options.replicas)
        place.extras["guard"] = guard.url
        try:
            return anyio.run(_storm, Victims(options, Path(folder), place, role="hold"), say)
        finally:
            place.close()


async def _storm(state: Victims, say: Callable[[str], None]) -> LockVerdict:
    options, random = state.options, Random(state.options.seed)
    ledger = Ledger(state.folder / "ledger.txt")
    next_fault = begun = time.time()
    try:
        while len(state.faults) < options.faults and time.time() - begun < options.timeout:
            await anyio.sleep(0.05)
            state.thaw()
            await anyio.to_thread.run_sync(state.place.go_on)
            state.replace_the_dead()
            if time.time() >= next_fault + options.every:
                next_fault = time.time() + random.uniform(-0.5, 0.5) * options.every
                await anyio.to_thread.run_sync(state.strike_somebody, random)
        await anyio.to_thread.run_sync(state.place.heal)
        state.thaw(everybody=True)
        say(f"struck {len(state.faults)} times in {time.time() - begun:.1f} s")
        deaf = await _find_the_deaf(state, ledger)
    finally:
        state.end()
    verdict = judge_holders(ledger.events(), state.place.troubles)
    verdict.faults = Counter(fault.kind for fault in state.faults)
    verdict.exited, verdict.deaf = state.exited, deaf
    return verdict


async def _find_the_deaf(state: Victims, ledger: Ledger) -> list[int]:
    """Wait until each process has acquired the lock once more, and return those that did not."""
    since, missing = time.time(), {process.pid for process in state.workers}
    with anyio.move_on_after(30 + 3 * state.options.lease):
        while missing:
            await anyio.sleep(0.2)
            state.replace_the_dead()
            missing = {process.pid for process in state.workers}
            missing -= {event.pid for event in ledger.events() if event.what == "got" and event.at > since}
    return sorted(missing)
