"""Names that mean something to a server, a database or a shell, and payloads that are large: stores take any."""

from typing import Any, Final

import anyio
import pytest

from cuelight.tasks import Limit, Query, Record, Schedule
from helpers.stores import Driver, HandClock

NAMES: Final = {
    "braces": "{a}:{b}",
    "colons": "a:b::",
    "percents": "%3A%00%s%d",
    "SQL": "'; DROP TABLE tasks; --",
    "quotes": "\"'`\\",
    "globs": "*?[a-z]",
    "a line break": "a\r\nDEL b\r\n",
    "JSON": '["x", {"y": null}]',
    "Lua": "]] error() --[[",
    "Unicode": "日本語 ẞ 🜁 \u202e\ufeff",
    "not normalised": "e\u0301",
    "spaces": "  ",
    "a dollar": "$1 ${HOME} $(id)",
    "a number": "0001e5",
    "long": "x" * 10_000,
    "NUL": "a\0b",
}


@pytest.mark.parametrize("kind", list(NAMES))
async def test_names_of_tasks_may_have_any_characters(kind: str, driver: Driver, clock: HandClock) -> None:
    name = NAMES[kind]
    task_id = name.replace("\0", "")  # which identifiers must not have
    fields: dict[str, Any] = {
        "type": name,
        "unique": name,
        "tenant": name,
        "limits": (Limit(name, max_concurrent=1), Limit(f"{name}2", rate=1000.0)),
    }
    assert await driver.add(task_id, **fields) == ["added"]
    assert await driver.add("beside", **fields) == ["duplicate"], "of its unique key"
    assert await driver.add("second", **(fields | {"unique": None})) == ["added"]
    assert await driver.add("other", type=f"{name} ", tenant=f"{name} ", unique=f"{name} ") == ["added"]
    leases = {lease.record.id: lease for lease in await driver.claim(9)}
    assert set(leases) == {task_id, "other"}, "its limit holds the second back"
    record = leases[task_id].record
    assert (record.type, record.unique, record.tenant) == (name, name, name)
    assert [limit.key for limit in record.limits] == [name, f"{name}2"]
    await driver.finish(leases["other"], "unknown")
    assert await driver.store.unpark([name]) == 0
    assert await driver.store.unpark([f"{name} "]) == 1
    assert await driver.finish(leases[task_id], result=name.encode()) == "completed"
    await driver.store.set_limit(Limit(name, max_concurrent=5), name)
    await driver.store.pause_limit(name, 1.0)
    clock.advance(2.0)
    assert set(await driver.claim_ids()) == {"second", "other"}
    assert [one.record.id for one in await driver.store.find(Query(type=name))] == [task_id, "second"]
    schedule = Schedule(name=name, spec="every 5.0", due=clock(), record=Record(id=task_id, type=name))
    await driver.store.put_schedule(schedule)
    assert [one.name for one in await driver.store.schedules()] == [name]
    assert await driver.store.fire(name, clock(), clock() + 5)
    assert await driver.store.remove_schedule(name)
    assert (await driver.snapshot(task_id)).result == name.encode()


async def test_a_payload_of_twenty_megabytes_is_kept(driver: Driver) -> None:
    payload = bytes(range(256)) * 80_000
    assert await driver.add("large", payload=payload) == ["added"]
    with anyio.fail_after(30):
        (lease,) = await driver.claim()
        assert lease.record.payload == payload
        assert await driver.store.save("large", lease.epoch, checkpoint=payload)
        assert await driver.finish(lease, "released") == "pending"
        there = await driver.snapshot("large")
    assert there.checkpoint == payload
    assert (await driver.store.size()).in_flight == 0
