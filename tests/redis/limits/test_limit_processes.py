"""One limit for several processes, also when one of them is killed or stopped."""

import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from cuelight.coordination import RateLimitConfig
from cuelight.redis import RedisClient
from cuelight.redis._limits import RedisRateLimiter
from helpers.limiters import unique, until
from helpers.redis_servers import shared_server

JOBS = str(Path(__file__).with_name("limit_jobs.py"))
RATE = RateLimitConfig(100, 1.0)


@contextmanager
def job(name: str, limiter: str) -> Generator[subprocess.Popen[str]]:
    command = [sys.executable, JOBS, name, shared_server().url, limiter]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture
async def client() -> AsyncIterator[RedisClient]:
    async with RedisClient(shared_server().url) as client:
        yield client


def test_processes_share_one_limit_and_never_exceed_it() -> None:
    """Three processes take all that they get: together what the limit allows in that time, and nearly all of it."""
    name = unique()
    began = time.monotonic()
    with job("spend", name) as first, job("spend", name) as second, job("spend", name) as third:
        taken = [int(line(process)) for process in (first, second, third)]
        took = time.monotonic() - began
    assert sum(taken) <= 50 + 200 * took
    assert sum(taken) >= 50 + 200 * 2 * 0.5, "far below the limit"
    assert min(taken) > 0


async def test_a_killed_process_gives_its_permits_back_within_its_lease_and_a_third(client: RedisClient) -> None:
    """And its place in line, which was before ours."""
    name = unique()
    limiter = RedisRateLimiter(name, server=client, requests=RATE, concurrency=2, lease=1.0)
    went: list[float] = []
    killed = 0.0
    with job("hold", name) as other:
        assert await anyio.to_thread.run_sync(line, other) == "held"
        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:

                async def enter() -> None:
                    async with limiter.request():
                        went.append(time.monotonic())

                for _ in range(2):
                    group.start_soon(enter)
                await until(lambda: limiter.statistics().waiting == 2)
                await anyio.sleep(1.5)
                assert not went, "a process that lives keeps its permits, however long"
                killed = time.monotonic()
                other.kill()
    assert 0.5 < went[0] - killed < 1.0 + 1.0 / 3 + 1.0
    assert await limiter.remaining() == {"requests": pytest.approx(100, abs=5), "concurrency": 2}


async def test_a_process_that_was_stopped_past_its_lease_is_counted_again(client: RedisClient) -> None:
    name = unique()
    limiter = RedisRateLimiter(name, server=client, requests=RATE, concurrency=2, lease=1.0)

    async def three_are_under_way() -> bool:
        # That none is left could be for the one that waited there: it may come before the two that are held.
        under_way: int = await client.execute("ZCARD", limiter._loop_client()._calls._keys[4])
        return under_way == 3

    with job("hold", name) as other:
        assert await anyio.to_thread.run_sync(line, other) == "held"
        other.send_signal(signal.SIGSTOP)
        with anyio.fail_after(20):
            async with limiter.request():
                other.send_signal(signal.SIGCONT)
                await until(three_are_under_way)
            # Three were under way for a while; now it is two again, and no more come in.
            assert await limiter.retry_after() == float("inf")
