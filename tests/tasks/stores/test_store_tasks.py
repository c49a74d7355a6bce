"""What a store does to a task, from its adding to its end."""

from math import inf

import msgspec
import pytest

from cuelight.errors import PoolClosed
from cuelight.tasks import Attempt, Bound, Claim, Counts, Finish, Limit, Query, Record, Store
from helpers.stores import START, Desk, HandClock


async def test_tasks_are_claimed_by_priority_deadline_and_arrival(desk: Desk) -> None:
    await desk.add("late", deadline=START + 90)
    await desk.add("none", "none2")
    await desk.add("soon", "soon2", deadline=START + 50)
    await desk.add("low", priority=3, deadline=START + 10)
    await desk.add("high", priority=1)
    assert await desk.claim_ids() == ["high", "soon", "soon2", "late", "none", "none2", "low"]


async def test_a_task_is_tried_again_in_its_old_place(desk: Desk) -> None:
    await desk.add("a", "b", "c")
    (first,) = await desk.claim()
    assert await desk.finish(first, "error") == "pending"
    assert await desk.claim_ids() == ["a", "b", "c"]


async def test_an_id_is_taken_once(desk: Desk) -> None:
    assert await desk.add("a") == ["added"]
    assert await desk.add("a", "b", "b") == ["duplicate", "added", "duplicate"]
    (lease,) = await desk.claim()
    assert await desk.add("a") == ["duplicate"]
    await desk.finish(lease)
    assert await desk.add("a") == ["duplicate"]  # its result is still kept


async def test_adding_again_after_a_lost_answer_adds_nothing(desk: Desk) -> None:
    records = [Record(id="a", type="t", nonce="1"), Record(id="b", type="t", nonce="1")]
    first = await desk.store.add(records)
    assert await desk.store.add(records) == first
    assert (await desk.store.size()).pending == 2
    (lease,) = await desk.claim()
    await desk.finish(lease)
    assert [one.outcome for one in await desk.store.add(records)] == ["added", "added"]
    assert (await desk.store.size()).pending == 1


async def test_a_task_without_a_nonce_is_taken_once_all_the_same(desk: Desk) -> None:
    assert await desk.add("a", nonce="") == ["added"]
    assert await desk.add("a", nonce="") == ["duplicate"]


async def test_a_delayed_task_is_not_claimed_before_its_time(desk: Desk, clock: HandClock) -> None:
    await desk.add("delayed", delay=10)
    await desk.add("due", due=START + 5)
    await desk.add("both", due=START + 5, delay=10)
    assert await desk.state("delayed") == "scheduled"
    assert (await desk.snapshot("both")).due == START + 15
    assert await desk.wake_at() == START + 5
    clock.advance(5)
    assert await desk.claim_ids() == ["due"]
    clock.advance(4.999)
    assert await desk.claim_ids() == []
    clock.advance(0.001)
    assert await desk.claim_ids() == ["delayed"]
    clock.advance(5)
    assert await desk.claim_ids() == ["both"]


async def test_a_unique_key_is_held_until_the_task_is_over(desk: Desk) -> None:
    await desk.add("a", unique="k")
    duplicate = await desk.store.add([Record(id="b", type="t", unique="k")])
    assert (duplicate[0].outcome, duplicate[0].id) == ("duplicate", "a")
    (lease,) = await desk.claim()
    assert await desk.add("b", unique="k") == ["duplicate"]
    await desk.finish(lease, "error", delay=5)
    assert await desk.add("b", unique="k") == ["duplicate"]
    await desk.store.cancel(["a"])
    assert await desk.add("b", unique="k") == ["added"]


@pytest.mark.parametrize("kind", ["done", "rejected", "cancelled"])
async def test_every_end_of_a_task_frees_its_unique_key(desk: Desk, kind: str) -> None:
    await desk.add("a", unique="k")
    (lease,) = await desk.claim()
    await desk.finish(lease, kind)
    assert await desk.add("b", unique="k") == ["added"]


async def test_a_unique_key_with_a_time_is_held_for_that_time(desk: Desk, clock: HandClock) -> None:
    await desk.add("a", unique="k", unique_for=60)
    (lease,) = await desk.claim()
    await desk.finish(lease)
    assert await desk.add("b", unique="k") == ["duplicate"]
    clock.advance(60)
    await desk.claim()
    assert await desk.add("b", unique="k") == ["added"]


async def test_a_bounded_queue_takes_no_more_than_it_may_hold(desk: Desk) -> None:
    bound = Bound(2)
    await desk.add("delayed", delay=10, bound=bound)
    assert await desk.add("a", "b", "c", bound=bound) == ["added", "full", "full"]
    await desk.claim()
    assert await desk.add("b", bound=bound) == ["added"]


async def test_a_bounded_queue_sheds_the_last_for_a_more_urgent_one(desk: Desk) -> None:
    bound = Bound(3, shed=True)
    await desk.add("low", "low2", priority=3, bound=bound)
    await desk.add("normal", bound=bound)
    assert await desk.add("low3", priority=3, bound=bound) == ["full"]
    assert await desk.add("high", priority=1, bound=bound) == ["added"]
    assert (await desk.snapshot("low2")).reason == "shed"
    assert await desk.add("high2", "high3", priority=1, bound=bound) == ["added", "added"]
    assert await desk.add("high4", priority=1, bound=bound) == ["full"]
    assert await desk.claim_ids() == ["high", "high2", "high3"]


async def test_a_closed_queue_takes_nothing(desk: Desk) -> None:
    await desk.store.control(closed=True)
    with pytest.raises(PoolClosed, match="closed to new tasks"):
        await desk.add("a")
    assert await desk.state("a") == ""
    assert (await desk.store.size()).closed
    await desk.store.control(closed=False)
    assert await desk.add("a") == ["added"]


async def test_a_paused_queue_gives_nothing_and_time_goes_on(desk: Desk, clock: HandClock) -> None:
    await desk.add("a", "b")
    await desk.claim()
    await desk.store.control(paused=True)
    clock.advance(15)
    assert await desk.claim_ids() == []
    assert (await desk.snapshot("a")).counts.crashes == 1
    assert (await desk.store.size()).paused
    await desk.store.control(paused=False)
    assert await desk.claim_ids() == ["a", "b"]


async def test_a_completed_task_keeps_its_result_for_its_time(desk: Desk, clock: HandClock) -> None:
    await desk.add("a", result_ttl=60.0)
    (lease,) = await desk.claim()
    assert await desk.finish(lease, result=b"42") == "completed"
    there = await desk.snapshot("a")
    assert (there.state, there.result, there.ended, there.due) == ("completed", b"42", START, START + 60)
    clock.advance(60)
    await desk.claim()
    assert await desk.state("a") == "completed"
    clock.advance(0.001)
    await desk.claim()
    assert await desk.state("a") == ""
    assert await desk.add("a") == ["added"]


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
    desk: Desk, kind: str, reason: str, budget: str, most: int
) -> None:
    await desk.store.add([msgspec.structs.replace(Record(id="a", type="t"), **{budget: most})])
    states: list[str] = []
    while not states or states[-1] == "pending":
        (lease,) = await desk.claim()
        assert lease.epoch == len(states) + 1
        states.append(await desk.finish(lease, kind))
    assert states == ["pending"] * (max(1, most) - 1) + ["dead_letter"]
    there = await desk.snapshot("a")
    assert there.reason == reason
    assert there.ended == START
    assert [attempt.kind for attempt in there.history] == [kind] * max(1, most)


async def test_being_limited_or_released_is_never_too_often(desk: Desk) -> None:
    await desk.add("a", max_retries=1, max_timeouts=1, max_crashes=1)
    for _ in range(4):
        for kind in ("rate_limited", "released"):
            (lease,) = await desk.claim()
            assert await desk.finish(lease, kind) == "pending"
    assert (await desk.snapshot("a")).counts == Counts(rate_limited=4, released=4)


async def test_a_retry_waits_for_its_delay(desk: Desk, clock: HandClock) -> None:
    await desk.add("a")
    (lease,) = await desk.claim()
    attempt = Attempt("error", "w", START, 1.5, "ValueError: no", "trace")
    exchange = await desk.exchange([Finish("a", lease.epoch, "error", delay=8, attempt=attempt)])
    assert (exchange.accepted, exchange.leases, exchange.wake_at) == (["scheduled"], [], START + 8)
    clock.advance(8)
    (lease,) = await desk.claim()
    assert lease.counts == Counts(errors=1)
    assert (await desk.snapshot("a")).history == (attempt,)


async def test_the_last_twenty_attempts_are_remembered(desk: Desk) -> None:
    await desk.add("a")
    for number in range(25):
        (lease,) = await desk.claim()
        await desk.finish(lease, "released", attempt=Attempt("released", elapsed=number))
    there = await desk.snapshot("a")
    assert [attempt.elapsed for attempt in there.history] == list(range(5, 25))
    assert there.counts.released == 25


async def test_a_rejected_task_is_a_dead_letter_at_once(desk: Desk) -> None:
    await desk.add("a", max_retries=9)
    (lease,) = await desk.claim()
    assert await desk.finish(lease, "rejected", attempt=Attempt("rejected", error="no")) == "dead_letter"
    there = await desk.snapshot("a")
    assert (there.reason, there.history[-1].error) == ("rejected", "no")


async def test_a_task_whose_payload_cannot_be_read_is_a_dead_letter_at_once(desk: Desk) -> None:
    await desk.add("a", max_retries=9)
    (lease,) = await desk.claim()
    assert await desk.finish(lease, "undecodable", delay=9.0) == "dead_letter"
    there = await desk.snapshot("a")
    assert (there.reason, there.counts.errors, [attempt.kind for attempt in there.history]) == (
        "undecodable",
        0,
        ["undecodable"],
    )
    assert await desk.finish(lease, "undecodable") == "dead_letter", "the answer may have been lost"


async def test_a_task_of_unknown_type_is_parked_until_somebody_knows_it(desk: Desk) -> None:
    await desk.add("a", "c", type="new")
    await desk.add("b", type="other", priority=3)
    for lease in await desk.claim(3):
        assert await desk.finish(lease, "unknown") == "parked"
    assert await desk.claim_ids() == []
    assert (await desk.snapshot("a")).counts == Counts()
    assert await desk.store.unpark(["new", "nobody"]) == 2
    assert await desk.claim_ids() == ["a", "c"]
    assert await desk.state("b") == "parked"


async def test_a_task_whose_deadline_has_passed_is_not_run(desk: Desk, clock: HandClock) -> None:
    await desk.add("a", deadline=START + 10)
    await desk.add("scheduled", deadline=START + 10, delay=60)
    await desk.add("parked", deadline=START + 10, priority=0)
    (lease,) = await desk.claim()
    await desk.finish(lease, "unknown")
    assert await desk.wake_at() == START + 10
    clock.advance(10)
    assert await desk.claim_ids() == []
    for task_id in ("a", "scheduled", "parked"):
        there = await desk.snapshot(task_id)
        assert (there.state, there.reason, there.ended) == ("dead_letter", "expired", START + 10)


async def test_a_deadline_does_not_end_what_is_under_way(desk: Desk, clock: HandClock) -> None:
    await desk.add("a", deadline=START + 10)
    (lease,) = await desk.claim()
    clock.advance(11)
    assert await desk.claim_ids() == []
    assert await desk.finish(lease) == "completed"


async def test_cancelling_ends_what_waits_and_tells_those_who_work(desk: Desk) -> None:
    await desk.add("running", "done")
    running, done = await desk.claim(2)
    await desk.finish(done)
    await desk.add("pending")
    await desk.add("delayed", delay=9)
    ids = ["running", "done", "pending", "delayed", "nobody"]
    outcomes = ["cancelling", "finished", "cancelled", "cancelled", "unknown"]
    assert await desk.store.cancel(ids) == outcomes
    assert await desk.store.cancel(ids) == outcomes  # the answer may have been lost
    beat = desk.store.beat("w", [("running", running.epoch)], None)
    assert (beat.lost, beat.cancelled) == ([], [("running", 1)])
    assert (await desk.snapshot("running")).cancelling
    assert await desk.claim_ids() == []


@pytest.mark.parametrize("kind", ["error", "timeout", "crash", "rate_limited", "released", "rejected", "unknown"])
async def test_a_task_that_is_being_cancelled_is_not_tried_again(desk: Desk, kind: str) -> None:
    await desk.add("a", max_retries=9, max_crashes=9)
    (lease,) = await desk.claim()
    await desk.store.cancel(["a"])
    assert await desk.finish(lease, kind) == "cancelled"
    assert not (await desk.snapshot("a")).cancelling


async def test_a_task_that_is_being_cancelled_may_be_done_first(desk: Desk) -> None:
    await desk.add("a")
    (lease,) = await desk.claim()
    await desk.store.cancel(["a"])
    assert await desk.finish(lease, "done") == "completed"


async def test_a_replayed_dead_letter_has_all_its_budgets_again(desk: Desk, clock: HandClock) -> None:
    await desk.add("a", "later", max_retries=1)
    (lease,) = await desk.claim()
    await desk.store.save("a", lease.epoch, checkpoint=b"half")
    await desk.finish(lease, "error")
    assert await desk.store.replay(["a", "later", "nobody"]) == [True, False, False]
    (again,) = await desk.claim()
    assert (again.record.id, again.epoch, again.counts, again.checkpoint) == ("a", 2, Counts(), b"half")
    there = await desk.snapshot("a")
    assert len(there.history) == 1
    assert (there.reason, there.ended) == ("", 0.0)


async def test_a_replayed_task_whose_deadline_has_passed_has_none(desk: Desk, clock: HandClock) -> None:
    await desk.add("a", deadline=START + 1)
    clock.advance(1)
    assert await desk.claim_ids() == []
    assert await desk.store.replay(["a"]) == [True]
    assert (await desk.snapshot("a")).record.deadline == inf
    assert await desk.claim_ids() == ["a"]


async def test_a_replayed_task_holds_its_unique_key_again(desk: Desk) -> None:
    await desk.add("a", unique="k")
    (lease,) = await desk.claim()
    await desk.finish(lease, "rejected")
    await desk.store.replay(["a"])
    assert await desk.add("b", unique="k") == ["duplicate"]


async def test_a_payload_can_be_edited_while_nobody_has_worked_on_it(desk: Desk) -> None:
    await desk.add("a", "b", payload=b"old", max_retries=1)
    assert await desk.store.edit("b", b"new")
    (lease,) = await desk.claim()
    assert not await desk.store.edit("a", b"new")
    await desk.finish(lease, "error")
    assert await desk.store.edit("a", b"newer")
    await desk.store.replay(["a"])
    assert [lease.record.payload for lease in await desk.claim(2)] == [b"newer", b"new"]
    assert not await desk.store.edit("nobody", b"")


async def test_only_what_is_over_can_be_purged(desk: Desk) -> None:
    await desk.add("dead", "done", "pending", "running")
    dead, done = await desk.claim(2)
    await desk.finish(dead, "rejected")
    await desk.finish(done)
    await desk.store.cancel(["pending"])
    await desk.claim()
    assert await desk.store.purge(["dead", "done", "pending", "running", "nobody"]) == 3
    assert await desk.state("running") == "in_flight"
    size = await desk.store.size()
    assert (size.in_flight, size.completed, size.dead_letter, size.cancelled) == (1, 0, 0, 0)


async def test_progress_and_checkpoints_are_kept_while_the_attempt_is_valid(desk: Desk) -> None:
    await desk.add("a")
    (lease,) = await desk.claim()
    assert await desk.store.save("a", lease.epoch, progress=b"1")
    assert await desk.store.save("a", lease.epoch, checkpoint=b"c")
    there = await desk.snapshot("a")
    assert (there.progress, there.checkpoint) == (b"1", b"c")
    await desk.finish(lease, "error")
    assert not await desk.store.save("a", lease.epoch, progress=b"2")
    (again,) = await desk.claim()
    assert again.checkpoint == b"c"
    assert not await desk.store.save("a", lease.epoch, progress=b"2")
    await desk.finish(again)
    assert (await desk.snapshot("a")).checkpoint is None
    assert not await desk.store.save("nobody", 1, progress=b"")


async def test_tasks_are_found_by_state_type_reason_and_time(desk: Desk, clock: HandClock) -> None:
    await desk.add("a", "b", type="x")
    await desk.add("c", "d", "e", type="y")
    for lease, kind in zip(await desk.claim(3), ["rejected", "unknown", "rejected"], strict=True):
        clock.advance(1)
        await desk.finish(lease, kind)

    async def found(**fields: object) -> str:
        return "".join([there.record.id for there in await desk.store.find(_query(**fields))])

    await desk.claim()
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


async def test_bad_input_is_refused_where_it_is_given(desk: Desk) -> None:
    limits = (Limit("k", rate=1), Limit("k", rate=2))
    with pytest.raises(ValueError, match="a different key"):
        await desk.add("fine", "a", limits=limits)
    with pytest.raises(ValueError, match="give the task an id"):
        await desk.add("")
    with pytest.raises(ValueError, match="without NUL"):
        await desk.add("a\0b")
    with pytest.raises(ValueError, match="not NaN"):
        await desk.add("a", deadline=float("nan"))
    with pytest.raises(ValueError, match=r"result_ttl=-1\.0"):
        await desk.add("a", result_ttl=-1.0)
    await desk.add("a")
    (lease,) = await desk.claim()
    with pytest.raises(ValueError, match="the kinds are done"):
        await desk.finish(lease, "lost")
    with pytest.raises(ValueError, match="give seconds"):
        await desk.finish(lease, "error", delay=-1.0)
    with pytest.raises(ValueError, match="more than 0"):
        await desk.store.exchange([], Claim("w", "n", 1, 0.0))
    with pytest.raises(ValueError, match="more than 0"):
        desk.store.beat("w", [], 0.0)
    with pytest.raises(ValueError, match="must have this key"):
        await desk.store.set_limit(Limit("k"), "other")
    with pytest.raises(ValueError, match="give seconds"):
        await desk.store.pause_limit("k", -1.0)
    assert await desk.state("fine") == ""
    assert await desk.state("a") == "in_flight"


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
