"""`Rejected` and `RateLimited` in work of async pools, bare and in groups. Time is virtual."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest

from cuelight.errors import PoolFull, RateLimited, Rejected, TaskCancelled
from cuelight.pools import AsyncWorkerPool
from cuelight.testing import VIRTUAL_BACKENDS, virtual_backend
from helpers import Backend


@pytest.fixture(params=VIRTUAL_BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    return virtual_backend(request.param)


def bare(error: Exception) -> Exception:
    return error


def nested(error: Exception) -> Exception:
    return ExceptionGroup("outer", [ExceptionGroup("inner", [error])])


@pytest.mark.parametrize("wrap", [bare, nested])
async def test_a_rejection_is_final_also_in_groups(wrap: Callable[[Exception], Exception]) -> None:
    calls: list[int] = []
    rejected = Rejected("bad card")

    async def refuse(number: int) -> None:
        calls.append(number)
        raise wrap(rejected)

    async with AsyncWorkerPool(1, retries=5) as pool:
        assert (await pool.submit(refuse, 1)).error is rejected
        assert (await pool.map(refuse, [2])).errors == [rejected]
    assert calls == [1, 2]


async def test_a_group_with_anything_else_is_an_ordinary_failure() -> None:
    mixed = ExceptionGroup("mixed", [Rejected("bad card"), ValueError("bad")])
    calls: list[int] = []

    async def fail() -> None:
        calls.append(1)
        raise mixed

    async with AsyncWorkerPool(1, retries=2) as pool:
        assert (await pool.submit(fail)).error is mixed
    assert len(calls) == 3


@pytest.mark.parametrize("wrap", [bare, nested])
@pytest.mark.parametrize("kind", [None, "thread"])
async def test_a_rate_limit_is_no_attempt_and_holds_no_worker(
    wrap: Callable[[Exception], Exception], kind: Any
) -> None:
    answers: Iterator[float | None] = iter([5, 3, 0, None])

    def plainly(number: int) -> int:
        delay = next(answers)
        if delay is not None:
            raise wrap(RateLimited(delay))
        return number

    async def limited(number: int) -> int:
        await anyio.lowlevel.checkpoint()
        return plainly(number)

    async with AsyncWorkerPool(1, kind=kind) as pool:
        began = anyio.current_time()
        task = pool.submit(plainly if kind else limited, 7)
        assert (await pool.submit(abs, -1)).result == 1  # meanwhile
        assert (await task).result == 7
        assert anyio.current_time() - began == pytest.approx(8)
        answers = iter([4, None, None])
        results = await pool.map(plainly if kind else limited, [1, 2])
        assert results.values == [1, 2]
        assert anyio.current_time() - began == pytest.approx(12)
        assert pool.metrics()[task.task_id].retries_used == 0


async def test_what_waits_for_its_time_waits_in_the_pool() -> None:
    async def later() -> None:
        raise RateLimited(100)

    async with AsyncWorkerPool(1, max_pending=1) as pool:
        task = pool.submit(later)
        await anyio.sleep(1)
        assert (pool.stats().pending, pool.stats().busy) == (1, 0)
        with pytest.raises(PoolFull):
            _ = pool.submit(later)
        assert pool.abort_pending() == 1
        assert isinstance((await task).error, TaskCancelled)
        assert pool.stats().pending == 0
        mapping = pool.map(lambda _: later(), [1, 2])
        with anyio.move_on_after(1) as scope:
            await mapping
        assert scope.cancelled_caught
        with anyio.move_on_after(5) as scope:
            await pool.drain()
        assert not scope.cancelled_caught
        _ = pool.submit(later)
        await anyio.sleep(1)
        await pool.shutdown(cancel=True)


async def test_a_pool_waits_at_its_end_for_what_waits_for_its_time() -> None:
    answers: Iterator[float | None] = iter([50, None])

    async def later() -> str:
        delay = next(answers)
        if delay is not None:
            raise RateLimited(delay)
        return "done"

    began = anyio.current_time()
    async with AsyncWorkerPool(1) as pool:
        task = pool.submit(later)
    assert (await task).result == "done"
    assert anyio.current_time() - began == pytest.approx(50)
