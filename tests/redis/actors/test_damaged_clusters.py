"""Keys of a cluster that somebody else has damaged: a damaged name costs that name, and nodes find together again."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from cuelight import ActorNotFound, ActorSystem
from cuelight.errors import NameTaken, StoreRefused
from cuelight.redis import RedisClient
from helpers.nodes import Plain, Total, cluster_name, node, node_of, pair
from helpers.redis_servers import shared_server

NAMES: list[Any] = [
    b"",
    b"nospace",
    b"%s",
    b"%s abc /x",
    b"%s 5",
    b"%s  /x",
    b"%s 99999999999999999999999999 /x",
    b"%s 18446744073709551615 /x",
    b"%s 1e300 /x",
    b"%s nan /x",
    b"%s -1 /x",
    b"%s 0 /x",
    b"%s 1 \xff\xfe",
    b"\xff\xff 1 /x",
    b" 1 /x",
    b"\x91" * 2000 + b"\xc0",
    b"x" * 100_000,
    b"%s " + b"9" * 5000 + b" /x",
]
"""Values of a name; `%s` is the identity of a node."""


async def test_a_damaged_name_costs_that_name() -> None:
    async with pair() as (here, there), RedisClient(shared_server().url) as client:
        own = await there.spawn(Plain)
        await there.expose(own, "sound")
        directory = node_of(here)._membership.directory
        for value in NAMES:
            damaged = value.replace(b"%s", node_of(there).identity.encode())
            await client.execute("HSET", directory._names, "damaged", damaged)
            with pytest.raises((StoreRefused, ActorNotFound), match="damaged"):
                await here.resolve("damaged")
            with pytest.raises(ActorNotFound, match="there are "):
                await here.resolve("nobody's")
            assert await (await here.resolve("sound")).ask(Total()) == 0
            try:
                await there.expose(own, "damaged")  # nobody has it, or it is refused by name
            except (StoreRefused, NameTaken) as error:
                assert "damaged" in str(error)  # noqa: PT017 - either may happen
            else:
                assert await (await here.resolve("damaged")).ask(Total()) == 0
                await there.unexpose("damaged")


KEYS = ("format", "members", "names", "node", "inbox")


@pytest.mark.parametrize("key", KEYS)
async def test_nodes_find_together_again_whatever_becomes_of_a_key_of_their_cluster(key: str) -> None:
    cluster = cluster_name()
    async with (
        RedisClient(shared_server().url) as client,
        ActorSystem("here", node=node(cluster, lease=0.5)) as here,
        ActorSystem("there", node=node(cluster, lease=0.5)) as there,
    ):
        own = await there.spawn(Plain)
        await there.expose(own, "actor")
        await (await here.resolve("actor", timeout=10)).ask(Total())
        for damage in (("SET", "x"), ("LPUSH", "x"), ("HSET", "sent:x", "nan"), ()):
            directory = node_of(there)._membership.directory
            identity = f":{directory.identity}" if key in {"node", "inbox"} else ""
            name = f"{directory._tag}:{key}{identity}"
            await client.execute("DEL", name)
            if damage:
                await client.execute(damage[0], name, *damage[1:])
                await anyio.sleep(0.2)
                if key in {"format", "members", "names"}:
                    await client.execute("DEL", name)  # what is nobody's own must be deleted, as the log says
            if key == "names":
                await there.expose(own, "actor")
            with anyio.fail_after(30):
                while True:
                    try:
                        assert await (await here.resolve("actor")).ask(Total(), timeout=1) == 0
                        break
                    except Exception:
                        await anyio.sleep(0.05)


@pytest.mark.parametrize("field", ["in", "out", "asleep", "sent:{here}", "read:{here}"])
async def test_a_damaged_count_of_a_node_loses_nothing(field: str) -> None:
    async with pair() as (here, there), RedisClient(shared_server().url) as client:
        await there.expose(await there.spawn(Plain), "actor")
        ref = await here.resolve("actor")
        await ref.ask(Total())
        directory, identity = node_of(there)._membership.directory, node_of(there).identity
        name = field.format(here=node_of(here).identity)
        for value in ("", "abc", "nan", "-nan", "inf", "-1", "1e300", "\x00", "9" * 400, "x" * 10_000):
            await client.execute("HSET", directory._node(identity), name, value)
            assert await ref.ask(Total(), timeout=20) == 0, value
        assert node_of(there).identity == identity


HALF = "caf\udce9"


async def test_names_that_are_no_unicode_text_are_refused_where_they_are_given() -> None:
    with pytest.raises(ValueError, match=r"RedisNode: cluster='caf\\udce9' is no Unicode text"):
        node(HALF)
    async with pair() as (here, there):
        own = await there.spawn(Plain)
        for call in (there.expose(own, HALF), here.resolve(HALF)):
            with pytest.raises(ValueError, match=r"name='caf\\udce9' is no Unicode text"):
                await call
        for odd in ("a{b}", "a:b", "\0", "\u202e", "a\r\nb", "*", "x" * 200, "' .. redis.call('FLUSHALL') .. '"):
            await there.expose(own, odd)
            assert await (await here.resolve(odd)).ask(Total()) == 0
        with pytest.raises(ActorNotFound):
            await here.resolve("a{b")


async def test_resolving_while_the_answers_of_the_server_make_no_sense_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async with pair() as (here, _):
        directory = node_of(here)._membership.directory

        async def nonsense(*_: Any, **__: Any) -> Any:
            return 7

        monkeypatch.setattr(directory.server, "run", nonsense)
        with pytest.raises(StoreRefused, match="resolve 'x' of the cluster"):
            await here.resolve("x")
        monkeypatch.undo()
