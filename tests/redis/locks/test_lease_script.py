"""The script itself, against a model in Python: the same calls, the same answers; and its invariants in between."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from cuelight.redis._locks._script import LEASE_SCRIPT
from helpers.lockable import over_redis
from helpers.redis_servers import RedisServer, redis_binary, shared_server

CLAIM = 1000
LINE_OF_THE_OTHERS = 1 << 40

_NOW = "local time = call('TIME')"
assert _NOW in LEASE_SCRIPT.text.decode()
TIMED = LEASE_SCRIPT.text.decode().replace(_NOW, "local time = { 0, 1000 * table.remove(ARGV) }")
"""The same script, told the time in ms by its last argument: the only way to know what it must answer."""


class Caller:
    """Calls the script with a time of its own."""

    def __init__(self, client: Any, names: str, capacity: int, text: str = TIMED) -> None:
        self.client, self.capacity = client, capacity
        self.keys = [f"{{{names}}}:{part}" for part in ("state", "held", "line", "members", "gone")]
        self.script = client.register_script(text)

    def call(self, now: int, op: str, *own: Any, lowerings: tuple[Any, ...] = (), capacity: int = 0) -> Any:
        flat = [part for pending_release in lowerings for part in pending_release]
        args = [op, "c:", capacity or self.capacity, len(lowerings), *flat, *own, now]
        return self.script(keys=self.keys, args=args)

    def acquire(
        self,
        now: int,
        member: str,
        number: int,
        weight: int = 1,
        lease: int = 5000,
        *,
        alive: int = 5000,
        delay: int = 0,
        first: bool = False,
        wait: bool = True,
        lowerings: tuple[Any, ...] = (),
    ) -> Any:
        own = (member, number, weight, lease, alive, delay, int(first), int(wait))
        return self.call(now, "acquire", *own, lowerings=lowerings)


@pytest.fixture(scope="module", params=["valkey", "redis"])
def client(request: pytest.FixtureRequest) -> Any:
    if request.param == "valkey":
        yield redis.Redis(port=shared_server().port, protocol=3)
        return
    binary = redis_binary()
    if binary is None:
        pytest.skip("this machine has no redis-server")
    with RedisServer(binary=binary) as server:
        yield redis.Redis(port=server.port, protocol=3)


@pytest.fixture
def caller(client: Any) -> Caller:
    return Caller(client, over_redis()["prefix"], 1)


# The model: the same rules, told in another way.


@dataclass
class MemberModel:
    """A member."""

    state: str
    number: int
    weight: int = 0
    lease: int = 0
    alive: int = 0
    delay: int = 0
    fence: int = 0
    ends: int = 0
    ticket: int = 0


@dataclass
class Model:
    capacity: int
    member_models: dict[str, MemberModel] = field(default_factory=dict[str, MemberModel])
    fence: int = 0
    sequence: int = 0
    not_before: int = 0
    expired: int = 0

    @property
    def used(self) -> int:
        return sum(member_model.weight for member_model in self.member_models.values() if member_model.state == "holds")

    def line(self) -> list[tuple[str, MemberModel]]:
        waiting = [pair for pair in self.member_models.items() if pair[1].state == "waits"]
        return sorted(waiting, key=lambda pair: pair[1].ticket)

    def fits(self, weight: int, now: int) -> bool:
        return self.used + weight <= self.capacity and now >= self.not_before

    def grant(self, member_model: MemberModel, ends: int, now: int) -> None:
        self.fence = max(self.fence + 1, now * 1000)
        member_model.state, member_model.fence, member_model.ends = "holds", self.fence, ends

    def lapse(self, now: int) -> None:
        for member_model in self.member_models.values():
            if member_model.state == "holds" and member_model.ends <= now:
                member_model.state = "lapsed"
                self.not_before = max(self.not_before, member_model.ends + member_model.delay)
                self.expired += 1

    def promote(self, now: int) -> None:
        for _, member_model in self.line():
            if member_model.alive <= now:
                member_model.state = "lapsed"
            elif self.fits(member_model.weight, now):
                self.grant(member_model, now + min(member_model.lease, CLAIM), now)
            else:
                return

    def lower(self, member: str, number: int, left: int) -> int:
        member_model = self.member_models.get(member)
        if member_model is not None and member_model.number > number:
            return 0
        if member_model is None or member_model.number < number:
            self.member_models[member] = MemberModel("left", number)
            return 0
        if member_model.state == "gave back":
            return 1
        if member_model.state == "holds":
            member_model.weight = min(member_model.weight, left) if left else member_model.weight
            member_model.state = "holds" if left else "gave back"
            return 1
        waited, member_model.state = member_model.state == "waits", "left"
        return 2 if waited else 0

    def acquire(self, now: int, member: str, new: MemberModel, first: bool, wait: bool) -> Any:
        member_model = self.member_models.get(member)
        if member_model is not None and member_model.number < new.number and member_model.state in {"waits", "holds"}:
            member_model.state = "left"
        self.promote(now)
        if member_model is not None and member_model.number > new.number:
            return -1
        if member_model is not None and member_model.number == new.number:
            if member_model.state in {"gave back", "left"}:
                return -1
            if member_model.state == "holds":
                member_model.ends = now + member_model.lease
                return 1, member_model.fence
            if member_model.state == "waits":
                new.ticket = member_model.ticket
        others = [one for one in self.line() if one[0] != member]
        if self.fits(new.weight, now) and not others and not (member_model and member_model.state == "waits"):
            self.member_models[member] = new
            self.grant(new, now + new.lease, now)
            return 1, new.fence
        if wait:
            if not new.ticket:
                self.sequence += 1
                new.ticket = self.sequence if first else self.sequence + LINE_OF_THE_OTHERS
            new.state = "waits"
            self.member_models[member] = new
        place = [name for name, _ in self.line()].index(member) if self._waits(member) else -1
        return 0, place

    def _waits(self, member: str) -> bool:
        return member in self.member_models and self.member_models[member].state == "waits"


MEMBERS = ["a/0", "a/1", "b/0", "c/0"]
CAPACITY = 3

pending_release = st.tuples(st.sampled_from(MEMBERS), st.integers(1, 4), st.integers(0, 2))
step = st.fixed_dictionaries(
    {
        "op": st.sampled_from(["acquire", "acquire", "acquire", "lower", "renew", "look"]),
        "pass": st.sampled_from([0, 1, 50, 400, 900, 1000, 2500]),
        "member": st.sampled_from(MEMBERS),
        "number": st.integers(1, 4),
        "weight": st.integers(1, CAPACITY),
        "lease": st.sampled_from([500, 2000]),
        "alive": st.sampled_from([300, 2000]),
        "delay": st.sampled_from([0, 0, 700]),
        "first": st.booleans(),
        "wait": st.booleans(),
        "lowerings": st.lists(pending_release, max_size=2),
        "again": st.booleans(),
        "lost": st.sampled_from([False] * 9 + [True]),
    }
)


def _expected(model: Model, now: int, one: dict[str, Any]) -> Any:
    model.lapse(now)
    outcomes = [model.lower(*each) for each in one["lowerings"]]
    if one["op"] == "acquire":
        new = MemberModel("new", one["number"], one["weight"], one["lease"], now + one["alive"], one["delay"])
        return outcomes, model.acquire(now, one["member"], new, one["first"], one["wait"])
    if one["op"] == "renew":
        member_model = model.member_models.get(one["member"])
        holds = member_model is not None and member_model.state == "holds" and member_model.number == one["number"]
        if member_model is not None and holds:
            member_model.ends = now + one["lease"]
        model.promote(now)
        return outcomes, [int(holds)]
    model.promote(now)
    if one["op"] == "look":
        held = sorted(
            (name, member_model.weight, member_model.fence)
            for name, member_model in model.member_models.items()
            if member_model.state == "holds"
        )
        return outcomes, model.used, model.expired, held, [name for name, _ in model.line()]
    return (outcomes,)


def _answered(caller: Caller, now: int, one: dict[str, Any]) -> Any:
    lowerings = tuple(one["lowerings"])
    member, number = one["member"], one["number"]
    if one["op"] == "acquire":
        names = ("alive", "delay", "first", "wait")
        reply = caller.acquire(
            now, member, number, one["weight"], one["lease"], lowerings=lowerings, **{name: one[name] for name in names}
        )
        if reply[1] == -1:
            return reply[0], -1
        return reply[0], (1, int(reply[2])) if reply[1] == 1 else (0, reply[4])
    if one["op"] == "renew":
        reply = caller.call(now, "renew", 1, member, number, one["lease"], lowerings=lowerings)
        return reply[0], reply[1]
    reply = caller.call(now, one["op"], lowerings=lowerings)
    if one["op"] == "look":
        held = sorted((name.decode(), int(weight), int(fence)) for name, weight, _, fence in reply[6])
        return reply[0], int(reply[2]), reply[3], held, [name.decode() for name, _ in reply[7]]
    return (reply[0],)


def _check_state(caller: Caller, model: Model) -> None:
    """Who waits is in line, who holds is in held, all others in gone; what is used is the sum of what is held.

    Or one is alone, and in the state.
    """
    client, (state, held, line, members, gone) = caller.client, caller.keys
    sets: list[set[bytes]] = [set(client.zrange(key, 0, -1)) for key in (held, line, gone)]
    _, *alone = client.get(state).split(b"|")
    member_models = {name: value.split(b":") for name, value in client.hgetall(members).items()}
    counted = [int(number) for number in alone[0].split(b":")] if len(alone) == 1 else None
    if counted is None:  # what the others say of it is old
        name, _, value = alone
        assert not sets[0] | sets[1]
        sets[2].discard(name)
        member_models[name] = value.split(b":")
        sets[0 if member_models[name][0] == b"h" else 2].add(name)
        counted = [model.used, 0, int(member_models[name][6])]
    assert sets[0] == {name for name, member_model in member_models.items() if member_model[0] == b"h"}
    assert sets[1] == {name for name, member_model in member_models.items() if member_model[0] == b"q"}
    assert sets[2] <= set(member_models)
    assert set(member_models) == sets[0] | sets[1] | sets[2]
    assert counted == [model.used, len(sets[1]), model.fence]
    assert sum(int(member_models[name][2]) for name in sets[0]) == model.used <= CAPACITY
    for key in caller.keys:
        assert client.pttl(key) != -1, "a key without a time to live"


def _follow(client: Any, steps: list[dict[str, Any]]) -> None:
    """Whenever the state is lost without its neighbours, all begins anew."""
    caller, model = Caller(client, over_redis()["prefix"], CAPACITY), Model(CAPACITY)
    now = 1_000_000
    for one in steps:
        now += one["pass"]
        if one["lost"]:
            caller.client.delete(caller.keys[0])
            model = Model(CAPACITY)
        expected = _expected(model, now, one)
        assert _answered(caller, now, one) == expected
        _check_state(caller, model)
        if one["again"] and one["op"] != "look":
            again = _answered(caller, now, one)
            assert _answered(caller, now, one) == again
            assert _expected(model, now, one) == again == _expected(model, now, one)
            _check_state(caller, model)


@given(steps=st.lists(step, min_size=1, max_size=25))
def test_the_script_of_leases_does_what_the_model_does(client: Any, steps: list[dict[str, Any]]) -> None:
    """The invariants of the script; and a call that is repeated at once says the same, and changes nothing."""
    _follow(client, steps)


call = st.fixed_dictionaries(
    {
        "pass": st.sampled_from([0, 0, 1, 1, 7, 400, 600]),
        "weight": st.integers(1, CAPACITY),
        "lease": st.sampled_from([500, 2000]),
        "alive": st.sampled_from([300, 2000]),
        "delay": st.sampled_from([0, 700]),
        "again": st.sampled_from([False] * 9 + [True]),
        "old": st.sampled_from([0] * 9 + [1]),
    }
)
turn = st.fixed_dictionaries(
    {
        "acquire": call.map(lambda one: [one]),
        "renew": st.lists(call, max_size=2),
        "lower": st.lists(call, min_size=1, max_size=2),
        "late": st.lists(call, max_size=1),
        "left": st.sampled_from([0, 0, 0, 1]),
    }
)


def _steps_of(turns: list[Any]) -> list[dict[str, Any]]:
    """One member that takes it, renews it and gives it back, again and again, sometimes with an old number."""
    steps = list[dict[str, Any]]()
    for number, each in enumerate(turns, 2):
        for part, op in (("acquire", "acquire"), ("renew", "renew"), ("lower", "lower"), ("late", "renew")):
            for one in each[part]:
                mine = number - one["old"]
                back = [(MEMBERS[0], mine, each["left"])] if op == "lower" else []
                rest = {"lost": False, "first": False, "wait": True, "member": MEMBERS[0], "number": mine}
                steps.append({**one, **rest, "op": op, "lowerings": back})
    return steps


@given(steps=st.lists(turn, min_size=2, max_size=10).map(_steps_of))
def test_one_who_is_alone_is_served_as_the_model_says(client: Any, steps: list[dict[str, Any]]) -> None:
    """What is usual goes a shorter way through the script."""
    _follow(client, steps)


# One by one.


def test_a_grant_that_is_not_claimed_goes_to_the_next(caller: Caller) -> None:
    assert caller.acquire(1000, "a/0", 1)[1] == 1
    assert caller.acquire(1000, "b/0", 1, alive=60_000)[4] == 0
    assert caller.acquire(1000, "c/0", 1, alive=60_000)[4] == 1
    assert caller.call(2000, "lower", lowerings=(("a/0", 1, 0),)) == [[1]]
    assert caller.acquire(2000 + CLAIM - 1, "c/0", 1)[1:5:3] == [0, 0]  # b has it, for a moment
    assert caller.acquire(2000 + CLAIM, "c/0", 1)[1] == 1


def test_an_end_that_comes_before_its_beginning_keeps_it_from_being_taken(caller: Caller) -> None:
    assert caller.call(1000, "lower", lowerings=(("a/0", 1, 0),)) == [[0]]
    assert caller.acquire(1000, "a/0", 1)[1] == -1
    assert caller.acquire(1000, "a/0", 2)[1] == 1


def test_nobody_gets_it_before_the_delay_after_a_lease_that_ran_out(caller: Caller) -> None:
    assert caller.acquire(1000, "a/0", 1, 1, 500, delay=300)[1] == 1
    assert caller.acquire(1600, "b/0", 1)[1:4] == [0, b"", 200]
    assert caller.acquire(1799, "b/0", 1)[1] == 0
    assert caller.acquire(1800, "b/0", 1)[1] == 1
    for number in (1, 2):
        assert caller.acquire(1800, "b/0", number)[1] == 1
        assert caller.call(1800, "lower", lowerings=(("b/0", number, 0),)) == [[1]]
    assert caller.acquire(1700, "b/0", 3)[1:4] == [0, b"", 100]  # the clock was set back


def test_fences_grow_when_the_state_is_lost(caller: Caller) -> None:
    first = int(caller.acquire(10_000, "a/0", 1)[2])
    caller.client.delete(*caller.keys)
    assert int(caller.acquire(10_001, "b/0", 1)[2]) > first


def test_the_dead_are_forgotten_after_a_while(caller: Caller) -> None:
    for number in range(30):
        assert caller.acquire(1000 + number, f"p{number}/0", 1)[1] == 1
        caller.call(1000 + number, "lower", lowerings=((f"p{number}/0", 1, 0),))
    assert caller.client.hlen(caller.keys[3]) == 29  # the last is alone, and in the state
    caller.call(70_000, "lower")
    assert caller.client.hkeys(caller.keys[3]) == [b"p29/0"]
    caller.call(140_000, "lower")
    assert caller.client.hlen(caller.keys[3]) == 0
    assert caller.client.pttl(caller.keys[0]) > 0


def test_the_dead_are_forgotten_while_one_is_alone(caller: Caller) -> None:
    for member in ("a/0", "b/0"):
        assert caller.acquire(1000, member, 1)[1] == 1
        assert caller.call(1000, "lower", lowerings=((member, 1, 0),)) == [[1]]
    for number in range(2, 50):
        assert caller.acquire(2000 * number, "b/0", number)[1] == 1
        assert caller.call(2000 * number, "lower", lowerings=(("b/0", number, 0),)) == [[1]]
    assert not caller.client.hexists(caller.keys[3], "a/0")


def test_a_key_that_is_used_for_hours_lives_on(caller: Caller) -> None:
    caller.acquire(1000, "a/0", 1, lease=3_600_000)
    caller.acquire(1000, "b/0", 1, alive=3_600_000)
    caller.client.pexpire(caller.keys[3], 60_000)
    caller.call(1000 + 1_700_000, "renew", 1, "a/0", 1, 3_600_000)
    assert caller.client.pttl(caller.keys[3]) <= 60_000
    caller.call(1000 + 1_800_000, "renew", 1, "a/0", 1, 3_600_000)
    assert caller.client.pttl(caller.keys[3]) > 3_600_000


def test_the_capacity_changes_when_nobody_depends_on_it(caller: Caller) -> None:
    assert caller.acquire(1000, "a/0", 1, 1, 500)[1] == 1
    assert caller.acquire(1000, "b/0", 1, 1, alive=300)[1] == 0
    larger = Caller(caller.client, caller.keys[0][1:].partition("}")[0], 5)
    assert larger.acquire(1100, "c/0", 1, 3)[1:] == [-2, b"1"]
    assert larger.acquire(1500, "c/0", 1, 3)[1] == 1
    assert caller.acquire(1500, "a/0", 2)[1:] == [-2, b"5"]
    assert larger.acquire(1500, "d/0", 1, 2)[1] == 1
    largest = Caller(caller.client, caller.keys[0][1:].partition("}")[0], 6)
    assert largest.call(9000, "look")[1] == 5
    assert larger.acquire(9000, "c/0", 2, 5)[1] == 1
    assert larger.call(9000, "lower", lowerings=(("c/0", 2, 0),)) == [[1]]
    assert largest.acquire(9000, "c/0", 3, 6)[1] == 1
    assert largest.call(9000, "look")[1] == 6


BAD = {
    "no number": ("acquire", "a/0", "x", 1, 1, 1, 0, 0, 0),
    "no weight": ("acquire", "a/0", 1, 0, 1, 1, 0, 0, 0),
    "a part of a weight": ("acquire", "a/0", 1, 0.5, 1, 1, 0, 0, 0),
    "more than there is": ("acquire", "a/0", 1, 2, 1, 1, 0, 0, 0),
    "no lease": ("acquire", "a/0", 1, 1, 0, 1, 0, 0, 0),
    "a delay in the past": ("acquire", "a/0", 1, 1, 1, 1, -1, 0, 0),
    "no lease to renew": ("renew", 1, "a/0", 1, 0),
    "no operation": ("destroy",),
}


@pytest.mark.parametrize("args", BAD.values(), ids=list(BAD))
def test_bad_arguments_change_nothing(caller: Caller, args: tuple[Any, ...]) -> None:
    with pytest.raises(redis.ResponseError, match="BADARG"):
        caller.call(1000, *args, lowerings=(("a/0", 1, 0),))
    assert not caller.client.exists(*caller.keys)


def test_bad_arguments_of_one_who_is_alone_change_nothing(caller: Caller) -> None:
    assert caller.acquire(1000, "a/0", 1)[1] == 1
    assert caller.call(1000, "lower", lowerings=(("a/0", 1, 0),)) == [[1]]
    state = caller.client.get(caller.keys[0])
    for bad in ((2, 2, 1, 1, 0), (2, 0, 1, 1, 0), (2, 1, 0.5, 1, 0), (2, 1, 1, "x", 0), (2, 1, 1, 1, -1)):
        with pytest.raises(redis.ResponseError, match="BADARG"):
            caller.call(1000, "acquire", "a/0", *bad, 0, 1)
    assert caller.acquire(1000, "a/0", 2, 1, 500)[1] == 1
    with pytest.raises(redis.ResponseError, match="BADARG"):
        caller.call(1000, "renew", 1, "a/0", 2, 0)
    assert caller.call(1000, "lower", lowerings=(("a/0", 2, 0),)) == [[1]]
    assert caller.client.get(caller.keys[0]) != state


def test_a_member_that_is_no_member_is_refused(caller: Caller) -> None:
    caller.acquire(1000, "a/0", 1)
    caller.acquire(1000, "b/0", 1)
    caller.client.hset(caller.keys[3], "a/0", "nonsense")
    with pytest.raises(redis.ResponseError, match="CORRUPT member a/0: nonsense"):
        caller.acquire(1000, "a/0", 1)


def test_the_keys_at_the_top_of_the_script_are_those_it_uses() -> None:
    text = LEASE_SCRIPT.text.decode()
    assert re.findall(r"^--   (\d) (\w+)", text, re.MULTILINE)[:5] == [
        ("1", "state"),
        ("2", "held"),
        ("3", "line"),
        ("4", "members"),
        ("5", "gone"),
    ]
