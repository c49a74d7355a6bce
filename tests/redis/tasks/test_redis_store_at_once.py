"""The short form of `add`, which takes plain tasks before the general form begins: both do the same."""

from __future__ import annotations

import secrets
from contextlib import suppress
from math import inf
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuelight.errors import PoolClosed, StoreRefused
from cuelight.redis import RedisClient, RedisStore, Script
from cuelight.redis._tasks import _scripts as steps
from cuelight.redis._tasks._scripts import ScriptCall, ScriptReply, script_of
from cuelight.tasks import Bound, Claim, Finish, Limit, Record
from helpers import BACKENDS, run_on
from helpers.redis_servers import shared_server
from helpers.stores import START, HandClock

GENERAL: Final = script_of("add.lua", "hand_over.lua")
SHORT: Final = Script(f"{steps.ADD.text.decode().split('-- The keys of one queue')[0]}\nreturn {{'', ''}}", "short")


class Watched(RedisStore):
    """A store whose adds take one form, and which keeps what it was answered and what was published."""

    def __init__(self, client: Any, clock: HandClock, add: Script) -> None:
        super().__init__(client, secrets.token_hex(8), prefix="at-once", clock=clock)
        self._nonce, self.form = "the same", add
        self.client: Any = client
        self.replies: list[ScriptReply] = []

    async def open(self) -> None:
        await super().open()
        self._publish = "RPUSH"  # a list in place of the channel

    async def _add(self, bounds: tuple[int, bool], task_rows: list[Any], blobs: list[bytes]) -> Any:
        reply = await self._step(ScriptCall(self.form, [task_rows, *bounds], blobs))
        self.replies.append(reply)
        return reply.answer

    async def wait_for_task(self, nonce: str, earlier: list[str], confirmed: list[str | int]) -> Any:
        """Claim a task for a worker that waits for one if there is none."""
        asked = ("w", nonce, 1, 10.0, self._waiting, [(one, 10.0, self._waiting, "w") for one in earlier], confirmed)
        reply = await self._step(ScriptCall(steps.EXCHANGE, [[], asked]))
        return reply.answer, reply.parts

    @property
    def _waiting(self) -> str:
        return self._channel.removesuffix("hints") + "waiting"

    async def stored(self) -> dict[str, Any]:
        """All that is kept of the queue, and what was published."""
        tag = steps.channel_of("at-once", self._queue).removesuffix(":tasks:hints")
        found: dict[str, Any] = {}
        for key in [*map(str, self._keys), self._channel, self._waiting]:
            name, expires = key.removeprefix(tag), await self.client.execute("PTTL", key) >= 0
            kind = await self.client.execute("TYPE", key)
            if kind == b"hash":
                found[name] = expires, await self.client.hgetall(key)
            elif kind == b"zset":
                found[name] = expires, await self.client.zrange(key, 0, -1, withscores=True)
                if name == ":tasks:idle":  # its members name the channel
                    found[name] = (
                        expires,
                        [(member.replace(tag.encode(), b""), score) for member, score in found[name][1]],
                    )
            elif kind == b"list":
                found[name] = expires, await self.client.lrange(key, 0, -1)
        return found


class Twins:
    """Two queues to which the same is done: one has the short form, the other has not."""

    def __init__(self, client: RedisClient) -> None:
        self.clock = HandClock()
        self.stores = [Watched(client, self.clock, form) for form in (steps.ADD, GENERAL)]
        self.records: list[Record] = []

    async def both(self, name: str, *args: Any, **options: Any) -> Any:
        answers: list[Any] = []
        for store in self.stores:
            try:
                answers.append(await getattr(store, name)(*args, **options))
            except (PoolClosed, StoreRefused) as error:
                answers.append(type(error))
        first, second = [await store.stored() for store in self.stores]
        assert first == second
        assert answers[0] == answers[1]
        assert self.stores[0].replies == self.stores[1].replies
        return answers[0]


NAMES: Final = st.sampled_from([f"t{number}" for number in range(8)])
PLAIN: Final = st.builds(
    Record,
    id=NAMES,
    type=st.just("t"),
    payload=st.binary(max_size=3),
    priority=st.integers(0, 4),
    nonce=st.sampled_from(["", "a", "b"]),
)
ODD: Final = st.builds(
    Record,
    id=NAMES,
    type=st.just("t"),
    priority=st.integers(-1, 4),
    delay=st.sampled_from([0.0, 2.0]),
    due=st.sampled_from([0.0, START - 5, START + 3]),
    deadline=st.sampled_from([inf, inf, START + 4]),
    unique=st.sampled_from([None, None, "u"]),
    unique_for=st.sampled_from([None, 2.0]),
    limits=st.sampled_from([(), (), (Limit("k", max_concurrent=1),)]),
    tenant=st.sampled_from([None, None, "x"]),
    result_ttl=st.sampled_from([0.0, 3.0]),
)
BOUNDS: Final = st.sampled_from([None, None, Bound(3, shed=False), Bound(4, shed=True)])
STEPS: Final = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(PLAIN, min_size=1, max_size=3), BOUNDS),
        st.tuples(st.just("add"), st.lists(PLAIN | ODD, min_size=1, max_size=3), BOUNDS),
        st.tuples(st.just("claim"), st.integers(1, 3)),
        st.tuples(st.just("wait for task"), st.booleans()),
        st.tuples(st.just("arm"), st.sampled_from(["hungry", "watched"])),
        st.tuples(st.just("wait"), st.sampled_from([-1.0, 1.0, 5.0, 100_000.0])),
        st.tuples(st.just("control"), st.sampled_from([{"paused": True}, {"paused": False}, {"closed": False}])),
    ),
    min_size=3,
    max_size=12,
)


async def scenario(taken: list[Any]) -> None:
    async with RedisClient(shared_server().url) as client:
        twins = Twins(client)
        for store in twins.stores:
            await store.open()
        for number, (step, *given_to) in enumerate(taken):
            await _run(twins, number, step, given_to)
        for store in twins.stores:
            await client.execute("DEL", *store._keys, store._channel, store._waiting)


async def _run(twins: Twins, number: int, step: str, given_to: list[Any]) -> None:
    if step == "add":
        await twins.both("add", *given_to)
    elif step == "claim":
        claim = Claim("w", f"c{number}", given_to[0], 10.0)
        exchange = await twins.both("exchange", [], claim)
        done = [Finish(lease.record.id, lease.epoch, "done") for lease in exchange.leases[1:]]
        await twins.both("exchange", done)
    elif step == "wait for task":
        confirmed = [lease for task in range(8) for lease in (f"t{task}", 1)] if given_to[0] else []
        earlier = [f"c{before}" for before in range(number)]
        await twins.both("wait_for_task", f"c{number}", earlier, confirmed)
    elif step == "arm":
        size = await twins.stores[0]._send(ScriptCall(steps.QUERY, ["size", False]))
        await twins.both("_subscribe_changes", given_to[0], size.version, size.claimable_version)
    elif step == "wait":
        twins.clock.advance(given_to[0])
    else:
        await twins.both("control", **given_to[0])


@given(taken=STEPS)
def test_plain_tasks_that_are_taken_at_once_are_kept_as_all_others(taken: list[Any]) -> None:
    run_on(BACKENDS["asyncio"], scenario, taken)  # what is compared are scripts


@pytest.mark.parametrize("closed", [False, True])
async def test_only_plain_tasks_are_taken_at_once(client: Any, closed: bool) -> None:
    store = Watched(client, HandClock(), SHORT)
    await store.open()

    async def goes(*records: Record, bound: Bound | None = None) -> bool:
        with suppress(IndexError, ValueError, StoreRefused):
            return all(added.outcome == "added" for added in await store.add(records, bound))
        return False

    assert not await goes(Record(id="0", type="t")), "the queue is new"
    store.form = GENERAL
    await store.add([Record(id="1", type="t")])
    if closed:
        await store.control(closed=True)
    store.form = SHORT
    assert await goes(Record(id="2", type="t"), Record(id="3", type="t")) is not closed
    oddities: list[dict[str, Any]] = [
        {"delay": 1.0},
        {"deadline": START + 5},
        {"unique": "u"},
        {"limits": (Limit("k", max_concurrent=1),)},
        {"tenant": "x"},
        {"priority": -1},
    ]
    for odd in oddities:
        assert not await goes(Record(id="odd", type="t", **odd)), odd
    assert not await goes(Record(id="2", type="t")), "it is there"
    assert not await goes(Record(id="4", type="t"), bound=Bound(3, shed=False)), "there is no room"
    for name, value in {"sequence": "-1", "sheds": "1", "resting": "1", "top": "5", "version": "x"}.items():
        kept = await client.hget(str(store._keys[0]), name)
        await client.hset(str(store._keys[0]), name, value)
        assert not await goes(Record(id="5", type="t")), name
        await (client.hset(str(store._keys[0]), name, kept) if kept else client.hdel(str(store._keys[0]), name))
    assert await goes(Record(id="6", type="t")) is not closed
