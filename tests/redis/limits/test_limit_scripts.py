"""The scripts of the limiters, with a clock of the test: against the meters of one process, which know no server."""

import random
import secrets
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest

from cuelight.coordination import RateLimitConfig
from cuelight.coordination._meters import Bucket, Meter, WindowCounter, WindowLog
from cuelight.redis import RedisClient
from cuelight.redis._limits._answers import unpack
from cuelight.redis._limits._config import ALGORITHMS, Algorithm, LimiterConfig, bucket_row, pack, row_of, scripts_of
from helpers.redis_servers import RedisServer, redis_binary, shared_server

METERS: dict[Algorithm, Callable[[RateLimitConfig], Meter]] = {
    "token_bucket": Bucket,
    "sliding_window": WindowLog,
    "sliding_counter": WindowCounter,
}
MICROSECOND = 1e-6
EPOCH = 1_800_000_000_000_000


class Table:
    """The scripts of one limiter, called in a thread, at times that the test says."""

    def __init__(
        self, server: RedisServer, algorithm: Algorithm, *configs: RateLimitConfig, permits: int = 0, party: str = "p"
    ) -> None:
        limits = {f"limit{number}": row_of(algorithm, config) for number, config in enumerate(configs)}
        self.plan = LimiterConfig(secrets.token_hex(6), algorithm, limits, permits=permits)
        self.scripts, self.client, self.party = scripts_of(algorithm), RedisClient(server.url), party
        self.now, self.number = EPOCH, 0

    def call(self, script: str, **fields: Any) -> dict[str, Any]:
        fields = {"now": self.now, "version": 0, **fields}
        keys = self.plan.keys(self.party)
        answer = self.client.run_blocking(getattr(self.scripts, script), keys, [self.plan.packed, pack(fields)])
        return {**unpack(script, len(self.plan.names), answer)}

    def ask(self, *costs: int, wait: int = 0, name: str | None = None) -> dict[str, Any]:
        self.number += 1
        name = name or f"{self.party}:{self.number}"
        return {"id": name} | self.call("ask", id=name, party=self.party, costs=costs, wait=wait)

    def adjust(self, asked: dict[str, Any], was: list[int], *costs: int, name: str = "") -> dict[str, Any]:
        self.number += 1
        fields = {"id": asked["id"], "as": name or f"{asked['id']}/{self.number}", "tickets": asked["tickets"]}
        return self.call("adjust", was=was, costs=costs, ended=False, **fields)


def servers() -> list[Any]:
    """Valkey, and Redis where it is installed."""
    redis = pytest.param("redis", marks=pytest.mark.skipif(redis_binary() is None, reason="no redis-server here"))
    return ["valkey", redis]


@pytest.fixture(params=servers(), scope="module")
def server(request: pytest.FixtureRequest) -> Any:
    if request.param == "valkey":
        yield shared_server()
        return
    with RedisServer(binary=redis_binary()) as one:
        yield one


def configs(chance: random.Random) -> RateLimitConfig:
    limit = chance.randint(1, 6)
    burst = chance.choice([None, 1, chance.randint(1, 8)])
    return RateLimitConfig(limit, chance.randint(1, 15) * MICROSECOND, burst)


def in_microseconds(nanoseconds: int) -> int:
    return -(-nanoseconds // 1000)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_over_redis_each_step_is_that_of_the_limiter_in_one_process(algorithm: Algorithm, server: RedisServer) -> None:
    """Whether it goes, when it will, what is left, what a settlement does: 60 random limits, each a random program."""
    chance = random.Random(algorithm)
    for _ in range(60):
        config = configs(chance)
        meter, table = METERS[algorithm](config), Table(server, algorithm, config)
        booked: list[tuple[dict[str, Any], int, Any]] = []
        for _ in range(25):
            table.now += chance.choice([0, 0, 1, 2, chance.randint(0, 20)])
            now, cost = table.now * 1000, chance.randint(1, meter.max_cost)
            if booked and chance.random() < 0.3:
                asked, was, ticket = booked.pop(chance.randrange(len(booked)))
                real = chance.randint(0, 2 * meter.max_cost)
                ticket = meter.adjust(ticket, was, real, now)
                asked["tickets"] = table.adjust(asked, [was], real)["tickets"]
                booked.append((asked, real, ticket))
                continue
            due = meter.available_at(now, cost)
            asked = table.ask(cost)
            assert asked["granted"] == (due <= now)
            if due <= now:
                booked.append((asked, cost, meter.charge(now, now, cost)))
            else:
                assert asked["wait"] == in_microseconds(due - now), "too long or too short"
            assert asked["left"] == [meter.remaining(now)]
            assert asked["unused"] == in_microseconds(max(0, meter.unused_at(now) - now))


def test_over_redis_a_bucket_of_any_size_keeps_its_rate() -> None:
    """Where the numbers are too large for Lua, a cost takes longer to be paid off, never shorter, and hardly."""
    chance = random.Random(3)
    for _ in range(5_000):
        most = chance.choice([chance.randint(1, 1000), chance.randint(1, 10**9)])
        config = RateLimitConfig(most, chance.choice([1.0, 60.0, 86400.0, chance.random() * 1e5 + 1e-6]))
        interval, scale, burst = bucket_row(config)
        exact = Fraction(config.window_nanoseconds, config.max_requests * 1000)
        assert burst == most
        assert exact <= Fraction(interval, scale) <= exact * (1 + Fraction(1, 10**5))
        assert interval * burst < 2**51


def test_over_redis_several_limits_are_charged_together_or_not_at_all(server: RedisServer) -> None:
    for algorithm in ALGORITHMS:
        table = Table(server, algorithm, RateLimitConfig(5, 10.0), RateLimitConfig(100, 10.0))
        assert table.ask(1, 80)["granted"]
        refused = table.ask(1, 30)
        assert (refused["granted"], refused["left"]) == (False, [4, 20])
        assert table.ask(4, 20)["left"] == [0, 0]
        assert table.ask(0, 0)["granted"], "what it does not use does not hold it up"


def test_over_redis_what_is_sent_again_is_done_once(server: RedisServer) -> None:
    """Each step with the same name, a second time: the answer is the same, and nothing more has happened."""
    for algorithm in ALGORITHMS:
        table = Table(server, algorithm, RateLimitConfig(10, 10.0), permits=3)
        first = table.ask(4)
        assert table.ask(4, name=first["id"]) == first
        amended = table.adjust(first, [4], 6, name="x")
        assert table.adjust(first, [4], 6, name="x") == amended
        assert table.call("look", costs=[0])["left"] == [4]
        queued = [table.ask(5, wait=10**9) for _ in range(2)]
        assert [one["queued"] for one in queued] == [True, True]
        again = table.ask(5, wait=10**9, name=queued[0]["id"])
        assert (again["queued"], again["wait"]) == (True, queued[0]["wait"])
        assert table.call("look", costs=[0])["waiting"] == 2
        table.now += queued[0]["wait"]
        granted = table.ask(5, wait=10**9, name=queued[0]["id"])
        assert granted["granted"]
        assert table.ask(5, wait=10**9, name=queued[0]["id"]) == granted
        for _ in range(2):
            assert not table.call("leave", id=granted["id"], costs=[5])
            assert not table.call("leave", id=queued[1]["id"], costs=[5])
        look = table.call("look", costs=[0])
        assert (look["waiting"], look["held"]) == (0, 1)
        late = table.ask(5, wait=10**9, name=queued[1]["id"])
        assert late == {"id": queued[1]["id"], "error": "left"}, "it left: it must not come back"


def test_over_redis_a_clock_that_is_set_back_stops_nothing(server: RedisServer) -> None:
    hour = 3_600_000_000
    for algorithm in ALGORITHMS:
        table = Table(server, algorithm, RateLimitConfig(10, 10.0))
        assert table.ask(10)["granted"]
        table.call("control", pause=5_000_000)
        table.now -= hour
        refused = table.ask(1)
        assert not refused["granted"], "what was let through still counts"
        assert refused["wait"] <= 20_000_000
        table.now += refused["wait"]
        assert table.ask(1)["granted"]


def test_over_redis_every_key_ends_by_itself(server: RedisServer) -> None:
    for algorithm in ALGORITHMS:
        table = Table(server, algorithm, RateLimitConfig(4, 2.0), permits=2)
        first = table.ask(1)
        table.ask(2)
        table.ask(3, wait=10**9)
        table.ask(2, wait=10**9)
        table.call("control", pause=1_000_000)
        table.call("renew", party=table.party)
        table.adjust(first, [1], 2)
        keys: list[bytes] = table.client.execute_blocking("KEYS", f"{table.plan.tag}*")
        parts = {key.decode().removeprefix(table.plan.tag).split(":")[1] for key in keys}
        assert parts >= {"state", "line", "asked", "got", "held", "parties"}
        for key in keys:
            assert 1000 < table.client.execute_blocking("PTTL", key) <= 110_000


def test_over_redis_a_client_whose_lease_has_ended_holds_nothing(server: RedisServer) -> None:
    """Its permits, its places in line, and what it was granted and never took."""
    table = Table(server, "token_bucket", RateLimitConfig(100, 1.0), permits=1)
    other = Table(server, "token_bucket", RateLimitConfig(100, 1.0), party="dead")
    other.plan = table.plan
    held = other.ask(1)
    other.ask(50, wait=2**52)
    other.ask(40, wait=2**52)
    mine = table.ask(7, wait=2**52)
    assert (held["granted"], mine["queued"]) == (True, True)
    table.now += 5_000_000
    assert table.call("renew", party=table.party) == {"fresh": False}
    assert not table.ask(7, wait=2**52, name=mine["id"])["granted"]
    table.now += 5_000_001
    assert table.ask(7, wait=2**52, name=mine["id"])["granted"]
    assert table.call("look", costs=[0]) | {"waiting": 0, "held": 1, "left": [93]} == table.call("look", costs=[0])
    other.now = table.now
    assert other.call("renew", party="dead") == {"fresh": True}, "it learns that it was taken for dead"
    other.call("renew", party="dead", held=[held["id"]])
    assert table.call("look", costs=[0])["held"] == 2
