"""What a store does to a task, from its adding to its end."""

from math import inf

import msgspec
import pytest

from cuelight.errors import PoolClosed
from cuelight.tasks import Attempt, Bound, Claim, Counts, Finish, Limit, Query, Record, Store
from helpers.stores import START, Driver, HandClock


async def test_tasks_are_claimed_by_priority_deadline_and_arrival(driver: Driver) -> None:
    await driver.add("late", deadline=START + 90)
    await driver.add("none", "none2")
    await driver.add("soon", "soon2", deadline=START + 50)
    await driver.add("low", priority=3, deadline=START + 10)
    await driver.add("high", priority=1)
    assert await driver.claim_ids() == ["high", "soon", "soon2", "late", "none", "none2", "low"]


async def test_a_task_is_tried_again_in_its_old_place(driver: Driver) -> None:
    await driver.add("a", "b", "c")
    (first,) = await driver.claim()
    assert await driver.finish(first, "error") == "pending"
    assert await driver.claim_ids() == ["a", "b", "c"]


async def test_an_id_is_taken_once(driver: Driver) -> None:
    assert await driver.add("a") == ["added"]
    assert await driver.add("a", "b", "b") == ["duplicate", "added", "duplicate"]
    (lease,) = await driver.claim()
    assert await driver.add("a") == ["duplicate"]
    await driver.finish(lease)
    assert await driver.add("a") == ["duplicate"]  # its result is still kept


async def test_adding_again_after_a_lost_answer_adds_nothing(driver: Driver) -> None:
    records = [Record(id="a", type="t", nonce="1"), Record(id="b", type="t", nonce="1")]
    first = await driver.store.add(records)
    assert await driver.store.add(records) == first
    assert (await driver.store.size()).pending == 2
    (lease,) = await driver.claim()
    await driver.finish(lease)
    assert [one.outcome for one in await driver.store.add(records)] == ["added", "added"]
    assert (await driver.store.size()).pending == 1


async def test_a_task_without_a_nonce_is_taken_once_all_the_same(driver: Driver) -> None:
    assert await driver.add("a", nonce="") == ["added"]
    assert await driver.add("a", nonce="") == ["duplicate"]


async def test_a_delayed_task_is_not_claimed_before_its_time(driver: Driver, clock: HandClock) -> None:
    await driver.add("delayed", delay=10)
    await driver.add("due", due=START + 5)
    await driver.add("both", due=START + 5, delay=10)
    assert await driver.state("delayed") == "scheduled"
    assert (await driver.snapshot("both")).due == START + 15
    assert await driver.wake_at() == START + 5
    clock.advance(5)
    assert await driver.claim_ids() == ["due"]
    clock.advance(4.999)
    assert await driver.claim_ids() == []
    clock.advance(0.001)
    assert await driver.claim_ids() == ["delayed"]
    clock.advance(5)
    assert await driver.claim_ids() == ["both"]


async def test_a_unique_key_is_held_until_the_task_is_over(driver: Driver) -> None:
    await driver.add("a", unique="k")
    duplicate = await driver.store.add([Record(id="b", type="t", unique="k")])
    assert (duplicate[0].outcome, duplicate[0].id) == ("duplicate", "a")
    (lease,) = await driver.claim()
    assert await driver.add("b", unique="k") == ["duplicate"]
    await driver.finish(lease, "error", delay=5)
    assert await driver.add("b", unique="k") == ["duplicate"]
    await driver.store.cancel(["a"])
    assert await driver.add("b", unique="k") == ["added"]


@pytest.mark.parametrize("kind", ["done", "rejected", "cancelled"])
async def test_every_end_of_a_task_frees_its_unique_key(driver: Driver, kind: str) -> None:
    await driver.add("a", unique="k")
    (lease,) = await driver.claim()
    await driver.finish(lease, kind)
    assert await driver.add("b", unique="k") == ["added"]


async def test_a_unique_key_with_a_time_is_held_for_that_time(driver: Driver, clock: HandClock) -> None:
    await driver.add("a", unique="k", unique_for=60)
    (lease,) = await driver.claim()
    await driver.finish(lease)
    assert await driver.add("b", unique="k") == ["duplicate"]
    clock.advance(60)
    await driver.claim()
    assert await driver.add("b", unique="k") == ["added"]


async def test_a_bounded_queue_takes_no_more_than_it_may_hold(driver: Driver) -> None:
    bound = Bound(2)
    await driver.add("delayed", delay=10, bound=bound)
    assert await driver.add("a", "b", "c", bound=bound) == ["added", "full", "full"]
    await driver.claim()
    assert await driver.add("b", bound=bound) == ["added"]


async def test_a_bounded_queue_sheds_the_last_for_a_more_urgent_one(driver: Driver) -> None:
    bound = Bound(3, shed=True)
    await driver.add("low", "low2", priority=3, bound=bound)
    await driver.add("normal", bound=bound)
    assert await driver.add("low3", priority=3, bound=bound) == ["full"]
    assert await driver.add("high", priority=1, bound=bound) == ["added"]
    assert (await driver.snapshot("low2")).reason == "shed"
    assert await driver.add("high2", "high3", priority=1, bound=bound) == ["added", "added"]
    assert await driver.add("high4", priority=1, bound=bound) == ["full"]
    assert await driver.claim_ids() == ["high", "high2", "high3"]


async def test_a_closed_queue_takes_nothing(driver: Driver) -> None:
    await driver.store.control(closed=True)
    with pytest.raises(PoolClosed, match="closed to new tasks"):
        await driver.add("a")
    assert await driver.state("a") == ""
    assert (await driver.store.size()).closed
    await driver.store.control(closed=False)
    assert await driver.add("a") == ["added"]


async def test_a_paused_queue_gives_nothing_and_time_goes_on(driver: Driver, clock: HandClock) -> None:
    await driver.add("a", "b")
    await driver.claim()
    await driver.store.control(paused=True)
    clock.advance(15)
    assert await driver.claim_ids() == []
    assert (await driver.snapshot("a")).counts.crashes == 1
    assert (await driver.store.size()).paused
    await driver.store.control(paused=False)
    assert await driver.claim_ids() == ["a", "b"]


async def test_a_completed_task_keeps_its_result_for_its_time(driver: Driver, clock: HandClock) -> None:
    await driver.add("a", result_ttl=60.0)
    (lease,) = await driver.claim()
    assert await driver.finish(lease, result=b"42") == "completed"
    there = await driver.snapshot("a")
    assert (there.state, there.result, there.ended, there.due) == ("completed", b"42", START, START + 60)
    clock.advance(60)
    await driver.claim()
    assert await driver.state("a") == "completed"
    clock.advance(0.001)
    await driver.claim()
    assert await driver.state("a") == ""
    assert await driver.add("a") == ["added"]


@pytest.mark.parametrize(
    ("kind", "reason", "budget"),
    [
        ("error", "errors", "max_retries"),
        ("timeout", "timeouts", "max_timeouts"),
        ("crash", "quarantined", "max_crashes"),
    ],
)
@pytest.mark.parametrize("most", [0, 1, 3])
async def test_each_kind_of_attempt_has_its_own_budget(
    driver: Driver, kind: str, reason: str, budget: str, most: int
) -> None:
    await driver.store.add([msgspec.structs.replace(Record(id="a", type="t"), **{budget: most})])
    states: list[str] = []
    while not states or states[-1] == "pending":
        (lease,) = await driver.claim()
        assert lease.epoch == len(states) + 1
        states.append(await driver.finish(lease, kind))
    assert states == ["pending"] * (max(1, most) - 1) + ["dead_letter"]
    there = await driver.snapshot("a")
    assert there.reason == reason
    assert there.ended == START
    assert [attempt.kind for attempt in there.history] == [kind] * max(1, most)


async def test_being_limited_or_released_is_never_too_often(driver: Driver) -> None:
    await driver.add("a", max_retries=1, max_timeouts=1, max_crashes=1)
    for _ in range(4):
        for kind in ("rate_limited", "released"):
            (lease,) = await driver.claim()
            assert await driver.finish(lease, kind) == "pending"
    assert (await driver.snapshot("a")).counts == Counts(rate_limited=4, released=4)


async def test_a_retry_waits_for_its_delay(driver: Driver, clock: HandClock) -> None:
    await driver.add("a")
    (lease,) = await driver.claim()
    attempt = Attempt("error", "w", START, 1.5, "ValueError: no", "trace")
    exchange = await driver.exchange([Finish("a", lease.epoch, "error", delay=8, attempt=attempt)])
    assert (exchange.accepted, exchange.leases, exchange.wake_at) == (["scheduled"], [], START + 8)
    clock.advance(8)
    (lease,) = await driver.claim()
    assert lease.counts == Counts(errors=1)
    assert (await driver.snapshot("a")).history == (attempt,)


async def test_the_last_twenty_attempts_are_remembered(driver: Driver) -> None:
    await driver.add("a")
    for number in range(25):
        (lease,) = await driver.claim()
        await driver.finish(lease, "released", attempt=Attempt("released", elapsed=number))
    there = await driver.snapshot("a")
    assert [attempt.elapsed for attempt in there.history] == list(range(5, 25))
    assert there.counts.released == 25


async def test_a_rejected_task_is_a_dead_letter_at_once(driver: Driver) -> None:
    await driver.add("a", max_retries=9)
    (lease,) = await driver.claim()
    assert await driver.finish(lease, "rejected", attempt=Attempt("rejected", error="no")) == "dead_letter"
    there = await driver.snapshot("a")
    assert (there.reason, there.history[-1].error) == ("rejected", "no")


async def test_a_task_whose_payload_cannot_be_read_is_a_dead_letter_at_once(driver: Driver) -> None:
    await driver.add("a", max_retries=9)
    (lease,) = await driver.claim()
    assert await driver.finish(lease, "undecodable", delay=9.0) == "dead_letter"
    there = await driver.snapshot("a")
    assert (there.reason, there.counts.errors, [attempt.kind for attempt in there.history]) == (
        "undecodable",
        0,
        ["undecodable"],
    )
    assert await driver.finish(lease, "undecodable") == "dead_letter", "the answer may have been lost"


async def test_a_task_of_unknown_type_is_parked_until_somebody_knows_it(driver: Driver) -> None:
    await driver.add("a", "c", type="new")
    await driver.add("b", type="other", priority=3)
    for lease in await driver.claim(3):
        assert await driver.finish(lease, "unknown") == "parked"
    assert await driver.claim_ids() == []
    assert (await driver.snapshot("a")).counts == Counts()
    assert await driver.store.unpark(["new", "nobody"]) == 2
    assert await driver.claim_ids() == ["a", "c"]
    assert await driver.state("b") == "parked"


async def test_a_task_whose_deadline_has_passed_is_not_run(driver: Driver, clock: HandClock) -> None:
    await driver.add("a", deadline=START + 10)
    await driver.add("scheduled", deadline=START + 10, delay=60)
    await driver.add("parked", deadline=START + 10, priority=0)
    (lease,) = await driver.claim()
    await driver.finish(lease, "unknown")
    assert await driver.wake_at() == START + 10
    clock.advance(10)
    assert await driver.claim_ids() == []
    for task_id in ("a", "scheduled", "parked"):
        there = await driver.snapshot(task_id)
        assert (there.state, there.reason, there.ended) == ("dead_letter", "expired", START + 10)


async def test_a_deadline_does_not_end_what_is_under_way(driver: Driver, clock: HandClock) -> None:
    await driver.add("a", deadline=START + 10)
    (lease,) = await driver.claim()
    clock.advance(11)
    assert await driver.claim_ids() == []
    assert await driver.finish(lease) == "completed"


async def test_cancelling_ends_what_waits_and_tells_those_who_work(driver: Driver) -> None:
    await driver.add("running", "done")
    running, done = await driver.claim(2)
    await driver.finish(done)
    await driver.add("pending")
    await driver.add("delayed", delay=9)
    ids = ["running", "done", "pending", "delayed", "nobody"]
    outcomes = ["cancelling", "finished", "cancelled", "cancelled", "unknown"]
    assert await driver.store.cancel(ids) == outcomes
    assert await driver.store.cancel(ids) == outcomes  # the answer may have been lost
    beat = driver.store.beat("w", [("running", running.epoch)], None)
    assert (beat.lost, beat.cancelled) == ([], [("running", 1)])
    assert (await driver.snapshot("running")).cancelling
    assert await driver.claim_ids() == []


@pytest.mark.parametrize("kind", ["error", "timeout", "crash", "rate_limited", "released", "rejected", "unknown"])
async def test_a_task_that_is_being_cancelled_is_not_tried_again(driver: Driver, kind: str) -> None:
    await driver.add("a", max_retries=9, max_crashes=9)
    (lease,) = await driver.claim()
    await driver.store.cancel(["a"])
    assert await driver.finish(lease, kind) == "cancelled"
    assert not (await driver.snapshot("a")).cancelling


async def test_a_task_that_is_being_cancelled_may_be_done_first(driver: Driver) -> None:
    await driver.add("a")
    (lease,) = await driver.claim()
    await driver.store.cancel(["a"])
    assert await driver.finish(lease, "done") == "completed"


async def test_a_replayed_dead_letter_has_all_its_budgets_again(driver: Driver, clock: HandClock) -> None:
    await driver.add("a", "later", max_retries=1)
    (lease,) = await driver.claim()
    await driver.store.save("a", lease.epoch, checkpoint=b"half")
    await driver.finish(lease, "error")
    assert await driver.store.replay(["a", "later", "nobody"]) == [True, False, False]
    (again,) = await driver.claim()
    assert (again.record.id, again.epoch, again.counts, again.checkpoint) == ("a", 2, Counts(), b"half")
    there = await driver.snapshot("a")
    assert len(there.history) == 1
    assert (there.reason, there.ended) == ("", 0.0)


async def test_a_replayed_task_whose_deadline_has_passed_has_none(driver: Driver, clock: HandClock) -> None:
    await driver.add("a", deadline=START + 1)
    clock.advance(1)
    assert await driver.claim_ids() == []
    assert await driver.store.replay(["a"]) == [True]
    assert (await driver.snapshot("a")).record.deadline == inf
    assert await driver.claim_ids() == ["a"]


async def test_a_replayed_task_holds_its_unique_key_again(driver: Driver) -> None:
    await driver.add("a", unique="k")
    (lease,) = await driver.claim()
    await driver.finish(lease, "rejected")
    await driver.store.replay(["a"])
    assert await driver.add("b", unique="k") == ["duplicate"]


async def test_a_payload_can_be_edited_while_nobody_has_worked_on_it(driver: Driver) -> None:
    await driver.add("a", "b", payload=b"old", max_retries=1)
    assert await driver.store.edit("b", b"new")
    (lease,) = await driver.claim()
    assert not await driver.store.edit("a", b"new")
    await driver.finish(lease, "error")
    assert await driver.store.edit("a", b"newer")
    await driver.store.replay(["a"])
    assert [lease.record.payload for lease in await driver.claim(2)] == [b"newer", b"new"]
    assert not await driver.store.edit("nobody", b"")


async def test_only_what_is_over_can_be_purged(driver: Driver) -> None:
    await driver.add("dead", "done", "pending", "running")
    dead, done = await driver.claim(2)
    await driver.finish(dead, "rejected")
    await driver.finish(done)
    await driver.store.cancel(["pending"])
    await driver.claim()
    assert await driver.store.purge(["dead", "done", "pending", "running", "nobody"]) == 3
    assert await driver.state("running") == "in_flight"
    size = await driver.store.size()
    assert (size.in_flight, size.completed, size.dead_letter, size.cancelled) == (1, 0, 0, 0)


async def test_progress_and_checkpoints_are_kept_while_the_attempt_is_valid(driver: Driver) -> None:
    await driver.add("a")
    (lease,) = await driver.claim()
    assert await driver.store.save("a", lease.epoch, progress=b"1")
    assert await driver.store.save("a", lease.epoch, checkpoint=b"c")
    there = await driver.snapshot("a")
    assert (there.progress, there.checkpoint) == (b"1", b"c")
    await driver.finish(lease, "error")
    assert not await driver.store.save("a", lease.epoch, progress=b"2")
    (again,) = await driver.claim()
    assert again.checkpoint == b"c"
    assert not await driver.store.save("a", lease.epoch, progress=b"2")
    await driver.finish(again)
    assert (await driver.snapshot("a")).checkpoint is None
    assert not await driver.store.save("nobody", 1, progress=b"")


async def test_tasks_are_found_by_state_type_reason_and_time(driver: Driver, clock: HandClock) -> None:
    await driver.add("a", "b", type="x")
    await driver.add("c", "d", "e", type="y")
    for lease, kind in zip(await driver.claim(3), ["rejected", "unknown", "rejected"], strict=True):
        clock.advance(1)
        await driver.finish(lease, kind)

    async def found(**fields: object) -> str:
        return "".join([there.record.id for there in await driver.store.find(_query(**fields))])

    await driver.claim()
    assert await found() == "abcde"
    assert await found(limit=2) == "ab"
    assert await found(after=2, limit=2) == "cd"
    assert await found(state="dead_letter") == "ac"
    assert await found(state="dead_letter", after=1) == "c"
    assert await found(state="dead_letter", type="y") == "c"
    assert await found(state="dead_letter", reason="expired") == ""
    assert await found(ended_before=START + 2) == "a"
    assert await found(state="parked") == "b"
    assert await found(state="in_flight") == "d"
    assert await found(state="pending", type="y") == "e"
    with pytest.raises(ValueError, match="the states are pending"):
        await found(state="lost")


def _query(**fields: object) -> Query:
    return msgspec.convert(fields, Query)


async def test_bad_input_is_refused_where_it_is_given(driver: Driver) -> None:
    limits = (Limit("k", rate=1), Limit("k", rate=2))
    with pytest.raises(ValueError, match="a different key"):
        await driver.add("fine", "a", limits=limits)
    with pytest.raises(ValueError, match="give the task an id"):
        await driver.add("")
    with pytest.raises(ValueError, match="without NUL"):
        await driver.add("a\0b")
    with pytest.raises(ValueError, match="not NaN"):
        await driver.add("a", deadline=float("nan"))
    with pytest.raises(ValueError, match=r"result_ttl=-1\.0"):
        await driver.add("a", result_ttl=-1.0)
    await driver.add("a")
    (lease,) = await driver.claim()
    with pytest.raises(ValueError, match="the kinds are done"):
        await driver.finish(lease, "lost")
    with pytest.raises(ValueError, match="give seconds"):
        await driver.finish(lease, "error", delay=-1.0)
    with pytest.raises(ValueError, match="more than 0"):
        await driver.store.exchange([], Claim("w", "n", 1, 0.0))
    with pytest.raises(ValueError, match="more than 0"):
        driver.store.beat("w", [], 0.0)
    with pytest.raises(ValueError, match="must have this key"):
        await driver.store.set_limit(Limit("k"), "other")
    with pytest.raises(ValueError, match="give seconds"):
        await driver.store.pause_limit("k", -1.0)
    assert await driver.state("fine") == ""
    assert await driver.state("a") == "in_flight"


async def test_a_closed_store_says_so(store: Store) -> None:
    await store.close()
    await store.close()
    with pytest.raises(PoolClosed, match="open"):
        await store.size()
    with pytest.raises(PoolClosed, match="open"):
        store.beat("w", [], None)
    with pytest.raises(PoolClosed, match="open"):
        await store.changed(store.version(), 60)
    await store.open()
    await store.open()
    assert (await store.size()).pending == 0
