"""Servers that answer what no server should: every caller gets a documented error in time, and nothing hangs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import anyio
import pytest
import redis

from cuelight import ActorSystem, RateLimitConfig
from cuelight.errors import LockTimeout, StoreRefused, StoreUnavailable
from cuelight.redis import RedisClient, RedisLock, RedisSlidingWindow, RedisTokenBucket, Script
from helpers.nodes import node
from helpers.odd_servers import OddServer
from helpers.players import outcome

ANSWERS: Final[dict[str, bytes]] = {
    "nothing, and the end": b"",
    "garbage": b"\x00\xff\xfegarbage\r\n\r\n",
    "empty lines": b"\r\n\r\n",
    "a text of 100 GB": b"$99999999999\r\nxx",
    "a text of less than nothing": b"$-5\r\n",
    "more elements than there are numbers": b"*9223372036854775807\r\n:1\r\n",
    "a deep array": b"*1\r\n" * 100_000 + b":1\r\n",
    "an array in arrays": b"*1\r\n" * 5 + b":1\r\n",
    "an empty array": b"*0\r\n",
    "an empty push": b">0\r\n",
    "a short push": b">1\r\n$7\r\nmessage\r\n",
    "a push of numbers": b">2\r\n:1\r\n:2\r\n",
    "a push in a push": b">2\r\n*1\r\n:1\r\n:1\r\n",
    "a flood of messages": b">3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nb\r\n" * 500,
    "an attribute": b"|1\r\n+k\r\n+v\r\n:5\r\n",
    "a large number": b"(" + b"9" * 10_000 + b"\r\n",
    "no number": b",nan\r\n",
    "half a map": b"%1\r\n:1\r\n",
    "a set of arrays": b"~1\r\n*1\r\n:1\r\n",
    "a map of arrays": b"%1\r\n*1\r\n:1\r\n:2\r\n",
    "an error": b"-ERR x\r\n",
    "an error without a word": b"-\r\n",
    "an error that is no text": b"-ERR \xff\xfe\r\n",
    "an error of two lines": b"!5\r\nERR x\r\n",
    "MOVED": b"-MOVED 1 127.0.0.1:1\r\n",
    "MOVED to nowhere": b"-MOVED\r\n",
    "ASK": b"-ASK x\r\n",
    "LOADING": b"-LOADING\r\n",
    "NOSCRIPT": b"-NOSCRIPT x\r\n",
    "READONLY": b"-READONLY x\r\n",
    "more answers than commands": b"+a\r\n+b\r\n+c\r\n",
    "nothing": b"_\r\n",
    "a number": b":1\r\n",
    "a number beyond all": b":99999999999999999999999\r\n",
    "a word": b"+OK\r\n",
    "a text without its end": b"$3\r\nabcXX",
    "a line without its end": b"+" + b"a" * 1_000_000,
}

DOCUMENTED: Final = (StoreUnavailable, StoreRefused, redis.ResponseError, LockTimeout, TimeoutError)

ECHO: Final = Script("return ARGV[1]", "echo")

Use = Callable[[RedisClient], Awaitable[Any]]


async def subscribe(server: RedisClient) -> None:
    """Listen for a moment."""
    (await server.subscribe("channel", lambda _: None, lambda: None)).close()


async def join(server: RedisClient) -> None:
    """Be a node for a moment."""
    async with ActorSystem("here", node=node("c", redis=server, lease=0.4)):
        pass


FAST: Final = RateLimitConfig(10, window_seconds=1)

USES: Final[dict[str, Use]] = {
    "a command": lambda server: server.execute("GET", "k"),
    "a script": lambda server: server.run(ECHO, ("k",), ("hello",)),
    "a command of a thread": lambda server: anyio.to_thread.run_sync(server.execute_blocking, "GET", "k"),
    "a script of a thread": lambda server: anyio.to_thread.run_sync(server.run_blocking, ECHO, ("k",), ("hello",)),
    "a channel": subscribe,
    "a lock": lambda server: RedisLock("it", server=server, lease=0.3).acquire(0.3),
    "a lock of a thread": lambda server: anyio.to_thread.run_sync(
        RedisLock("it", server=server, lease=0.3).acquire_blocking, 0.3
    ),
    "a bucket": lambda server: RedisTokenBucket("it", FAST, server=server).acquire(1, 0.3),
    "a window": lambda server: RedisSlidingWindow("it", FAST, server=server).try_acquire(),
    "a node": join,
}


@pytest.mark.parametrize("answer", ANSWERS)
async def test_whatever_a_server_answers_its_callers_get_a_documented_error_in_time(answer: str) -> None:
    undocumented: dict[str, Any] = {}

    async def use(name: str, call: Use) -> None:
        async with RedisClient(server.url, timeout=0.3, connect_timeout=0.3) as client:
            result = await outcome(call(client))
            if isinstance(result, Exception) and not isinstance(result, DOCUMENTED):
                undocumented[name] = result

    with OddServer(ANSWERS[answer]) as server, anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            for name, call in USES.items():
                group.start_soon(use, name, call)
    assert undocumented == {}


@pytest.mark.parametrize("manner", ["task", "thread"])
async def test_a_server_that_knows_no_script_that_it_is_given_is_refused(manner: str) -> None:
    with OddServer(b"-NOSCRIPT No matching script.\r\n") as server, anyio.fail_after(30):
        async with RedisClient(server.url, timeout=60) as client:
            with pytest.raises(StoreRefused, match="answers NOSCRIPT to EVAL"):
                await USES["a script" if manner == "task" else "a script of a thread"](client)
