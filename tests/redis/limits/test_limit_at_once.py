"""The short form of `ask`, which lets a request through before the general form begins: both do the same."""

from __future__ import annotations

import secrets
from contextlib import closing
from typing import Any, Final, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuelight.coordination import RateLimitConfig
from cuelight.redis import RedisClient, Script
from cuelight.redis._limits._answers import unpack
from cuelight.redis._limits._config import AT_ONCE, Algorithm, LimiterConfig, pack, row_of, script_of, scripts_of
from helpers.redis_servers import shared_server

QUICK: Final[list[Algorithm]] = ["token_bucket", "sliding_counter"]
EPOCH: Final = 1_800_000_000_000_000
PARTY: Final = "p"
_read: Final = msgspec.msgpack.decode

# Each hash and sorted set as a list, the state as it is, and the time to live of each key.
LOOK: Final = Script(
    "local found = {} for index, key in ipairs(KEYS) do local kind = redis.call('TYPE', key).ok "
    "local read = {string = {'GET', key}, hash = {'HGETALL', key}, zset = {'ZRANGE', key, 0, -1, 'WITHSCORES'}} "
    "found[2 * index - 1] = read[kind] and redis.call(unpack(read[kind])) or '' "
    "found[2 * index] = redis.call('PTTL', key) end return found",
    "look",
)


class Twins:
    """Two limiters that are the same but for their names: one has the short form, the other has not."""

    def __init__(self, client: RedisClient, algorithm: Algorithm, configs: list[RateLimitConfig], permits: int) -> None:
        limits = {f"limit{number}": row_of(algorithm, config) for number, config in enumerate(configs)}
        self.client, self.limits = client, len(configs)
        self.scripts = scripts_of(algorithm)
        self.asks = self.scripts.ask, script_of("ask", algorithm=algorithm)
        self.plans = [LimiterConfig(secrets.token_hex(6), algorithm, limits, permits=permits) for _ in self.asks]
        self.now, self.number = EPOCH, 0

    def call(self, script: str, **fields: Any) -> dict[str, Any]:
        """Run a step of both, and compare what they answer and what is stored afterwards."""
        packed = pack({"now": self.now, "version": 0, **fields})
        answers: list[dict[str, Any]] = []
        stored: list[Any] = []
        for plan, ask in zip(self.plans, self.asks, strict=True):
            keys = plan.keys(PARTY)
            chosen = ask if script == "ask" else getattr(self.scripts, script)
            answer = self.client.run_blocking(chosen, keys, [plan.packed, packed])
            answers.append(unpack(script, self.limits, answer))
            stored.append(self._stored(keys))
        assert answers[0] == answers[1]
        (left, ends), (right, other_ends) = stored
        assert left == right
        # They were set one after the other; one that was not set is -1.
        assert all(abs(end - other) < 60_000 for end, other in zip(ends, other_ends, strict=True))
        return answers[0]

    def _stored(self, keys: list[str]) -> tuple[list[Any], list[int]]:
        found: list[Any] = self.client.run_blocking(LOOK, keys)
        state, line, asked, got, held, parties = found[::2]
        hashes = [{name: _read(value) for name, value in _pairs(one)} for one in (asked, got)]
        return [_read(state) if state else None, line, held, parties, *hashes], found[1::2]


def _pairs(flat: Any) -> list[tuple[bytes, bytes]]:
    return list(zip(flat[::2], flat[1::2], strict=True)) if flat else []


@pytest.mark.parametrize("algorithm", QUICK)
def test_over_redis_only_a_request_that_no_limit_holds_up_goes_at_once(algorithm: Algorithm) -> None:
    with closing(RedisClient(shared_server().url)) as client:
        twins = Twins(client, algorithm, [RateLimitConfig(5, 1.0)], 0)
        short = Script.load("cuelight.redis._limits", *AT_ONCE[algorithm])
        plan = twins.plans[0]

        def goes(cost: int, **fields: Any) -> bool:
            asked = {
                "now": twins.now,
                "version": 0,
                "id": secrets.token_hex(4),
                "party": PARTY,
                "costs": [cost],
            } | fields
            return client.run_blocking(short, plan.keys(PARTY), [plan.packed, pack(asked)]) is not None

        assert not goes(1), "nothing is stored yet"
        twins.call("ask", id="p:1", party=PARTY, costs=[1], wait=0)
        assert goes(2)
        assert not goes(3), "there is no room"
        assert not goes(1, version=7), "the caller knows other limits"
        assert not goes(1, at_most=2), "more would be welcome"
        assert goes(2)
        control = {"now": twins.now, "version": 0, "pause": 1000}
        client.run_blocking(twins.scripts.control, plan.keys(PARTY), [plan.packed, pack(control)])
        assert not goes(0), "there is a pause"


COSTS: Final = st.integers(0, 8)
STEPS: Final = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), COSTS, COSTS, st.sampled_from([0, 0, 0, 10, 2**52]), st.booleans()),
        st.tuples(st.just("again"), COSTS),
        st.tuples(st.just("adjust"), COSTS, COSTS),
        st.tuples(st.just("wait"), st.sampled_from([-5, 1, 3, 10, 40])),
        st.tuples(st.just("most"), COSTS, COSTS),
        st.tuples(st.just("control"), st.sampled_from([{"pause": 7}, {"resume": True}, {"left": [1, -1]}])),
        st.tuples(st.just("leave"), COSTS),
    ),
    min_size=4,
    max_size=25,
)


@pytest.mark.parametrize("permits", [0, 2])
@pytest.mark.parametrize("algorithm", QUICK)
@given(limits=st.tuples(st.integers(1, 6), st.integers(1, 15), st.integers(1, 6), st.integers(1, 15)), steps=STEPS)
def test_over_redis_a_request_that_goes_at_once_is_counted_as_any_other(
    algorithm: Algorithm, permits: int, limits: tuple[int, int, int, int], steps: list[Any]
) -> None:
    configs = [RateLimitConfig(most, window * 1e-6) for most, window in (limits[:2], limits[2:])]
    with closing(RedisClient(shared_server().url)) as client:
        twins = Twins(client, algorithm, configs, permits)
        asked: list[dict[str, Any]] = []
        for number, (step, *given_to) in enumerate(steps):
            _run(twins, asked, f"{PARTY}:{number}", step, given_to)


def _run(twins: Twins, asked: list[dict[str, Any]], name: str, step: str, given_to: list[Any]) -> None:
    if step in {"ask", "most"}:
        costs: list[int] = given_to[:2]
        wait, got = given_to[2:] or (0, False)
        fields: dict[str, Any] = {"id": name, "party": PARTY, "costs": costs, "wait": wait, "keep": got}
        if got and asked:
            fields["got"] = [asked[0]["id"]]
        if step == "most":
            fields["at_most"] = costs[0] + 2
        asked.append(fields | {"now": twins.now} | {"answer": twins.call("ask", **fields)})
    elif step == "wait":
        twins.now += given_to[0]
    elif step == "control":
        twins.call("control", **given_to[0])
    elif asked:
        one = cast("dict[str, Any]", asked[given_to[0] % len(asked)])
        fields = {key: value for key, value in one.items() if key not in {"answer", "now"}}
        if step == "again":
            twins.call("ask", **fields)
        elif step == "leave":
            twins.call("leave", id=one["id"], costs=one["costs"])
        elif one["answer"].get("granted"):
            tickets, was = one["answer"]["tickets"], one["costs"]
            costs = [given_to[1]] * twins.limits
            given = {"id": one["id"], "as": f"{name}/x", "tickets": tickets, "was": was, "costs": costs}
            twins.call("adjust", ended=False, **given)
