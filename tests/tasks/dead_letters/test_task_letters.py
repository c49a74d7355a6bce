"""The dead letters of a task store."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Coroutine, Sequence
from math import inf
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest

from cuelight.errors import PoolClosed, StoreUnavailable, TaskNotFound
from cuelight.tasks import (
    Attempt,
    Claim,
    Counts,
    DeadLetterQueue,
    Finish,
    MemoryStore,
    Query,
    Record,
    Snapshot,
    SQLiteStore,
    Store,
    TaskQueue,
)
from cuelight.tasks._functions._values import encode
from helpers.stores import STORES

R = TypeVar("R")

NOW = 1_000_000.0


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest, clock: Clock, tmp_path: Path) -> AsyncIterator[Store]:
    made = STORES[request.param](tmp_path, clock)
    await made.open()
    yield made
    await made.close()


async def bury(
    store: Store, *ids: str, task_type: str = "work", kind: str = "rejected", error: str = "ValueError: no"
) -> None:
    """Have tasks fail."""
    records = [Record(id=name, type=task_type, nonce=name, payload=encode({"id": name}), max_retries=1) for name in ids]
    await store.add(records)
    leases = (await store.exchange([], Claim("w1", f"claim {ids[0]} {store.now()}", len(ids), 15))).leases
    assert [lease.record.id for lease in leases] == list(ids)
    attempt = Attempt(kind=kind, worker="w1", at=store.now(), error=error, traceback="Traceback ...")
    done = await store.exchange([Finish(lease.record.id, lease.epoch, kind, attempt=attempt) for lease in leases])
    assert set(done.accepted) == {"dead_letter"}


async def test_tasks_that_were_given_up_are_shown_with_reason_error_and_history(store: Store) -> None:
    await bury(store, "a")
    await bury(store, "b", task_type="mail", kind="error")
    await store.add([Record(id="alive", type="work", nonce="n")])
    dlq = DeadLetterQueue(store)
    first, second = await dlq.list()
    assert (first.id, first.task_type, first.payload, first.reason) == ("a", "work", {"id": "a"}, "rejected")
    assert (first.source, first.error, first.traceback) == ("w1", "ValueError: no", "Traceback ...")
    assert (second.reason, second.counts) == ("errors", Counts(errors=1))
    assert [attempt.kind for attempt in second.history] == ["error"]
    assert first.dead_at == NOW
    assert await dlq.get("b") == second
    assert await dlq.count() == 2
    assert dlq.dropped == 0
    with pytest.raises(TaskNotFound, match="no dead letter 'alive'"):
        await dlq.get("alive")
    with pytest.raises(TaskNotFound, match="no dead letter 'nobody'"):
        await dlq.get("nobody")


async def test_dead_tasks_are_chosen_by_conditions(store: Store, clock: Clock) -> None:
    await bury(store, "a", "b")
    clock.now += 10
    await bury(store, "c", task_type="mail", error="OSError: net")
    await bury(store, "d", kind="error", error="OSError: disk")
    dlq = DeadLetterQueue(store)

    async def ids(**conditions: object) -> list[str]:
        chosen: dict[str, object] = conditions
        return [letter.id for letter in await dlq.list(**chosen)]  # type: ignore[arg-type]  # as users may

    assert await ids(task_type="mail") == ["c"]
    assert await ids(reason="errors") == ["d"]
    assert await ids(error="OSError") == ["c", "d"]
    assert await ids(since=NOW + 1) == ["c", "d"]
    assert await ids(before=NOW + 1) == ["a", "b"]
    assert await ids(since=NOW + 1, task_type="work") == ["d"]
    assert await dlq.count(error="OSError") == 2


async def test_dead_tasks_are_paged_and_the_search_goes_beyond_the_first_page(store: Store) -> None:
    names = [f"t{number:03}" for number in range(230)]
    await bury(store, *names)
    await bury(store, "special", error="OSError: net")
    dlq = DeadLetterQueue(store)
    assert [letter.id async for letter in dlq] == [*names, "special"]
    assert [letter.id for letter in await dlq.list(error="OSError", limit=1)] == ["special"]
    page = await dlq.list(limit=150)
    assert len(page) == 150
    assert [letter.id for letter in await dlq.list(after=page[-1].sequence, limit=2)] == ["t150", "t151"]
    assert await dlq.purge(error="ValueError") == 230
    assert await dlq.count() == 1


async def test_a_dead_task_is_edited_and_replayed_with_its_history(store: Store) -> None:
    await bury(store, "a", kind="error")
    dlq = DeadLetterQueue(store)
    assert (await dlq.edit("a", {"fixed": [1]})).payload == {"fixed": [1]}
    with pytest.raises(TypeError, match="payload"):
        await dlq.edit("a", object())
    await dlq.replay("a")
    assert await dlq.count() == 0
    with pytest.raises(TaskNotFound):
        await dlq.replay("a")
    with pytest.raises(TaskNotFound):
        await dlq.edit("a", 1)
    [snapshot] = await store.get(["a"])
    assert snapshot is not None
    assert (snapshot.state, snapshot.counts) == ("pending", Counts())
    assert [attempt.error for attempt in snapshot.history] == ["ValueError: no"]
    assert snapshot.record.payload == encode({"fixed": [1]})


async def test_replay_all_gives_each_task_back_once_also_those_that_fail_again(store: Store, clock: Clock) -> None:
    await bury(store, *[f"t{number:03}" for number in range(150)])
    await bury(store, "mail", task_type="mail")
    dlq = DeadLetterQueue(store)
    assert (await dlq.replay_all(dry_run=True)).would_replay == 151
    assert (await dlq.replay_all(task_type="mail")).replayed == 1
    assert (await dlq.replay_all(limit=120)).replayed == 120
    clock.now += 1
    assert (await dlq.replay_all()).replayed == 30
    assert (await store.size()).pending == 151
    assert (await dlq.replay_all()).replayed == 0


async def test_a_task_that_fails_again_while_all_are_replayed_waits_for_the_next_time(
    store: Store, clock: Clock
) -> None:
    await bury(store, "a", "b")
    dlq = DeadLetterQueue(store)
    given: list[str] = []

    async def fail() -> None:
        while len(given) < 2:
            clock.now += 0.01
            for lease in (await store.exchange([], Claim("w2", f"n{clock.now}", 1, 15))).leases:
                given.append(lease.record.id)
                await store.exchange([Finish(lease.record.id, lease.epoch, "rejected")])
            await anyio.sleep(0.001)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fail)
        assert (await dlq.replay_all(rate=200)).replayed == 2
    assert sorted(given) == ["a", "b"]
    assert await dlq.count() == 2


async def test_a_dead_task_can_go_to_a_function_instead(store: Store) -> None:
    await bury(store, "a", "b")
    got: list[object] = []
    dlq = DeadLetterQueue(store, to=lambda letter: got.append(letter.payload))
    await dlq.replay("a")
    assert got == [{"id": "a"}]
    assert await store.get(["a"]) == [None]

    def fail(letter: object) -> None:
        raise LookupError("no")

    assert (await dlq.replay_all(to=fail)).errors == {"b": "LookupError: no"}
    assert [letter.error for letter in await dlq.list()] == ["ValueError: no"]


async def test_forgetting_a_dead_task_does_not_touch_those_that_are_none(store: Store) -> None:
    await bury(store, "a", "b")
    await store.add([Record(id="done", type="work", nonce="n")])
    [lease] = (await store.exchange([], Claim("w1", "claim", 1, 15))).leases
    await store.exchange([Finish("done", lease.epoch)])
    dlq = DeadLetterQueue(store)
    assert not await dlq.remove("done")
    assert await dlq.remove("a")
    assert await dlq.purge(everything=True) == 1
    [snapshot] = await store.get(["done"])
    assert snapshot is not None


async def test_a_payload_that_no_queue_wrote_is_shown_as_bytes(store: Store) -> None:
    await store.add([Record(id="a", type="work", nonce="a", payload=b"\xc1 no msgpack")])
    [lease] = (await store.exchange([], Claim("w1", "claim", 1, 15))).leases
    await store.exchange([Finish("a", lease.epoch, "rejected")])
    [letter] = await DeadLetterQueue(store).list()
    assert (letter.payload, letter.error) == (b"\xc1 no msgpack", "")


async def test_an_expired_task_is_a_dead_letter_without_an_error(store: Store, clock: Clock) -> None:
    await store.add([Record(id="late", type="work", nonce="n", deadline=NOW + 5)])
    clock.now += 10
    await store.exchange([], Claim("w1", "claim", 1, 15))
    [letter] = await DeadLetterQueue(store).list(reason="expired")
    assert (letter.id, letter.error, letter.source) == ("late", "", "")


async def test_other_failures_do_not_mix_with_the_dead_tasks_of_a_store(store: Store) -> None:
    with pytest.raises(TypeError, match=r"add others to a DeadLetterQueue\(\) of their own"):
        await DeadLetterQueue(store).add("x")


async def test_the_end_of_a_block_closes_the_store_unless_others_use_it(store: Store) -> None:
    await bury(store, "a")
    async with DeadLetterQueue(store, owns_store=False) as dlq:
        assert await dlq.count() == 1
    assert (await store.size()).dead_letter == 1
    async with TaskQueue(store) as queue:
        async with DeadLetterQueue(store) as dlq:
            assert await dlq.count() == 1
        assert await queue.dead_letters.count() == 1
    async with DeadLetterQueue(store) as dlq:
        assert await dlq.count() == 1
    with pytest.raises(PoolClosed):
        await store.size()
    with pytest.raises(PoolClosed):
        await dlq.count()
    with pytest.raises(PoolClosed):
        await DeadLetterQueue(store, owns_store=False).count()
    async with dlq:  # once more
        assert await dlq.count() == 1


class Flaky(MemoryStore):
    """A store whose k-th answer is lost: before the call took effect, or after."""

    def __init__(self, failing: int, *, after: bool) -> None:
        super().__init__()
        self.failing, self.after, self.calls = -1, after, 0
        self.armed = failing

    async def find(self, query: Query) -> list[Snapshot]:
        return await self.answer(super().find(query))

    async def replay(self, ids: Sequence[str]) -> list[bool]:
        return await self.answer(super().replay(ids))

    async def purge(self, ids: Sequence[str]) -> int:
        return await self.answer(super().purge(ids))

    async def answer(self, call: Coroutine[Any, Any, R]) -> R:
        self.calls += 1
        if self.calls != self.failing:
            return await call
        if self.after:
            await call
        else:
            call.close()
        raise StoreUnavailable("no answer")

    def arm(self) -> None:
        self.failing = self.calls + self.armed


@pytest.mark.parametrize("after", [False, True])
async def test_a_replay_or_a_purge_whose_answer_was_lost_is_done_by_calling_it_again(after: bool) -> None:
    for failing in range(1, 6):
        store = Flaky(failing, after=after)
        await bury(store, *[f"t{number:03}" for number in range(150)])
        await bury(store, "other", task_type="other")
        dlq = DeadLetterQueue(store)
        store.arm()
        for _ in range(2):
            try:
                await dlq.replay_all(task_type="work")
                await dlq.purge(everything=True)
                break
            except StoreUnavailable:
                continue
        size = await store.size()
        assert (size.pending, size.dead_letter) == (150, 0)
        assert store.calls >= failing


def test_blocking_code_looks_into_the_file_of_a_queue(tmp_path: Path) -> None:
    path = tmp_path / "tasks.db"

    async def fill() -> None:
        store = SQLiteStore(path)
        await store.open()
        await bury(store, "a", "b")
        await store.close()

    anyio.run(fill)
    dlq = DeadLetterQueue(SQLiteStore(path))
    with dlq as blocking:
        assert [letter.id for letter in blocking] == ["a", "b"]
        blocking.replay("a")
        assert blocking.replay_all(dry_run=True, before=inf).would_replay == 1
    with dlq as blocking:  # once more
        assert blocking.count() == 1


REPLAYER = """
import sys, anyio
from cuelight.tasks import DeadLetterQueue, SQLiteStore

async def main():
    async with DeadLetterQueue(SQLiteStore(sys.argv[1])) as dlq:
        async for letter in dlq:
            await dlq.replay(letter.id)
            print(letter.id, flush=True)

anyio.run(main)
"""


def test_a_replay_that_was_killed_has_lost_nothing_and_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "tasks.db"
    names = [f"t{number:03}" for number in range(300)]

    async def fill() -> None:
        store = SQLiteStore(path)
        await store.open()
        await bury(store, *names)
        await store.close()

    anyio.run(fill)
    with subprocess.Popen([sys.executable, "-c", REPLAYER, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        replayed = [process.stdout.readline().strip() for _ in range(20)]
        process.kill()
        replayed += process.stdout.read().split()

    async def look() -> tuple[list[str | None], int, int]:
        async with DeadLetterQueue(store := SQLiteStore(path)) as dlq:
            states = [None if one is None else one.state for one in await store.get(replayed)]
            dead = await dlq.count()
            return states, dead, (await dlq.replay_all()).replayed

    states, dead, rest = anyio.run(look)
    assert set(states) == {"pending"}
    assert len(names) - len(replayed) - 1 <= dead == rest <= len(names) - len(replayed)
