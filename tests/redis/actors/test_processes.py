"""Nodes in processes of their own: one is killed or frozen, and the other goes on."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from cuelight import ActorNotFound, ActorSystem, NotStarted, Ref, Unknown
from cuelight.actors import ShutDown
from cuelight.redis import NodeLost
from helpers import Backend
from helpers.nodes import (
    Add,
    Count,
    Forward,
    Plain,
    Seen,
    Send,
    Slow,
    Total,
    Watcher,
    cluster_name,
    defaults,
    node,
    until,
)
from helpers.redis_servers import shared_server

LEASE = 1.0
SLACK = 1.0
"""Seconds that a busy machine may take to notice."""
TESTS = Path(__file__).parents[2]


def _start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, cwd=TESTS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@asynccontextmanager
async def other_process(cluster: str, backend: Backend) -> AsyncGenerator[subprocess.Popen[str], None]:
    """A node in another process, on the other kind of loop."""
    loop = "asyncio" if backend[0] == "trio" else "trio"
    command = [sys.executable, "-m", "helpers.node_process", shared_server().url, cluster, str(LEASE), loop]
    command.append(defaults["transport"])
    process = await anyio.to_thread.run_sync(_start, command)
    try:
        assert process.stdout is not None
        said = await anyio.to_thread.run_sync(process.stdout.readline)
        assert said == "ready\n"
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(process.communicate)


@asynccontextmanager
async def here(cluster: str) -> AsyncGenerator[tuple[ActorSystem, Ref[Add | Total]], None]:
    """The system of this process, with an actor called `mine`."""
    async with ActorSystem("here", node=node(cluster, lease=LEASE)) as system:
        mine = await system.spawn(Plain)
        await system.expose(mine, "mine")
        yield system, mine


async def test_actors_of_two_processes_talk_on_either_loop(anyio_backend: Backend) -> None:
    cluster = cluster_name()
    async with here(cluster) as (system, mine):
        async with other_process(cluster, anyio_backend):
            counter, player = await system.resolve("counter"), await system.resolve("player")
            for amount in range(1000):
                await counter.tell(Add(amount))
            assert await counter.ask(Total()) == sum(range(1000))
            assert [number async for number in player.stream(Count(40))] == list(range(40))
            await player.tell(Send(mine, 7))
            assert await player.ask(Forward(mine)) == 7  # asks back into this process
            watcher = await system.spawn(Watcher, counter)
            await counter.ask(Total())  # goes the same way as the wish to watch, and behind it
        await until(lambda: not counter.alive)
        assert await counter.ended() == ShutDown()  # it left in order
        assert await watcher.ask(Seen()) == ["shut down"]


async def test_a_node_that_is_killed_is_lost_within_its_lease_and_the_other_goes_on(anyio_backend: Backend) -> None:
    cluster = cluster_name()
    async with here(cluster) as (system, mine):
        async with other_process(cluster, anyio_backend) as process:
            counter, player = await system.resolve("counter"), await system.resolve("player")
            watcher = await system.spawn(Watcher, counter, player)
            running = player.ask(Slow(60))
            await player.tell(Add(1))
            assert await counter.ask(Total()) == 0
            process.kill()
            killed = time.monotonic()
            with pytest.raises(Unknown, match="its lease ran out"):
                await running
            assert time.monotonic() - killed < LEASE + SLACK
            exit_ = await counter.ended()
            assert isinstance(exit_, NodeLost)
            assert exit_.abnormal
            assert len(await watcher.ask(Seen())) == 2
            with pytest.raises(NotStarted, match="lost with its node"):
                await counter.ask(Total())
            with pytest.raises(ActorNotFound):
                await system.resolve("counter")
            assert await mine.ask(Total()) == 0
        async with other_process(cluster, anyio_backend):
            again = await system.resolve("counter", timeout=10)
            await again.tell(Add(3))
            assert await again.ask(Total()) == 3
            assert again != counter


@pytest.mark.transport("redis")
async def test_a_frozen_node_learns_that_it_was_lost_and_joins_again(anyio_backend: Backend) -> None:
    cluster = cluster_name()
    async with here(cluster) as (system, mine), other_process(cluster, anyio_backend) as process:
        counter, watcher = await system.resolve("counter"), await system.resolve("watcher")
        await counter.tell(Add(1))
        assert await counter.ask(Total()) == 1
        assert await watcher.ask(Seen()) == []
        process.send_signal(signal.SIGSTOP)
        for _ in range(3):
            await counter.tell(Add(10))
        with pytest.raises(NotStarted, match="never saw Total"):
            await counter.ask(Total())
        assert system.dead_letters.counts["node_lost"] == 3
        process.send_signal(signal.SIGCONT)
        again = await system.resolve("counter", timeout=10)
        assert again != counter
        assert await again.ask(Total()) == 1  # the same actor; what it never read stays undone
        (seen,) = await (await system.resolve("watcher", timeout=10)).ask(Seen())
        assert seen.startswith("lost with its node here-")
        assert "was declared lost" in seen
        assert mine.alive
