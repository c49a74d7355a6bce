"""Names: exposed once, resolved anywhere in the cluster, free again at the end."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress
from typing import Any

import anyio
import pytest

from cuelight import ActorNotFound, ActorSystem, StoreUnavailable, SystemClosed
from cuelight.errors import NameTaken, StoreRefused
from cuelight.redis import RedisNode
from helpers import BACKENDS
from helpers.nodes import Add, Plain, Total, cluster_name, node, pair, until
from helpers.redis_servers import free_port, shared_server
from helpers.tcp_proxy import TcpProxy


def keys_of(cluster: str) -> bytes:
    return shared_server().command("KEYS", f"*:{cluster}}}*")


async def test_a_name_is_unique_in_its_cluster_and_free_at_the_end_of_its_actor() -> None:
    async with pair() as (here, there):
        own = await there.spawn(Plain)
        other = await here.spawn(Plain)
        await there.expose(own, "counter")
        await there.expose(own, "counter")  # twice is once
        with pytest.raises(NameTaken, match=r"/there/Plain-\d+@there-\w+ has the name 'counter' already"):
            await here.expose(other, "counter")
        with pytest.raises(NameTaken):
            await there.expose(await there.spawn(Plain), "counter")
        await own.stop()
        with anyio.fail_after(5):
            while True:
                try:
                    await here.expose(other, "counter")
                except NameTaken:
                    await anyio.sleep(0.005)
                else:
                    break
        assert await here.resolve("counter") == other  # one's own actor comes back as itself


async def test_an_actor_may_have_many_names_and_lose_one() -> None:
    async with pair() as (here, there):
        own = await there.spawn(Plain)
        for name in ("a", "b"):
            await there.expose(own, name)
        ref = await here.resolve("a")
        await there.unexpose("a")
        with pytest.raises(ActorNotFound):
            await here.resolve("a")
        assert await here.resolve("b") == ref
        assert await ref.ask(Total()) == 0  # the ref stays good
        with pytest.raises(ActorNotFound, match="has given 'b'"):
            await there.unexpose("a")


async def test_resolve_waits_for_a_name_and_says_which_are_like_it() -> None:
    async with pair() as (here, there):
        own = await there.spawn(Plain)
        await there.expose(own, "counter")
        with pytest.raises(ActorNotFound, match="the name 'conter'; is it 'counter'"):
            await here.resolve("conter")
        with pytest.raises(ActorNotFound, match="there are 'counter'"):
            await here.resolve("xyz", timeout=0.05)
        async with anyio.create_task_group() as group:

            async def wait() -> None:
                assert (await here.resolve("late", timeout=10)).path.startswith(own.path)

            group.start_soon(wait)
            await anyio.sleep(0.05)
            await there.expose(own, "late")


async def test_clusters_do_not_see_each_other() -> None:
    async with pair() as (_, there), pair() as (here, _):
        await there.expose(await there.spawn(Plain), "counter")
        with pytest.raises(ActorNotFound, match="there are none"):
            await here.resolve("counter")


async def test_the_end_of_a_system_leaves_no_key_and_no_name() -> None:
    cluster = cluster_name()
    async with ActorSystem("here", node=node(cluster)) as here:
        async with ActorSystem("there", node=node(cluster)) as there:
            own = await there.spawn(Plain)
            await there.expose(own, "counter")
            ref = await here.resolve("counter")
            await ref.tell(Add(1))
            assert await ref.ask(Total()) == 1
            assert cluster.encode() in keys_of(cluster)
        with pytest.raises(ActorNotFound):
            await here.resolve("counter")
        await until(lambda: not ref.alive)
    assert keys_of(cluster) == b"*0\r\n"
    assert nothing_is_left()


def nothing_is_left() -> bool:
    """No thread of a node, and no task of asyncio but this one."""
    heartbeats = [thread for thread in threading.enumerate() if "heart" in thread.name]
    tasks: set[asyncio.Task[Any]] = set()
    with suppress(RuntimeError):  # trio has none
        tasks = asyncio.all_tasks()
    return not heartbeats and not [task for task in tasks if "cuelight" in task.get_name()]


async def test_exposing_that_is_cancelled_leaves_no_name() -> None:
    with TcpProxy(shared_server().port) as proxy:
        cluster = cluster_name()
        async with (
            ActorSystem("here", node=node(cluster)) as here,
            ActorSystem("there", node=node(cluster, url=proxy.url)) as there,
        ):
            own, other = await there.spawn(Plain), await here.spawn(Plain)
            proxy.delay(0.2)  # so that the server has given the name when the cancellation comes
            with anyio.move_on_after(0.1) as scope:
                await there.expose(own, "counter")
            assert scope.cancelled_caught
            proxy.heal()

            async def free() -> bool:
                try:
                    await here.expose(other, "counter")
                except NameTaken:
                    return False
                return True

            await until(free)


@pytest.mark.parametrize("anyio_backend", [BACKENDS["asyncio"]])
async def test_a_native_cancellation_while_a_node_leaves_leaves_nothing_behind() -> None:
    with TcpProxy(shared_server().port) as proxy:
        began = anyio.Event()

        async def block() -> None:
            async with ActorSystem("here", node=node(cluster_name(), url=f"{proxy.url}?socket_timeout=0.5")) as here:
                await here.expose(await here.spawn(Plain), "counter")
                proxy.silence()
                began.set()

        task = asyncio.create_task(block())
        await began.wait()
        for _ in range(3):
            await anyio.sleep(0.05)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(nothing_is_left)


async def test_every_key_of_a_cluster_has_a_time_to_live() -> None:
    cluster = cluster_name()
    async with ActorSystem("here", node=node(cluster)) as here, ActorSystem("there", node=node(cluster)) as there:
        await there.expose(await there.spawn(Plain), "counter")
        ref = await here.resolve("counter")
        await ref.tell(Add(1))
        assert await ref.ask(Total()) == 1
        keys = [line for line in keys_of(cluster).split(b"\r\n") if line.startswith(b"{")]
        assert len(keys) >= 4
        for key in keys:
            remaining = int(shared_server().command("TTL", key).strip(b":\r\n"))
            assert 0 < remaining <= 60


async def test_exposing_what_cannot_be_exposed_is_refused_where_it_is_done() -> None:
    async with pair() as (here, there):
        own = await there.spawn(Plain)
        await there.expose(own, "counter")
        with pytest.raises(ValueError, match="is not an actor of this system"):
            await here.expose(await here.resolve("counter"), "mine")
        with pytest.raises(ValueError, match="'' is no name"):
            await there.expose(own, "")
        with pytest.raises(ValueError, match="timeout=-1"):
            await here.resolve("counter", timeout=-1)
        await own.stop()
        with pytest.raises(ActorNotFound, match="has ended"):
            await there.expose(own, "other")


async def test_a_system_without_a_node_says_how_to_get_one() -> None:
    async with ActorSystem("alone") as system:
        with pytest.raises(RuntimeError, match="node=RedisNode"):
            await system.resolve("counter")
        with pytest.raises(RuntimeError, match="cannot expose"):
            await system.expose(await system.spawn(Plain), "counter")
    closed = ActorSystem("closed", node=node(cluster_name()))
    with pytest.raises(SystemClosed, match="not running"):
        await closed.resolve("counter")


async def test_a_node_belongs_to_one_system() -> None:
    mine = node(cluster_name())
    assert "cluster" in repr(mine)
    assert not mine.statistics().joined
    async with ActorSystem("one", node=mine):
        assert mine.statistics().joined
        assert mine.statistics().incarnation == 1
        with pytest.raises(RuntimeError, match="a node for each system"):
            async with ActorSystem("two", node=mine):
                raise AssertionError
        assert mine.statistics().joined  # it is still that of the first


async def test_a_system_that_cannot_join_does_not_begin() -> None:
    far = RedisNode(f"redis://127.0.0.1:{free_port()}/0?socket_timeout=0.2", messages=[Add])
    began = time.monotonic()
    with pytest.raises(StoreUnavailable):
        async with ActorSystem("here", node=far):
            raise AssertionError
    assert time.monotonic() - began < 5


async def test_a_cluster_of_another_version_is_refused() -> None:
    cluster = cluster_name()
    shared_server().command("SET", f"{{cuelight:nodes:{cluster}}}:format", "99", "EX", "60")
    with pytest.raises(StoreRefused, match="has format 99, this version speaks 1"):
        async with ActorSystem("here", node=node(cluster)):
            raise AssertionError


def test_bad_arguments_of_a_node_are_refused_with_their_names() -> None:
    with pytest.raises(ValueError, match=r"lease=0\.0"):
        RedisNode(messages=[Add], lease=0.0)
    with pytest.raises(ValueError, match="max_message=0"):
        RedisNode(messages=[Add], max_message=0)
    for cluster in ("", "a b", "{x}", "x" * 101):
        with pytest.raises(ValueError, match="cluster="):
            RedisNode(messages=[Add], cluster=cluster)
    with pytest.raises(TypeError, match="is no subclass of Message"):
        RedisNode(messages=[int])
    with pytest.raises(TypeError, match="defines no message"):
        RedisNode(messages=[time])
