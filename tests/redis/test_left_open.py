"""A program ends though it has left nodes, clients, locks and limiters open."""

import subprocess
import sys

import pytest

from helpers.redis_servers import RedisServer

PROGRAM = """
import sys, warnings
import anyio
from cuelight import Actor, ActorSystem, RateLimitConfig, Request, on
from cuelight.redis import RedisClient, RedisLock, RedisNode, RedisRateLimiter

warnings.simplefilter("ignore")  # of connections that nobody has closed
url, backend = sys.argv[1:]

class Ping(Request[str]):
    pass

class Answers(Actor[Ping]):
    @on(Ping)
    async def ping(self, message):
        return "pong"

async def node():
    system = ActorSystem("left", node=RedisNode(url, cluster="left", messages=[Ping]))
    await system.__aenter__()
    await system.expose(await system.spawn(Answers), "answers")
    assert await (await system.resolve("answers")).ask(Ping()) == "pong"

async def client():
    client = RedisClient(url)
    await client.subscribe("channel", print, lambda: None)
    await client.execute("GET", "nothing")

async def lock():
    await RedisLock("left", url, lease=5).acquire()

async def limiter():
    limiter = RedisRateLimiter("left", server=RedisClient(url), requests=RateLimitConfig(5, 1.0), concurrency=1)
    await limiter.request().__aenter__()

for what in (node, client, lock, limiter):
    anyio.run(what, backend=backend)
    print(what.__name__, "has ended", flush=True)
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_program_ends_though_it_has_left_everything_open(backend: str) -> None:
    with RedisServer() as server:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, server.url, backend],
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
    assert done.stdout.splitlines() == [f"{what} has ended" for what in ("node", "client", "lock", "limiter")]
    assert done.returncode == 0, done.stderr
