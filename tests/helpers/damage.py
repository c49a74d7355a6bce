"""A queue with a task of each kind, and what must be true of it after one part of it was damaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf, nan
from typing import Any, Final

import msgspec

from cuelight.errors import StoreRefused
from cuelight.tasks import Attempt, Finish, Limit, Query, Record, Schedule, Store
from helpers.stores import Driver, HandClock

K: Final = Limit("k", max_concurrent=1)
M: Final = Limit("m", max_concurrent=2, rate=1000.0)
IDS: Final = (
    *("plain0", "plain1", "later", "limited0", "limited1", "tenant", "unique", "retried", "saved", "flight", "parked"),
    *("dead", "done", "gone", "overridden", "last"),
)
FINAL: Final = {"dead": "dead_letter", "done": "completed", "gone": "cancelled"}
"""Those that are over when the damage is done."""

DEEP: Final = b"\x91" * 3000 + b"\xc0"
RAW: Final[dict[str, bytes]] = {
    "garbage": b"\xc1\xff\x00garbage",
    "empty": b"",
    "nothing": b"\xc0",
    "a number": b"\x05",
    "text": msgspec.msgpack.encode("text"),
    "a short list": msgspec.msgpack.encode(["t"]),
    "a map": msgspec.msgpack.encode({"a": 1}),
    "deep": DEEP,
    "very deep": b"\x91" * 500_000 + b"\xc0",
    "a huge header": b"\xdd\xff\xff\xff\xff",
    "a long list": msgspec.msgpack.encode(list(range(100))),
}
"""Bytes where bytes of ours should be."""

VALUES: Final[dict[str, Any]] = {
    "text": "evil",
    "no text": "",
    "nothing": None,
    "negative": -5,
    "zero": 0,
    "2**53": 2**53,
    "2**63": 2**63 - 1,
    "1e300": 1e300,
    "-1e300": -1e300,
    "inf": inf,
    "-inf": -inf,
    "nan": nan,
    "a half": 1.5,
    "true": True,
    "an empty list": [],
    "a list": ["x"],
    "a map": {"a": 1},
    "deep": msgspec.Raw(b"\x91" * 600 + b"\xc0"),
    "no Unicode": msgspec.Raw(b"\xa2\xff\xfe"),
    "long text": "x" * 70_000,
}
"""Values where a value of ours should be."""


async def fill(store: Store, clock: HandClock) -> None:
    """Make the queue: a task of each kind, and at the end some that may run."""
    driver = Driver(store, clock)
    for name in ("dead", "done", "gone", "parked", "retried", "saved"):
        await driver.add(name, max_retries=3)
    leases = {lease.record.id: lease for lease in await driver.claim(9)}
    await driver.finish(leases["dead"], "rejected", attempt=Attempt("rejected", "w", clock(), error="no"))
    await driver.finish(leases["done"], result=b"\x05")
    await driver.finish(leases["parked"], "unknown")
    await driver.finish(leases["retried"], "error", attempt=Attempt("error", "w", clock(), error="e"))
    await store.save("saved", leases["saved"].epoch, progress=b"\x01", checkpoint=b"\x02")
    await driver.finish(leases["saved"], "released")
    await store.cancel(["gone"])
    await driver.finish(leases["gone"], "error")
    await driver.add("flight", limits=(M,), priority=0)
    assert await driver.claim_ids(1) == ["flight"]
    await driver.add("plain0", "plain1", payload=b"\x07")
    await driver.add("later", delay=5.0)
    await driver.add("limited0", "limited1", limits=(K, M))
    await driver.add("tenant", tenant="T", weight=2.0)
    await driver.add("unique", unique="u")
    await store.set_limit(Limit("o", max_concurrent=1), "o")
    await driver.add("overridden", limits=(Limit("o", max_concurrent=5),))
    await driver.add("last", deadline=clock() + 100_000, priority=3)
    record = Record(id="s", type="t", payload=b"\x09")
    await store.put_schedule(Schedule(name="s", spec="every 1000000.0", due=clock() + 1e6, record=record))


@dataclass
class Seen:
    """What became of the queue."""

    ran: list[str] = field(default_factory=list[str])
    states: dict[str, str] = field(default_factory=dict[str, str])
    reasons: dict[str, str] = field(default_factory=dict[str, str])
    schedules: list[str] = field(default_factory=list[str])
    size: Any = None
    refused: str = ""


async def run_out(store: Store, clock: HandClock) -> Seen:
    """Work on the queue until nothing waits in it, and look at all of it."""
    seen = Seen()
    driver = Driver(store, clock)
    try:
        await _work(driver, clock, seen)
        seen.schedules = [schedule.name for schedule in await store.schedules()]
        after = 0
        while page := await store.find(Query(after=after, limit=7)):
            for one in page:
                seen.states[one.record.id], seen.reasons[one.record.id] = one.state, one.reason
            after = page[-1].sequence
        assert [one.record.id for one in await store.find(Query(state="dead_letter"))] == [
            name for name, state in seen.states.items() if state == "dead_letter"
        ]
        got = await store.get(list(seen.states))
        assert [one.state for one in got if one is not None] == list(seen.states.values())
        seen.size = await store.size()
    except StoreRefused as error:
        seen.refused = str(error)
    return seen


async def _work(driver: Driver, clock: HandClock, seen: Seen) -> None:
    idle = 0
    for _ in range(60):
        parked = await driver.store.find(Query(state="parked"))
        await driver.store.unpark([one.record.type for one in parked])
        exchange = await driver.exchange([], 4)
        seen.ran += [lease.record.id for lease in exchange.leases]
        await driver.store.exchange([Finish(lease.record.id, lease.epoch) for lease in exchange.leases])
        size = await driver.store.size()
        if exchange.leases:
            idle = 0
            continue
        if not (size.pending or size.in_flight or size.scheduled or size.parked):
            return
        clock.advance(70.0)  # leases, delays, and the time after which a store looks at itself
        idle += 1
        if idle > 6:
            return


def wrong(seen: Seen, damaged: Sequence[str], *, header: bool = False, deleted: bool = False) -> list[str]:
    """What is not as it should be.

    Args:
        seen: what became of the queue.
        damaged: tasks whose own parts were damaged: they ran, or are dead letters, under this name or another.
        header: it was the record of the queue itself that was damaged, which may be refused.
        deleted: the damaged task was deleted altogether.
    """
    if seen.refused:
        return [] if (header and ":tasks:" in seen.refused) or ".db" in seen.refused else [f"refused: {seen.refused}"]
    if header and (seen.size.paused or seen.size.closed):
        return []
    found: list[str] = []
    for name in IDS:
        state = seen.states.get(name)
        if name in damaged:
            continue
        if name in FINAL:
            if state != FINAL[name]:
                found.append(f"{name} is {state}")
        elif name not in seen.ran or state != "completed":
            found.append(f"{name} did not run, and is {state} {seen.reasons.get(name)}")
    strangers = [name for name in seen.states if name not in IDS]
    missing = [name for name in IDS if name not in seen.states]
    lost = [name for name in missing if name not in damaged or not (deleted or name in FINAL or name in seen.ran)]
    if not len(lost) <= len(strangers) <= len(missing) or set(missing) - set(damaged):
        found.append(f"missing {missing}, others {strangers}")
    found += [
        f"{name} is {seen.states[name]}"
        for name in (*(name for name in damaged if name in seen.states), *strangers)
        if seen.states[name] not in ("completed", "cancelled", "dead_letter")
    ]
    size = {name: getattr(seen.size, name) for name in ("completed", "cancelled", "dead_letter")}
    counted = {name: list(seen.states.values()).count(name) for name in size}
    if size != counted or seen.size.pending or seen.size.in_flight or seen.size.scheduled or seen.size.parked:
        found.append(f"size {seen.size} of {counted}")
    if len(seen.schedules) != 1:
        found.append(f"schedules {seen.schedules}")
    return found


Cell = tuple[str, Sequence[str], Callable[[], Any]]
