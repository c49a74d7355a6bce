"""Adds of many producers travel together, and none is lost, doubled or answered with another's answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import anyio
import pytest

from cuelight.errors import PoolClosed, StoreUnavailable
from cuelight.redis._tasks._store import MAX_RECORDS, AddBatcher

FREE = (-1, False)


class Counterpart:
    """What sends, in a test: it waits until it is let, and remembers what came."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.there: Counter[str] = Counter()
        self.let = anyio.Semaphore(0)
        self.fails: list[Exception] = []

    async def send(self, bounds: tuple[int, bool], cards: list[Any], blobs: list[bytes]) -> Sequence[Any]:
        assert [blob.decode() for blob in blobs] == cards
        self.calls.append(cards)
        self.there.update(cards)
        await self.let.acquire()
        if self.fails:
            raise self.fails.pop(0)
        return [value for card in cards for value in ("added", card)]


async def add(batcher: AddBatcher, names: str, into: dict[str, Any], bounds: tuple[int, bool] = FREE) -> None:
    try:
        into[names] = await batcher.add(bounds, list(names), [name.encode() for name in names])
    except Exception as error:
        into[names] = error


async def test_adds_that_are_made_while_one_is_under_way_travel_together() -> None:
    counterpart, answers = Counterpart(), dict[str, Any]()
    batcher = AddBatcher(counterpart.send)
    async with anyio.create_task_group() as group:
        for names in ("a", "bc", "d", "e"):
            group.start_soon(add, batcher, names, answers)
            await anyio.wait_all_tasks_blocked()
        counterpart.let.release()
        counterpart.let.release()
    assert counterpart.calls == [["a"], ["b", "c", "d", "e"]]
    assert answers == {
        "a": ["added", "a"],
        "bc": ["added", "b", "added", "c"],
        "d": ["added", "d"],
        "e": ["added", "e"],
    }


async def test_adds_under_another_bound_or_too_many_go_by_themselves() -> None:
    counterpart, answers = Counterpart(), dict[str, Any]()
    batcher = AddBatcher(counterpart.send)
    many = "x" * (MAX_RECORDS - 1)
    async with anyio.create_task_group() as group:
        for names, bounds in (("a", FREE), ("b", FREE), ("c", (5, True)), ("d", FREE), (many, FREE), ("e", FREE)):
            group.start_soon(add, batcher, names, answers, bounds)
            await anyio.wait_all_tasks_blocked()
        for _ in range(6):
            counterpart.let.release()
    assert [len(call) for call in counterpart.calls] == [1, 1, 1, MAX_RECORDS, 1]
    assert all(answers[names][1] == names[0] for names in answers)


@pytest.mark.parametrize("error", [StoreUnavailable("away"), PoolClosed("closed")])
async def test_an_error_is_told_to_all_that_travelled_together_and_to_no_other(error: Exception) -> None:
    counterpart, answers = Counterpart(), dict[str, Any]()
    batcher = AddBatcher(counterpart.send)
    async with anyio.create_task_group() as group:
        for names in ("a", "b", "c"):
            group.start_soon(add, batcher, names, answers)
            await anyio.wait_all_tasks_blocked()
        counterpart.let.release()
        await anyio.wait_all_tasks_blocked()
        group.start_soon(add, batcher, "d", answers)
        await anyio.wait_all_tasks_blocked()
        counterpart.fails.append(error)
        counterpart.let.release()
        counterpart.let.release()
    assert answers["a"] == ["added", "a"]
    assert [type(answers[name]) for name in "bc"] == [type(error)] * 2
    assert answers["b"] is not answers["c"] or not isinstance(error, StoreUnavailable)
    assert answers["d"] == ["added", "d"]


@pytest.mark.parametrize("steps", range(8))
@pytest.mark.parametrize("victim", range(4))
async def test_an_add_that_is_cancelled_costs_no_other_its_answer(victim: int, steps: int) -> None:
    counterpart, answers = Counterpart(), dict[str, Any]()
    batcher = AddBatcher(counterpart.send)
    scopes = [anyio.CancelScope() for _ in range(4)]

    async def scoped(number: int) -> None:
        with scopes[number]:
            await add(batcher, "abcd"[number], answers)

    async with anyio.create_task_group() as group:
        for number in range(4):
            group.start_soon(scoped, number)
            await anyio.wait_all_tasks_blocked()
        for step in range(8):
            if step == steps:
                scopes[victim].cancel()
            if step % 2:
                counterpart.let.release()
            if step % 3:
                await anyio.wait_all_tasks_blocked()
    others = {name for number, name in enumerate("abcd") if number != victim}
    assert others <= set(answers)
    assert all(answers[name] == ["added", name] for name in answers)
    assert await _is_free(batcher, counterpart)


async def _is_free(batcher: AddBatcher, counterpart: Counterpart) -> bool:
    """Whether the next add goes at once."""
    counterpart.let.release()
    with anyio.fail_after(1):
        return await batcher.add(FREE, ["z"], [b"z"]) == ["added", "z"]
