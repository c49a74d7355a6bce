"""One call of a scenario fails, before it took effect or after it: the same call made again gives the same end."""

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from cuelight.errors import StoreUnavailable
from cuelight.tasks import Attempt, Bound, Claim, Finish, Lease, Limit, Query, Record, Schedule, Snapshot, Store
from helpers.stores import START, STORES, Faulty, HandClock


async def again(call: Callable[[], Awaitable[Any]]) -> Any:
    """The call, made until it is answered."""
    while True:
        try:
            return await call()
        except StoreUnavailable:
            continue


async def scenario(store: Store, clock: HandClock) -> None:
    """What a producer, two workers and a person do."""
    limits = (Limit("k", max_concurrent=2, rate=10.0, per=1.0),)
    records = [Record(id=name, type="t", nonce="n1", limits=limits, max_retries=2, unique=name) for name in "abcd"]
    assert [one.outcome for one in await again(lambda: store.add(records))] == ["added"] * 4
    bound = Bound(4, shed=True)
    extra = [Record(id="e", type="t", nonce="n2", delay=2.0), Record(id="f", type="t", nonce="n2", priority=0)]
    await again(lambda: store.add(extra, bound))
    record = Record(id="s", type="t")
    await again(lambda: store.put_schedule(Schedule(name="s", spec="1", due=START, record=record)))
    await again(lambda: store.fire("s", START, START + 60))
    finishes: list[Finish] = []
    for turn, kind in enumerate(["error", "rate_limited", "unknown", "done", "rejected", "error", "done", "done"]):
        claim = Claim("w1", f"c{turn}", 1, 15.0)
        exchange = await again(partial(store.exchange, finishes, claim))
        assert "" not in exchange.accepted
        finishes = [_finish(lease, kind) for lease in exchange.leases]
        for lease in exchange.leases:
            assert await again(partial(store.save, lease.record.id, lease.epoch, checkpoint=b"c"))
            assert (await again(partial(_beat, store, lease))).lost == []
        clock.advance(1.0)
    assert "" not in (await again(lambda: store.exchange(finishes))).accepted
    await again(lambda: store.exchange([], Claim("dead", "c9", 1, 5.0)))
    clock.advance(5.0)
    await again(lambda: store.exchange([], Claim("w2", "c10", 1, 5.0)))
    await again(lambda: store.unpark(["t"]))
    await again(lambda: store.cancel(["a", "b"]))
    await again(lambda: store.set_limit(Limit("k", max_concurrent=3), "k"))
    await again(lambda: store.pause_limit("k", 5.0))
    await again(lambda: store.control(paused=True, closed=True))
    await again(lambda: store.replay(["d"]))
    await again(lambda: store.edit("d", b"new"))
    await again(lambda: store.purge(["c"]))


async def _beat(store: Store, lease: Lease) -> Any:
    return store.beat("w1", [(lease.record.id, lease.epoch)], 15.0)


def _finish(lease: Lease, kind: str) -> Finish:
    attempt = None if kind in ("done", "unknown") else Attempt(kind, "w1", START)
    return Finish(lease.record.id, lease.epoch, kind, b"r", 1.5, attempt, "k" if kind == "rate_limited" else None)


async def _end_of(name: str, folder: Path, fails_at: int, *, after: bool) -> tuple[int, list[Snapshot], Any]:
    clock = HandClock()
    store = STORES[name](folder, clock)
    await store.open()
    try:
        faulty = Faulty(store, fails_at, after=after)
        await scenario(faulty.store, clock)
        return faulty.calls, await store.find(Query(limit=100)), (await store.size(), await store.schedules())
    finally:
        await store.close()


@pytest.mark.parametrize("name", STORES)
@pytest.mark.parametrize("after", [False, True])
def test_any_call_that_fails_can_be_made_again(name: str, after: bool, tmp_path: Path) -> None:
    def end(fails_at: int) -> Any:
        folder = tmp_path / str(fails_at)
        folder.mkdir()

        async def run() -> Any:
            return await _end_of(name, folder, fails_at, after=after)

        return anyio.run(run)

    calls, tasks, rest = end(0)
    assert calls > 30
    assert {there.state for there in tasks} >= {"completed", "dead_letter", "in_flight"}
    for fails_at in range(1, calls + 1):
        assert end(fails_at)[1:] == (tasks, rest), f"call {fails_at}"
