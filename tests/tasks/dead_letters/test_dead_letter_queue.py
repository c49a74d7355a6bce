"""Dead letters kept in memory: adding, choosing, editing, replaying and purging."""

from __future__ import annotations

import threading
import time
from typing import Any

import anyio
import pytest

from cuelight import Actor, ActorNotFound, ActorSystem, Message, on
from cuelight.errors import PoolClosed, TaskNotFound
from cuelight.tasks import Attempt, Counts, DeadLetterEntry, DeadLetterQueue


def failed(number: int = 0) -> ZeroDivisionError:
    try:
        _ = 1 // 0
    except ZeroDivisionError as error:
        error.args = (f"number {number}",)
        return error
    raise AssertionError


async def filled(count: int, **options: Any) -> DeadLetterQueue:
    dlq = DeadLetterQueue(**options)
    for number in range(count):
        kind = "even" if number % 2 == 0 else "odd"
        await dlq.add(number, error=failed(number), task_type=kind, letter_id=f"l{number}")
    return dlq


def ignore(letter: DeadLetterEntry) -> None:
    """A place where letters may go."""


def ids(letters: list[DeadLetterEntry]) -> list[str]:
    return [letter.id for letter in letters]


async def test_a_dead_letter_queue_made_plainly_keeps_what_failed_with_reason_and_traceback() -> None:
    dlq = DeadLetterQueue()
    before = time.time()
    letter = await dlq.add({"url": "x"}, error=failed(7), task_type="fetch", source="pool-1", reason="gave up")
    assert await dlq.get(letter.id) == letter
    assert (letter.payload, letter.task_type, letter.source, letter.reason) == (
        {"url": "x"},
        "fetch",
        "pool-1",
        "gave up",
    )
    assert letter.error == "ZeroDivisionError: number 7"
    assert "in failed" in letter.traceback
    assert before <= letter.dead_at <= time.time()
    assert letter.counts == Counts(errors=1)
    assert letter.history == (
        Attempt(kind="error", worker="pool-1", at=letter.dead_at, error=letter.error, traceback=letter.traceback),
    )
    bare = await dlq.add("x")
    assert (bare.error, bare.traceback, bare.history, bare.reason) == ("", "", (), "failed")
    text = await dlq.add("x", error="told so", history=[Attempt(kind="timeout"), Attempt(kind="error")])
    assert (text.error, text.traceback, len(text.history), text.counts) == ("told so", "", 2, Counts(errors=2))
    assert await dlq.count() == 3


async def test_letters_are_chosen_by_conditions_that_must_all_hold() -> None:
    dlq = await filled(6)
    await dlq.add(6, reason="expired", task_type="even", letter_id="l6")
    assert ids(await dlq.list(task_type="even")) == ["l0", "l2", "l4", "l6"]
    assert ids(await dlq.list(task_type="even", reason="failed", error="number 2")) == ["l2"]
    middle = (await dlq.get("l3")).dead_at
    assert ids(await dlq.list(since=middle)) == ["l3", "l4", "l5", "l6"]
    assert ids(await dlq.list(before=middle)) == ["l0", "l1", "l2"]
    assert await dlq.count(reason="expired") == 1
    assert await dlq.count(reason="unheard of") == 0


async def test_pages_follow_each_other_by_the_sequence_of_the_last_letter() -> None:
    dlq = await filled(250)
    first = await dlq.list()
    assert len(first) == 100
    second = await dlq.list(after=first[-1].sequence, limit=3, task_type="odd")
    assert ids(second) == ["l101", "l103", "l105"]
    assert [letter.payload async for letter in dlq] == list(range(250))
    async for letter in dlq:
        assert letter.payload == 0
        break


async def test_what_is_crowded_out_is_counted() -> None:
    dlq = await filled(7, keep=3)
    assert ids(await dlq.list()) == ["l4", "l5", "l6"]
    assert dlq.dropped == 4
    with pytest.raises(TaskNotFound, match="no dead letter 'l0'"):
        await dlq.get("l0")


async def test_a_letter_is_replayed_to_a_function_and_is_gone_then() -> None:
    dlq = await filled(3)
    got: list[Any] = []
    await dlq.replay("l1", to=lambda letter: got.append(letter.payload))

    async def take(letter: DeadLetterEntry) -> None:
        await anyio.lowlevel.checkpoint()
        got.append(letter.payload)

    await dlq.replay("l2", to=take)
    assert got == [1, 2]
    assert ids(await dlq.list()) == ["l0"]
    with pytest.raises(TaskNotFound, match="no dead letter 'l1'"):
        await dlq.replay("l1", to=take)


async def test_a_letter_whose_replay_fails_stays_with_the_failure_in_its_history() -> None:
    dlq = await filled(1)

    def fail(letter: DeadLetterEntry) -> None:
        raise LookupError("still broken")

    with pytest.raises(LookupError, match="still broken"):
        await dlq.replay("l0", to=fail)
    letter = await dlq.get("l0")
    assert (letter.error, letter.counts, len(letter.history)) == ("LookupError: still broken", Counts(errors=2), 2)
    assert letter.history[1].worker == "replay"
    for _ in range(30):
        assert (await dlq.replay_all(to=fail)).failed == 1
    assert len((await dlq.get("l0")).history) == 20


async def test_a_replay_that_is_cancelled_leaves_the_letter() -> None:
    dlq = await filled(1)
    begun = anyio.Event()

    async def hang(letter: DeadLetterEntry) -> None:
        begun.set()
        await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:

        async def replay() -> None:
            await dlq.replay("l0", to=hang)

        tasks.start_soon(replay)
        await begun.wait()
        with pytest.raises(TaskNotFound, match="another caller is replaying the dead letter l0 now"):
            await dlq.replay("l0", to=hang)
        assert (await dlq.replay_all(to=hang)).errors == {
            "l0": "TaskNotFound: another caller is replaying the dead letter l0 now"
        }
        tasks.cancel_scope.cancel()
    await dlq.replay("l0", to=ignore)
    assert await dlq.count() == 0


async def test_a_letter_is_edited_before_it_is_replayed() -> None:
    got: list[Any] = []

    def take(letter: DeadLetterEntry) -> None:
        got.append(letter.payload)

    dlq = await filled(2, to=take)
    edited = await dlq.edit("l1", {"fixed": True})
    assert (edited.payload, edited.id, edited.error) == ({"fixed": True}, "l1", "ZeroDivisionError: number 1")
    await dlq.replay("l1")
    assert got == [{"fixed": True}]
    with pytest.raises(TaskNotFound):
        await dlq.edit("l1", None)


async def test_replay_all_takes_those_that_are_there_and_says_what_became_of_them() -> None:
    dlq = await filled(5)
    got: list[str] = []

    async def take(letter: DeadLetterEntry) -> None:
        got.append(letter.id)
        await dlq.add(letter.payload, task_type="odd")  # it fails again: for the next time
        if letter.id == "l3":
            raise LookupError("not this one")

    assert (await dlq.replay_all(to=take, dry_run=True, task_type="odd")).would_replay == 2
    assert got == []
    report = await dlq.replay_all(to=take, task_type="odd")
    assert (report.replayed, report.would_replay, report.failed) == (1, 0, 1)
    assert report.errors == {"l3": "LookupError: not this one"}
    assert got == ["l1", "l3"]
    assert (await dlq.replay_all(to=take, limit=2)).replayed == 2
    assert got == ["l1", "l3", "l0", "l2"]


async def test_purge_needs_a_condition_or_everything() -> None:
    dlq = await filled(250)
    with pytest.raises(ValueError, match="give a condition, or everything=True"):
        await dlq.purge()
    assert await dlq.count() == 250
    assert await dlq.purge(task_type="odd") == 125
    assert await dlq.remove("l0")
    assert not await dlq.remove("l0")
    assert await dlq.purge(everything=True) == 124
    assert await dlq.count() == 0


class Fetch(Message):
    url: str


class Fetcher(Actor[Fetch]):
    got: list[str]

    def __init__(self, got: list[str]) -> None:
        self.got = got

    @on(Fetch)
    def fetch(self, message: Fetch) -> None:
        self.got.append(message.url)


async def test_letters_of_anybody_can_go_to_an_actor() -> None:
    got: list[str] = []
    async with ActorSystem() as system:
        ref = await system.spawn(Fetcher, got)
        dlq = DeadLetterQueue(to=ref)
        await dlq.add(Fetch("a"), letter_id="a")
        await dlq.add(Fetch("b"), letter_id="b")
        await dlq.replay("a")
        await ref.stop()
        with pytest.raises(ActorNotFound, match="has ended: give the ref of a live actor"):
            await dlq.replay("b")
        assert ids(await dlq.list()) == ["b"]
    assert got == ["a"]


async def test_what_makes_no_sense_is_refused_with_the_way_out() -> None:
    dlq = await filled(1)
    anything: Any = dlq
    with pytest.raises(ValueError, match=r"name a destination in replay\(..., to=...\) or DeadLetterQueue\(to=...\)"):
        await dlq.replay("l0")
    with pytest.raises(ValueError, match="name a destination in replay"):
        await dlq.replay_all(dry_run=True)
    with pytest.raises(TypeError, match="to='nowhere': give a function, or the ref of an actor"):
        await anything.replay("l0", to="nowhere")
    with pytest.raises(
        TypeError, match=r"unknown field `reasn`.*the conditions are reason, task_type, error, since, before"
    ):
        await anything.purge(reasn="failed")
    with pytest.raises(TypeError, match="are not valid conditions on dead letters"):
        await anything.list(since="yesterday")
    with pytest.raises(ValueError, match="limit=0: give 1 or more"):
        await dlq.list(limit=0)
    with pytest.raises(ValueError, match="rate=0: give more than 0, or None"):
        await dlq.replay_all(to=print, rate=0)
    with pytest.raises(ValueError, match="limit=-1: give more than 0, or None"):
        await dlq.replay_all(to=print, limit=-1)
    with pytest.raises(ValueError, match="keep=0: give 1 or more"):
        DeadLetterQueue(keep=0)
    with pytest.raises(ValueError, match="id='l0': another dead letter has this identifier"):
        await dlq.add(letter_id="l0")
    assert await dlq.count() == 1


async def test_a_dead_letter_queue_in_an_async_block_keeps_what_it_had() -> None:
    dlq = await filled(1)
    async with dlq as same:
        assert same is dlq
        assert await dlq.count() == 1
    async with dlq:
        assert await dlq.count() == 1


def test_in_a_with_block_the_methods_block_and_the_letters_outlive_it() -> None:
    dlq = DeadLetterQueue(keep=50)
    with dlq as blocking:
        threads = [
            threading.Thread(target=lambda: [blocking.add(number, error=failed()) for number in range(15)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (blocking.count(), blocking.dropped) == (50, 10)
        assert blocking.count(error="number") == 50
        assert len(list(blocking)) == 50
        first = blocking.list(limit=1)[0]
        assert blocking.get(first.id) == first
        assert blocking.edit(first.id, -1).payload == -1
        got: list[Any] = []
        blocking.replay(first.id, to=lambda letter: got.append(letter.payload))
        assert got == [-1]
        assert blocking.replay_all(to=lambda letter: got.append(letter.payload), limit=9).replayed == 9
        assert blocking.remove(blocking.list(limit=1)[0].id)
        with pytest.raises(TaskNotFound):
            blocking.get(first.id)
        with pytest.raises(PoolClosed, match="in use by another `with` block"):
            dlq.__enter__()
    with pytest.raises(PoolClosed):
        blocking.count()
    with dlq as blocking:
        assert blocking.purge(reason="failed") == 39


async def test_letters_that_somebody_removes_while_all_are_replayed_are_named() -> None:
    dlq = await filled(3)

    async def take(letter: DeadLetterEntry) -> None:
        await dlq.remove("l2")

    report = await dlq.replay_all(to=take)
    assert (report.replayed, report.failed) == (2, 1)
    assert "l2" in report.errors["l2"]
    assert await dlq.count() == 0


async def test_an_iterator_over_letters_can_be_kept() -> None:
    dlq = await filled(3)
    letters = aiter(dlq)
    assert (await anext(letters)).id == "l0"
    assert [letter.id async for letter in letters] == ["l1", "l2"]
