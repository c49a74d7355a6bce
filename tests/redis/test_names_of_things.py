"""Names and prefixes of locks, limiters and values may be any text: none is another's, and none is more than a name."""

# Things of all kinds are made in one way.
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownParameterType=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cuelight import RateLimitConfig
from cuelight.redis import (
    RedisClient,
    RedisLock,
    RedisRateLimiter,
    RedisReadWriteLock,
    RedisSemaphore,
    RedisSlidingWindow,
    RedisTokenBucket,
    fence_key,
)
from cuelight.redis._client._cluster import slot_of_key
from helpers.redis_servers import RedisServer

NAMES = [
    *(
        "a",
        "b",
        "{",
        "}",
        "{}",
        "a}b",
        "a{b",
        "{a}:{b}",
        "}{",
        "a:b",
        "a::b",
        "a b",
        "a\nb",
        "a\r\nSET x y",
        "\0",
        "a\0b",
    ),
    *(
        "é",
        "\U0001f4a9",
        "\u202e",
        "%7B",
        "%",
        "%25",
        "x" * 500,
        "*",
        "?",
        "[a]",
        "'; redis.call('FLUSHALL') --",
        "$(id)",
    ),
    *(
        '" .. redis.call("FLUSHALL") .. "',
        "../../etc/passwd",
        " ",
        "\t",
        "\uffff",
        "KEYS[1]",
        "a" + chr(0xD7FF),
        "state",
    ),
]

MANY = RateLimitConfig(10, window_seconds=100)

Make = Callable[..., Any]

KINDS: dict[str, tuple[Make, Callable[[Any], Any]]] = {
    "lock": (RedisLock, lambda it: it),
    "semaphore": (lambda name, **where: RedisSemaphore(name, 2, **where), lambda it: it),
    "write": (RedisReadWriteLock, lambda it: it.write()),
    "bucket": (lambda name, **where: RedisTokenBucket(name, MANY, **where), lambda it: it),
    "window": (lambda name, **where: RedisSlidingWindow(name, MANY, **where), lambda it: it),
    "limiter": (
        lambda name, **where: RedisRateLimiter(name, requests=MANY, concurrency=2, **where),
        lambda it: it.request(),
    ),
}


@pytest.mark.parametrize("by", ["name", "prefix"])
async def test_any_text_is_a_name_and_a_prefix_of_its_own(by: str) -> None:
    owners: dict[bytes, tuple[str, str]] = {}
    with RedisServer() as running:
        async with RedisClient(running.url) as server:
            await server.execute("SET", "bystander", "1")
            for kind, (make, enter) in KINDS.items():
                for text in NAMES:
                    before = set(await server.execute("KEYS", "*"))
                    # Limiters of all kinds have one room of names.
                    name, prefix = (text, kind) if by == "name" else (kind, text)
                    thing = make(name, prefix=prefix, server=server)
                    async with enter(thing):
                        made = set(await server.execute("KEYS", "*")) - before
                    assert made, (kind, text)
                    assert len({slot_of_key(key) for key in made}) == 1, (kind, text, made)
                    for key in made:
                        assert owners.setdefault(key, (kind, text)) == (kind, text), key
                    if hasattr(thing, "aclose"):
                        await thing.aclose()
            assert await server.execute("GET", "bystander") == b"1"


HALF = "caf\udce9"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", [{}, {"prefix": HALF}], ids=["name", "prefix"])
def test_a_name_that_is_no_unicode_text_is_refused_where_it_is_given(kind: str, where: dict[str, str]) -> None:
    make, _ = KINDS[kind]
    what = "prefix" if where else "name"
    with pytest.raises(ValueError, match=rf"{what}='caf\\udce9' is no Unicode text"):
        make("it" if where else HALF, **where, **({} if kind in {"lock", "semaphore", "write"} else {"server": None}))


def test_limits_and_fenced_keys_that_are_no_unicode_text_are_refused() -> None:
    limits: dict[str, Any] = {HALF: MANY}
    with pytest.raises(ValueError, match=r"limit='caf\\udce9' is no Unicode text"):
        RedisRateLimiter("it", server=None, **limits)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"key='caf\\udce9' is no Unicode text"):
        fence_key(HALF)
