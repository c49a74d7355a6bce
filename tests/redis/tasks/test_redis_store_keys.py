"""What a queue leaves on the server, and what the server may hold that is not ours, too new, or broken."""

from __future__ import annotations

import re
from math import inf

import msgspec
import pytest

from cuelight.errors import PoolClosed, StoreRefused
from cuelight.redis import RedisClient, RedisStore
from cuelight.tasks import Attempt, Bound, Claim, Finish, Lease, Limit, Query, Record, Schedule
from helpers.stores import START, Driver, HandClock, entries

DAY = 86400.0


async def keys_of(client: RedisClient, prefix: str) -> dict[str, int]:
    """The keys of a queue, and their milliseconds to live; -1 for ever."""
    found: dict[str, int] = {}
    for key in await client.execute("KEYS", f"{{{prefix}:*"):
        found[key.decode().rpartition(":")[2]] = await client.execute("PTTL", key)
    return found


def key(prefix: str, name: str, queue: str = "default") -> str:
    return f"{{{prefix}:{queue}}}:tasks:{name}"


async def busy_day(desk: Driver) -> None:
    """One of everything that leaves something on the server."""
    store = desk.store
    limits = (Limit("api", max_concurrent=2, rate=10.0, per=1.0), Limit("user"))
    await desk.add("plain", "failing", result_ttl=60.0, deadline=START + 500)
    await desk.add("limited", "limited2", result_ttl=60.0, limits=limits)
    await desk.add("once", unique="u", unique_for=100.0, result_ttl=60.0)
    await desk.add("shed", priority=9, bound=Bound(1, shed=True), result_ttl=60.0)
    await desk.add("kept", priority=0, bound=Bound(1, shed=True), result_ttl=60.0)
    await store.set_limit(Limit("user", max_concurrent=1), "user")
    await store.set_limit(None, "user")
    await store.pause_limit("other", 5.0)
    while leases := await desk.claim(3):
        for lease in leases:
            await store.save(lease.record.id, lease.epoch, progress=b"p", checkpoint=b"c")
        retried = leases[0].record.id == "failing" and not leases[0].counts.errors
        attempt = Attempt("error", "w", START, error="no")
        await desk.finish(leases[0], "error", attempt=attempt) if retried else await desk.finish(leases[0], result=b"r")
        await desk.store.exchange([Finish(lease.record.id, lease.epoch) for lease in leases[1:]])
    await store.purge([there.record.id for there in await store.find(Query(state="dead_letter"))])


async def test_nothing_is_left_of_tasks_that_are_forgotten(desk: Driver, store: RedisStore, clock: HandClock) -> None:
    await busy_day(desk)
    assert (await store.size()).completed > 3
    clock.advance(200)
    await desk.claim()
    clock.advance(200)
    await desk.claim()
    assert await entries(store) == 0
    assert await desk.wake_at() == inf


async def test_an_abandoned_queue_goes_away_by_itself(
    desk: Driver, store: RedisStore, client: RedisClient, prefix: str
) -> None:
    await busy_day(desk)
    await store.close()
    there = await keys_of(client, prefix)
    assert set(there) >= {"meta", "rows", "blobs", "completed", "sequences", "ends"}
    # The last to end is the unique key, after 100 s.
    assert {name: ttl for name, ttl in there.items() if not 0 < ttl <= (100 + DAY) * 1000} == {}


async def test_a_queue_at_rest_that_gets_a_task_again_stays(
    desk: Driver, store: RedisStore, client: RedisClient, prefix: str
) -> None:
    await desk.add("a")
    (lease,) = await desk.claim()
    exchange = await desk.exchange([Finish("a", lease.epoch)])
    assert exchange.accepted == ["completed"]
    assert all(ttl > 0 for ttl in (await keys_of(client, prefix)).values())
    await desk.add("b")
    assert set((await keys_of(client, prefix)).values()) == {-1}


@pytest.mark.parametrize("why", ["paused", "closed", "override", "dead letter", "result for ever", "result for ages"])
async def test_a_queue_that_somebody_needs_does_not_go_away(
    desk: Driver, store: RedisStore, client: RedisClient, prefix: str, why: str
) -> None:
    await desk.add("a", result_ttl={"result for ever": inf, "result for ages": 1e300}.get(why, 60.0))
    (lease,) = await desk.claim()
    match why:
        case "paused" | "closed":
            await store.control(**{why: True})
        case "override":
            await store.set_limit(Limit("k", max_concurrent=1), "k")
        case _:
            pass
    await desk.finish(lease, "rejected" if why == "dead letter" else "done")
    await desk.claim()
    await store.close()
    assert set((await keys_of(client, prefix)).values()) == {-1}


async def test_periodic_work_outlives_a_queue_at_rest(
    desk: Driver, store: RedisStore, client: RedisClient, prefix: str
) -> None:
    await store.put_schedule(Schedule(name="s", spec="", due=START, record=Record(id="s", type="t")))
    await store.close()
    there = await keys_of(client, prefix)
    assert there.pop("schedules") == -1
    assert all(ttl > 0 for ttl in there.values())


async def test_looking_for_work_in_an_empty_queue_leaves_nothing_for_ever(
    desk: Driver, client: RedisClient, prefix: str
) -> None:
    await desk.claim()
    await desk.store.changed(desk.store.version(), 0.01)
    there = await keys_of(client, prefix)
    assert set(there) == {"meta"}
    assert there["meta"] > 0


async def test_names_may_have_any_characters_and_never_meet(client: RedisClient, prefix: str) -> None:
    names = ["{a}", "a", "{", "}", "a:b", "%7B", "ü€", "{}"]
    for name in names:
        store = RedisStore(client, name, prefix=prefix)
        await store.open()
        await store.add([Record(id=name, type="t")])
    for name in names:
        store = RedisStore(client, name, prefix=prefix)
        await store.open()
        assert [there.record.id for there in await store.find(Query())] == [name]
    tags = {found.decode().partition("}")[0] for found in await client.execute("KEYS", f"{{{prefix}:*")}
    assert len(tags) == len(names)
    with pytest.raises(ValueError, match=r"queue=''\): give a name"):
        RedisStore(client, "")
    with pytest.raises(ValueError, match=r"prefix=''\): give a name"):
        RedisStore(client, prefix="")


async def test_a_key_of_another_type_is_named_and_nothing_is_touched(client: RedisClient, prefix: str) -> None:
    await client.execute("SET", key(prefix, "leases"), "mine")
    store = RedisStore(client, prefix=prefix)
    with pytest.raises(StoreRefused, match=r"tasks:leases is of type string, not zset"):
        await store.open()
    with pytest.raises(PoolClosed, match="is not open"):
        await store.size()
    await client.execute("DEL", key(prefix, "leases"))
    await store.open()
    await store.add([Record(id="a", type="t")])
    await client.execute("SET", key(prefix, "rows"), "mine")
    before = {name: await client.execute("DUMP", key(prefix, name)) for name in await keys_of(client, prefix)}
    with pytest.raises(StoreRefused, match=r"tasks:rows is of type string, not hash"):
        await store.add([Record(id="b", type="t")])
    assert before == {name: await client.execute("DUMP", key(prefix, name)) for name in await keys_of(client, prefix)}


async def test_what_a_newer_version_keeps_is_refused(desk: Driver, client: RedisClient, prefix: str) -> None:
    await desk.add("a")
    await client.execute("HSET", key(prefix, "meta"), "format", 2)
    with pytest.raises(StoreRefused, match="has format 2, which is that of a newer version"):
        await desk.claim()
    with pytest.raises(StoreRefused, match="update this one"):
        await RedisStore(client, prefix=prefix).open()


async def test_fields_that_a_newer_version_adds_are_kept(desk: Driver, client: RedisClient, prefix: str) -> None:
    await desk.add("a")
    row = msgspec.msgpack.decode(await client.execute("HGET", key(prefix, "rows"), "a"))
    await client.execute("HSET", key(prefix, "rows"), "a", msgspec.msgpack.encode([*row, "new", {"more": 1}]))
    await client.execute("HSET", key(prefix, "meta"), "newer", "1")
    (lease,) = await desk.claim()
    assert await desk.finish(lease, "error") == "pending"
    row = msgspec.msgpack.decode(await client.execute("HGET", key(prefix, "rows"), "a"))
    assert row[-2:] == ["new", {"more": 1}]
    assert await client.execute("HGET", key(prefix, "meta"), "newer") == b"1"


async def test_tasks_without_what_holds_them_together_are_refused(
    desk: Driver, client: RedisClient, prefix: str
) -> None:
    await desk.add("a")
    await client.execute("DEL", key(prefix, "meta"))
    with pytest.raises(StoreRefused, match="the server has evicted it"):
        await desk.claim()


@pytest.mark.parametrize("state", ["pending", "limited", "scheduled", "in_flight"])
@pytest.mark.parametrize("damage", [b"\xc1garbage", b"\x92\xa1a\x01", None])
async def test_a_row_that_cannot_be_read_is_a_dead_letter_and_the_others_run(
    desk: Driver, client: RedisClient, prefix: str, state: str, damage: bytes | None
) -> None:
    one = (Limit("k", max_concurrent=1),)
    await desk.add(
        "bad", type="mail", delay=5.0 if state == "scheduled" else 0.0, limits=one if state != "pending" else ()
    )
    if state == "in_flight":
        assert await desk.claim_ids(1) == ["bad"]
    await desk.add("good", limits=one)
    if damage is None:
        await client.execute("HDEL", key(prefix, "rows"), "bad")
    else:
        await client.execute("HSET", key(prefix, "rows"), "bad", damage)
    desk.clock.advance(15)
    found: list[Lease] = []
    for _ in range(3):
        found += await desk.claim(9)
    assert [lease.record.id for lease in found] == ["good"]
    there = await desk.snapshot("bad")
    assert (there.state, there.reason, there.record.type) == ("dead_letter", "undecodable", "mail")
    assert "its row in the store" in there.history[0].error
    assert there.result == damage
    assert await desk.store.replay(["bad"]) == [True]
    assert await desk.finish(found[0]) == "completed"
    (lease,) = await desk.claim()
    assert lease.record.id == "bad"
    assert lease.record.limits == (one if state != "pending" else ())
    assert lease.epoch > START  # above all that it was given before


async def test_a_record_that_cannot_be_read_is_a_dead_letter_and_the_others_run(
    desk: Driver, client: RedisClient, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    await desk.add("bad", "good")
    await client.execute("HSET", key(prefix, "blobs"), "bbad", b"\x00\x00\x00\x02\xc1\xc1")
    claim = Claim("w", "once", 2, 15.0)
    exchange = await desk.store.exchange([], claim)
    assert [lease.record.id for lease in exchange.leases] == ["good"]
    assert "its record in the store cannot be read" in caplog.text
    there = await desk.snapshot("bad")
    assert (there.state, there.reason) == ("dead_letter", "undecodable")
    assert "cannot be read" in there.history[0].error
    assert [lease.record.id for lease in (await desk.store.exchange([], claim)).leases] == ["good"]


async def test_a_lane_that_cannot_be_read_is_made_again(desk: Driver, client: RedisClient, prefix: str) -> None:
    limits = (Limit("k", max_concurrent=1),)
    await desk.add("a", "b", limits=limits)
    await client.execute("HSET", key(prefix, "side"), "i1", b"\xc1")
    (lease,) = await desk.claim(9)
    assert lease.record.id == "a"
    await client.execute("HSET", key(prefix, "side"), "i1", b"\xc1")
    await desk.finish(lease)
    assert await desk.claim_ids() == ["b"]


async def test_scripts_that_the_server_has_forgotten_are_sent_again(desk: Driver, client: RedisClient) -> None:
    await desk.add("a")
    await client.execute("SCRIPT", "FLUSH")
    (lease,) = await desk.claim()
    await client.execute("SCRIPT", "FLUSH")
    assert desk.store.beat("w", [("a", lease.epoch)], 15.0).lost == []
    await client.execute("SCRIPT", "FLUSH")
    assert await desk.finish(lease) == "completed"


async def test_results_and_payloads_are_any_bytes(desk: Driver) -> None:
    everything = bytes(range(256)) * 300
    await desk.add("a", "b", payload=everything)
    a, b = await desk.claim(2)
    assert a.record.payload == everything
    assert await desk.store.save("a", a.epoch, progress=b"", checkpoint=everything)
    assert await desk.store.save("b", b.epoch, progress=everything, checkpoint=b"")
    assert await desk.finish(b, "error") == "pending"
    (again,) = await desk.claim()
    assert again.checkpoint == b""
    assert await desk.finish(a, result=everything) == "completed"
    assert await desk.finish(again, result=b"") == "completed"
    first, second = await desk.snapshot("a"), await desk.snapshot("b")
    assert (first.result, first.progress) == (everything, b"")
    assert (second.result, second.progress) == (b"", everything)


async def test_looking_through_very_many_tasks_takes_several_steps(desk: Driver, client: RedisClient) -> None:
    for start in range(0, 2500, 500):
        await desk.add(*(f"{number}" for number in range(start, start + 500)), type="x")
    await desk.add("last", type="y")
    assert [there.record.id for there in await desk.store.find(Query(type="y"))] == ["last"]
    found = await desk.store.find(Query(type="x", after=1200, limit=1300))
    assert [there.sequence for there in found] == list(range(1201, 2501))
    leases = await desk.claim(1000)
    assert len(leases) == 1000
    await desk.store.exchange([Finish(lease.record.id, lease.epoch, "unknown") for lease in leases])
    more = await desk.claim(300)
    await desk.store.exchange([Finish(lease.record.id, lease.epoch, "unknown") for lease in more])
    assert await desk.store.unpark(["x", "nobody"]) == 1300
    assert (await desk.store.size()).pending == 2501


async def test_one_claim_gives_at_most_a_thousand_and_says_that_there_is_more(desk: Driver) -> None:
    await desk.add(*(f"{number}" for number in range(1500)))
    exchange = await desk.exchange([], 1200)
    assert (len(exchange.leases), exchange.wake_at) == (1000, START)
    exchange = await desk.exchange([], 1200)
    assert len(exchange.leases) == 500
    assert exchange.wake_at == START + 15


async def test_a_claim_over_redis_costs_the_same_however_many_tasks_wait(desk: Driver, client: RedisClient) -> None:
    async def commands() -> int:
        stats = await client.execute("INFO", "commandstats")
        calls = re.findall(r"cmdstat_(z\w+|h\w+):calls=(\d+)", stats.decode())
        return sum(int(number) for _, number in calls)

    async def cost() -> int:
        before = await commands()
        assert len(await desk.claim(10)) == 10
        return await commands() - before

    await desk.add(*(f"a{number}" for number in range(20)))
    await cost()
    few = await cost()
    for start in range(0, 5000, 500):
        await desk.add(*(f"b{number}" for number in range(start, start + 500)))
    assert await cost() <= few + 2
