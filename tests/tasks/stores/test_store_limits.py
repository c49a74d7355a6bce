"""Limits: what may run at once and how fast, without looking at those that may not."""

from collections.abc import Sequence
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuelight.coordination import RateLimitConfig, gcra
from cuelight.redis._tasks import RedisStore
from cuelight.tasks import Finish, Lease, Limit
from cuelight.tasks._stores._limits import available_at, charge
from cuelight.tasks._stores._rows import LimitState
from helpers.stores import START, Driver, HandClock, entries


def two(key: str = "k") -> tuple[Limit, ...]:
    return (Limit(key, max_concurrent=2),)


async def done(driver: Driver, leases: Sequence[Lease]) -> None:
    await driver.store.exchange([Finish(lease.record.id, lease.epoch) for lease in leases])


async def test_no_more_tasks_run_at_once_than_a_limit_allows(driver: Driver) -> None:
    await driver.add("a", "b", "c", "d", limits=two())
    await driver.add("free")
    leases = await driver.claim(9)
    assert [lease.record.id for lease in leases] == ["a", "b", "free"]
    assert await driver.claim_ids() == []
    assert await driver.wake_at() == START + 15  # the leases only
    await done(driver, leases[:1])
    assert await driver.claim_ids() == ["c"]
    await done(driver, leases[1:])
    assert await driver.claim_ids() == ["d"]


@pytest.mark.parametrize("kind", ["done", "error", "timeout", "crash", "rate_limited", "released", "rejected"])
async def test_every_end_of_an_attempt_frees_its_place(driver: Driver, kind: str) -> None:
    await driver.add("a", "b", limits=(Limit("k", max_concurrent=1),))
    (lease,) = await driver.claim(2)
    exchange = await driver.exchange([Finish("a", lease.epoch, kind, delay=5)], most=2)
    assert [lease.record.id for lease in exchange.leases] == [("a" if kind == "crash" else "b")]


async def test_a_lease_that_runs_out_and_a_task_that_is_parked_or_cancelled_free_their_places(
    driver: Driver, clock: HandClock
) -> None:
    await driver.add("a", "b", "c", "d", limits=(Limit("k", max_concurrent=1),))
    await driver.claim()
    clock.advance(15)
    (lease,) = await driver.claim(9)
    assert (lease.record.id, lease.epoch) == ("a", 2)
    await driver.finish(lease, "unknown")
    (lease,) = await driver.claim(9)
    await driver.store.cancel([lease.record.id])
    await driver.finish(lease, "cancelled")
    (lease,) = await driver.claim(9)
    assert lease.record.id == "c"


async def test_a_rate_is_kept_and_wake_at_says_when_the_next_may_go(driver: Driver, clock: HandClock) -> None:
    await driver.add(*"abcdef", limits=(Limit("k", rate=2, per=10, burst=3),))
    assert await driver.claim_ids() == ["a", "b", "c"]
    assert await driver.wake_at() == START + 5
    clock.advance(4.999)
    assert await driver.claim_ids() == []
    clock.advance(0.001)
    assert await driver.claim_ids() == ["d"]
    clock.advance(5)
    assert await driver.claim_ids() == ["e"]
    assert await driver.claim_ids() == []


async def test_what_a_task_costs_is_paid_off_before_the_next(driver: Driver, clock: HandClock) -> None:
    tokens = Limit("tokens", rate=1000, per=60)
    await driver.add("big", limits=(Limit("tokens", rate=1000, per=60, cost=900),))
    await driver.add("next", limits=(Limit("tokens", rate=1000, per=60, cost=400),))
    await driver.add("small", limits=(tokens,))
    assert await driver.claim_ids() == ["big"]
    assert await driver.wake_at() == START + 15  # its lease; the limit opens after 18 s
    clock.advance(14)
    assert await driver.claim_ids() == []  # the small one does not overtake
    clock.advance(4)
    exchange = await driver.exchange([Finish("big", 1)], 9)
    assert [lease.record.id for lease in exchange.leases][:1] == ["next"]


async def test_a_task_with_several_limits_takes_all_or_none(driver: Driver, clock: HandClock) -> None:
    api, user = Limit("api", rate=1, per=10), Limit("user", max_concurrent=1)
    await driver.add("a", "b", limits=(api, user))
    await driver.add("other", limits=(api,))
    (lease,) = await driver.claim(9)
    assert lease.record.id == "a"
    clock.advance(10)
    # b waits for its user, and has taken nothing of the rate
    assert await driver.claim_ids() == ["other"]
    await driver.finish(lease)
    assert await driver.claim_ids() == []
    assert await driver.wake_at() == START + 20
    clock.advance(10)
    assert await driver.claim_ids() == ["b"]


async def test_a_task_does_not_overtake_one_that_waits_for_the_same_limit(driver: Driver) -> None:
    await driver.add("a", "b", limits=two("api"))
    leases = await driver.claim(2)
    await driver.add("low", limits=(*two("api"), *two("u1")), priority=3)
    await driver.add("normal", limits=(*two("api"), *two("u2")))
    await driver.add("high", limits=two("api"), priority=1)
    assert await driver.claim_ids() == []
    await done(driver, leases[:1])
    assert await driver.claim_ids() == ["high"]
    await done(driver, leases[1:])
    assert await driver.claim_ids() == ["normal"]


async def test_limited_and_other_tasks_keep_one_order(driver: Driver) -> None:
    await driver.add("a1", limits=two("a"))
    await driver.add("free")
    await driver.add("b1", limits=two("b"))
    await driver.add("a2", limits=two("a"))
    await driver.add("high", limits=two("c"), priority=0)
    await driver.add("free2", priority=1)
    assert await driver.claim_ids() == ["high", "free2", "a1", "free", "b1", "a2"]


async def test_a_limit_can_be_changed_for_tasks_that_are_there(driver: Driver) -> None:
    await driver.add(*"abcdef", limits=two())
    assert await driver.claim_ids() == ["a", "b"]
    await driver.store.set_limit(Limit("k", max_concurrent=4), "k")
    assert await driver.claim_ids() == ["c", "d"]
    await driver.store.set_limit(None, "k")
    await driver.store.set_limit(None, "nobody")
    await driver.store.exchange([Finish("a", 1), Finish("b", 1)])
    assert await driver.claim_ids() == []
    await driver.store.exchange([Finish("c", 1)])
    assert await driver.claim_ids() == ["e"]


async def test_a_cost_above_an_overridden_burst_waits_until_all_is_paid_off(driver: Driver, clock: HandClock) -> None:
    await driver.add("a", "b", limits=(Limit("k", rate=100, cost=50),))
    await driver.store.set_limit(Limit("k", rate=10, per=1), "k")
    assert await driver.claim_ids() == ["a"]
    clock.advance(4.9)
    assert await driver.claim_ids() == []
    clock.advance(0.1)
    assert await driver.claim_ids() == ["b"]


async def test_a_paused_limit_starts_nothing_for_its_time(driver: Driver, clock: HandClock) -> None:
    await driver.add("a", "b", "c", limits=(Limit("k", max_concurrent=9),))
    (lease,) = await driver.claim()
    assert await driver.finish(lease, "rate_limited", delay=30.0, pause_key="k") == "scheduled"
    assert await driver.claim_ids() == []
    assert await driver.wake_at() == START + 30
    await driver.store.pause_limit("k", 5)  # a shorter pause does not end a longer one
    clock.advance(29)
    assert await driver.claim_ids() == []
    clock.advance(1)
    assert await driver.claim_ids() == ["a", "b", "c"]
    await driver.store.pause_limit("k", 60)
    await driver.add("d", limits=(Limit("k"),))
    assert await driver.claim_ids() == []
    await driver.store.pause_limit("k", 0)
    assert await driver.claim_ids() == ["d"]


async def test_a_limit_goes_on_when_its_first_task_is_taken_away(driver: Driver, clock: HandClock) -> None:
    await driver.add("running", limits=(Limit("k", max_concurrent=1),))
    (lease,) = await driver.claim()
    await driver.add("cancelled", "next", "shed", limits=(Limit("k", max_concurrent=1),))
    await driver.add("expired", deadline=START + 1, limits=(Limit("k", max_concurrent=1),), priority=1)
    clock.advance(1)
    assert await driver.claim_ids() == []
    await driver.store.cancel(["cancelled"])
    assert await driver.state("expired") == "dead_letter"
    await driver.finish(lease)
    assert await driver.claim_ids() == ["next"]


async def test_a_task_that_expires_while_it_waits_for_a_limit_lets_others_go(driver: Driver, clock: HandClock) -> None:
    slow = Limit("k", rate=1, per=100)
    await driver.add("a", limits=(slow,))
    await driver.claim()
    await driver.add("waits", deadline=START + 50, limits=(slow, Limit("u", max_concurrent=1)))
    await driver.add("other", limits=(Limit("u", max_concurrent=1),))
    assert await driver.claim_ids() == ["other"]
    clock.advance(50)
    await driver.claim_ids()
    assert (await driver.snapshot("waits")).reason == "expired"


async def test_limits_that_are_not_in_use_are_forgotten(driver: Driver, clock: HandClock) -> None:
    for number in range(20):
        await driver.add(f"{number}", limits=(Limit(f"user:{number}", rate=1, per=5), *two("api")), result_ttl=1.0)
    for _ in range(20):
        await done(driver, await driver.claim(9))
    clock.advance(60)
    await driver.claim()
    clock.advance(60)
    await driver.claim()
    assert await driver.wake_at() == inf
    assert await kept(driver) == 0


async def test_one_claim_does_not_look_at_more_than_some_hundreds_in_vain(driver: Driver, clock: HandClock) -> None:
    """What is left is for the next claim, which `wake_at` asks for at once."""
    for turn in "ab":
        for number in range(300):
            await driver.add(f"{turn}{number}", limits=(Limit(f"user:{number}", max_concurrent=1),))
    assert len(await driver.claim(300)) == 300
    await driver.add("free", priority=3)
    exchange = await driver.exchange([], 9)
    assert (exchange.leases, exchange.wake_at) == ([], START)
    exchange = await driver.exchange([], 9)
    assert [lease.record.id for lease in exchange.leases] == ["free"]
    assert exchange.wake_at == START + 15


async def test_many_tasks_that_expire_at_once_are_taken_away_over_several_claims(
    driver: Driver, clock: HandClock
) -> None:
    await driver.add(*(f"a{number}" for number in range(700)), deadline=START + 1)
    await driver.add(*(f"b{number}" for number in range(700)), deadline=START + 1, limits=two())
    await driver.add("free", priority=3)
    clock.advance(1)
    exchange = await driver.exchange([], 9)
    assert (exchange.leases, exchange.wake_at) == ([], START + 1)
    claims = 1
    while not (exchange := await driver.exchange([], 9)).leases:
        claims += 1
    assert 2 <= claims <= 4
    assert (await driver.store.size()).dead_letter == 1400


async def kept(driver: Driver) -> int:
    """Rows of any kind that the store has."""
    from cuelight.tasks import MemoryStore, SQLiteStore

    if isinstance(driver.store, MemoryStore):
        book = driver.store._row_store
        return (
            len(book._tasks) + len(book._limit_states) + len(book._limit_queues) + len(book._claims) + len(book._unique)
        )
    if isinstance(driver.store, RedisStore):
        return await entries(driver.store)
    assert isinstance(driver.store, SQLiteStore)
    assert driver.store._writer is not None
    connection = driver.store._writer._connection
    assert connection is not None
    tables = ("tasks", "bodies", "stories", "gates", "lanes", "claims", "uniques")
    return sum(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables)


async def test_a_turn_is_passed_on_when_the_task_that_had_it_goes_away(driver: Driver) -> None:
    def limits(user: str) -> tuple[Limit, ...]:
        return (Limit("k", max_concurrent=1), Limit(user))

    await driver.add("running", limits=limits("u0"))
    (lease,) = await driver.claim()
    for number in range(1, 4):
        await driver.add(f"t{number}", limits=limits(f"u{number}"))
    assert await driver.claim_ids() == []
    await driver.finish(lease)
    await driver.store.cancel(["t1"])  # whose turn it was
    assert await driver.claim_ids() == ["t2"]


async def test_a_cheaper_and_more_urgent_task_may_go_sooner(driver: Driver, clock: HandClock) -> None:
    def limits(cost: float) -> tuple[Limit, ...]:
        return (Limit("k", rate=1, burst=3, cost=cost),)

    await driver.add("first", "big", limits=limits(3))
    assert await driver.claim_ids() == ["first"]
    assert await driver.wake_at() == START + 3
    await driver.add("small", limits=limits(1), priority=0)
    assert await driver.wake_at() == START + 1
    clock.advance(1)
    assert await driver.claim_ids() == ["small"]


@given(
    interval=st.integers(1, 9),
    most=st.integers(1, 9),
    burst=st.integers(1, 9),
    asked=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), min_size=5, max_size=20),
)
def test_a_limit_of_tasks_goes_by_the_rule_of_the_limiters(
    interval: int, most: int, burst: int, asked: list[tuple[int, int]]
) -> None:
    config = RateLimitConfig(most, most * interval, burst)
    state, tat, now = LimitState("k"), 0, 0
    for later, cost in asked:
        now += later
        limit = Limit.from_config("k", config, cost=min(cost, burst))
        allowed, tat, wait = gcra(tat, now, interval, burst, min(cost, burst))
        assert max(0.0, available_at(state, limit) - now) == wait
        if allowed:
            charge(state, limit, now)
            assert state.tat == tat


async def test_the_configuration_of_a_limiter_is_a_limit_of_tasks(driver: Driver, clock: HandClock) -> None:
    limit = Limit.from_config("k", RateLimitConfig(2, 10, burst_size=3), max_concurrent=9)
    assert limit == Limit("k", max_concurrent=9, rate=2, per=10, burst=3)
    assert Limit.from_config("k", RateLimitConfig(2, 10), cost=2) == Limit("k", rate=2, per=10, cost=2)
    await driver.add(*"abcde", limits=(limit,))
    assert await driver.claim_ids() == ["a", "b", "c"]
    clock.advance(5)
    assert await driver.claim_ids() == ["d"]


def test_what_is_no_configuration_makes_no_limit() -> None:
    with pytest.raises(TypeError, match=r"5: give a RateLimitConfig"):
        Limit.from_config("k", 5)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"give 0 to 2"):
        Limit.from_config("k", RateLimitConfig(2, 1), cost=3)
