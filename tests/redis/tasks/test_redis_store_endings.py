"""Waits and adds of a store over Redis that end just as something else does."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest

from cuelight import StoreUnavailable
from cuelight.redis import RedisStore
from cuelight.redis._tasks import _notifications
from cuelight.redis._tasks._store import AddBatcher
from cuelight.tasks import Record
from helpers import BACKENDS
from helpers.redis_servers import shared_server, until
from helpers.tcp_proxy import TcpProxy


async def test_a_wait_ends_when_its_store_is_closed_though_the_server_is_silent(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_notifications, "COMPARE_INTERVAL", 0.05)
    with TcpProxy(shared_server().port) as proxy:
        store = RedisStore(f"{proxy.url}?socket_timeout=20", prefix=prefix)
        await store.open()
        since = store.version()
        ended = anyio.Event()

        async def wait() -> None:
            await store.changed(since, 60.0)
            ended.set()

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await until(
                lambda: (
                    store._notifications._loop_subscriptions
                    and next(iter(store._notifications._loop_subscriptions.values())).subscription
                )
            )
            (loop_subscription,) = store._notifications._loop_subscriptions.values()
            proxy.silence()
            looked = loop_subscription.compared_at
            await until(lambda: loop_subscription.compared_at > looked)
            await anyio.wait_all_tasks_blocked()  # it asks whether it has missed something, and hears nothing
            assert not ended.is_set()
            with anyio.fail_after(5):
                await store.close()
                await ended.wait()
        proxy.heal()


async def test_a_wait_says_so_when_the_server_goes_silent_and_can_be_made_again(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_notifications, "COMPARE_INTERVAL", 0.05)
    with TcpProxy(shared_server().port) as proxy:
        store = RedisStore(f"{proxy.url}?socket_timeout=0.3", prefix=prefix)
        await store.open()
        since = store.version()
        await store.changed(since, 0.1)
        proxy.silence()
        with pytest.raises(StoreUnavailable):
            await store.changed(since, 60.0)
        proxy.heal()
        async with anyio.create_task_group() as group:
            group.start_soon(store.changed, since, 20.0)
            await store.add([Record(id="a", type="t")])
        assert store.version() != since
        await store.close()


async def test_waits_that_begin_together_listen_once_and_are_all_told(prefix: str) -> None:
    with TcpProxy(shared_server().port) as proxy:
        here, there = RedisStore(proxy.url, prefix=prefix), RedisStore(shared_server().url, prefix=prefix)
        await here.open()
        await there.open()
        await here.size()
        since = here.version()
        proxy.delay(0.05)  # so that the second comes while the first is still on its way
        told: list[int] = []

        async def wait(number: int) -> None:
            await here.changed(since, 20.0)
            told.append(number)

        async with anyio.create_task_group() as group:
            for number in range(3):
                group.start_soon(wait, number)
            await until(lambda: here._notifications._marked == here._notifications._seen[0])
            await there.add([Record(id="a", type="t")])
        assert sorted(told) == [0, 1, 2]
        assert proxy.commands["SUBSCRIBE"] == 1
        await here.close()
        await there.close()


@pytest.mark.parametrize("anyio_backend", [BACKENDS["asyncio"]])
async def test_an_add_that_is_cancelled_natively_just_when_it_is_to_lead_lets_the_next_one() -> None:
    sent: list[list[str]] = []
    let = anyio.Event()

    async def send(_bounds: tuple[int, bool], cards: list[Any], _blobs: list[bytes]) -> list[Any]:
        sent.append(cards)
        await let.wait()
        return [value for card in cards for value in ("added", card)]

    batcher = AddBatcher(send)

    async def add(name: str, bounds: tuple[int, bool]) -> Any:
        answer = await batcher.add(bounds, [name], [name.encode()])
        if name == "a":
            second.cancel()  # it was told to lead just now, and has not begun
        return answer

    tasks = [asyncio.create_task(add(*one)) for one in (("a", (-1, False)), ("b", (5, True)), ("c", (6, True)))]
    first, second, third = tasks
    await anyio.wait_all_tasks_blocked()
    let.set()
    assert await first == ["added", "a"]
    with pytest.raises(asyncio.CancelledError):
        await second
    async with asyncio.timeout(5):
        assert await third == ["added", "c"]
    assert sent == [["a"], ["c"]]
