"""What refuses those who come with an old fence."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from cuelight.errors import LeaseLost, StoreRefused
from cuelight.redis import RedisClient, RedisLock, fence_key, fenced_set, fenced_set_blocking
from helpers.lockable import over_redis, worker
from helpers.redis_servers import shared_server


async def test_a_value_is_set_by_the_greatest_fence_only() -> None:
    where = over_redis()
    key = f"{where['prefix']}:value"
    async with RedisClient(where["redis_url"]) as server:
        await fenced_set(server, key, "one", 1)
        await fenced_set(server, key, "three", 3)
        for stale in (1, 2):
            with pytest.raises(LeaseLost, match=f"fence 3 already, which is greater than {stale}"):
                await fenced_set(server, key, "stale", stale)
        await fenced_set(server, key, b"three again", 3)
        assert await server.execute("GET", key) == b"three again"
        assert await server.execute("PTTL", key) == -1
        await fenced_set(server, key, "four", 4, ttl=60)
        for one in (key, fence_key(key)):
            assert 0 < await server.execute("PTTL", one) <= 60_000
        with worker() as thread:
            assert isinstance(thread.do(lambda: fenced_set_blocking(server, key, "stale", 3)), LeaseLost)
            assert thread.do(lambda: fenced_set_blocking(server, key, "five", 5)) is None
        assert await server.execute("GET", key) == b"five"


async def test_a_lease_that_is_over_is_refused_before_the_server_is_asked() -> None:
    where = over_redis()
    key = f"{where['prefix']}:value"
    async with RedisClient(where["redis_url"]) as server:
        async with RedisLock("it", server=server, prefix=where["prefix"]).hold() as lease:
            await fenced_set(server, key, "mine", lease)
        with pytest.raises(LeaseLost, match="given back"):
            await fenced_set(server, key, "late", lease)
        assert await server.execute("GET", key) == b"mine"


async def test_bad_values_of_a_guard_are_refused() -> None:
    wrong: Any
    async with RedisClient(shared_server().url) as server:
        for wrong in (0, -1):
            with pytest.raises(ValueError, match="fence="):
                await fenced_set(server, "key", "value", wrong)
        with pytest.raises(ValueError, match="ttl="):
            await fenced_set(server, "key", "value", 1, ttl=0)
        for wrong in ("", "a}b"):
            with pytest.raises(ValueError, match="braces"):
                await fenced_set(server, wrong, "value", 1)
        key = over_redis()["prefix"]
        shared_server().command("HSET", fence_key(key), "a", "b")
        with pytest.raises(StoreRefused, match="WRONGTYPE"):
            await fenced_set(server, key, "value", 1)
        await anyio.lowlevel.checkpoint()


def test_the_fence_of_a_value_is_in_its_slot() -> None:
    assert fence_key("order:17") == "{order:17}:fence"
    assert fence_key("{order:17}:total") == "{order:17}:total:fence"
