"""Actor pools: who gets which message, what becomes of mail, and the life of the members."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuelight import Actor, ActorCrashed, ActorSystem, Backoff, Interrupted, Message, ReplyError, Request, child, on
from cuelight.errors import (
    ActorNotFound,
    DeadlockError,
    InterruptedTimeout,
    MailboxFull,
    NotStarted,
    NotStartedTimeout,
    PoolClosed,
    StartError,
)
from cuelight.pools import ActorPool, Member, broadcast, by_key, least_loaded, may_wait, pull, round_robin
from cuelight.testing import VIRTUAL_BACKENDS, assert_no_orphans, virtual_backend, wait_until_idle
from helpers import Backend


@pytest.fixture(params=VIRTUAL_BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    return virtual_backend(request.param)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.ERROR):
        yield


class Work(Request[int]):
    number: int
    seconds: float = 1.0


class Job(Message):
    number: int
    seconds: float = 1.0


class Crash(Request[None]):
    pass


class Bang(Message):
    pass


class Refuse(Message):
    pass


class Strange(Message):
    pass


class Quit(Message):
    pass


Log = list[tuple[str, int]]

Any_ = Work | Job | Crash | Bang | Refuse | Quit


class Worker(Actor[Any_]):
    """Writes down who did what."""

    def __init__(self, log: Log) -> None:
        self.log = log

    @on(Work)
    async def work(self, message: Work) -> int:
        self.log.append((self.name, message.number))
        await anyio.sleep(message.seconds)
        return message.number

    @on(Job)
    async def job(self, message: Job) -> None:
        self.log.append((self.name, message.number))
        await anyio.sleep(message.seconds)

    @on(Crash)
    async def crash(self, message: Crash) -> None:
        raise RuntimeError("crash")

    @on(Bang)
    async def bang(self, message: Bang) -> None:
        raise RuntimeError("bang")

    @on(Refuse)
    async def refuse(self, message: Refuse) -> None:
        raise ReplyError("no")

    @on(Quit)
    async def quit(self, message: Quit) -> None:
        self.stop()


def workers(log: Log, **options: Any) -> Any:
    return child(Worker, log).with_options(**options)


async def ask_all_of(pool: ActorPool[Any], messages: Sequence[Any]) -> list[Any]:
    replies = [pool.ask(message) for message in messages]
    return [await reply for reply in replies]


async def test_idle_members_pull_what_waits_in_the_order_in_which_it_came() -> None:
    log: Log = []
    async with ActorPool(workers(log), 3) as pool:
        began = anyio.current_time()
        assert await ask_all_of(pool, [Work(n, 1.0 if n else 5.0) for n in range(9)]) == list(range(9))
        assert anyio.current_time() - began == pytest.approx(5)
        assert [number // 3 for _, number in log][:3] == [0, 0, 0]
        counts = Counter(name for name, _ in log)
        assert sorted(counts.values()) == [1, 4, 4]  # who was busy got nothing that had to wait


async def test_what_is_told_is_pulled_too() -> None:
    log: Log = []
    async with ActorPool(workers(log), 2) as pool:
        for number in range(4):
            await pool.tell(Job(number))
        pool.tell_nowait(Job(4))
        await anyio.sleep(0.5)
        assert pool.stats().queued == 3
        assert sorted(number for _, number in log) == [0, 1]
        assert [one.queued for one in pool.stats().members.values()] == [0, 0]
        await pool.drain()
        assert pool.stats().queued == 0
    assert sorted(number for _, number in log) == list(range(5))


async def test_members_with_def_handlers_alone_pull() -> None:
    class Add(Request[int]):
        amount: int

    class Plain(Actor[Add | Quit]):
        def __init__(self) -> None:
            self.total = 0

        @on(Add)
        def add(self, message: Add) -> int:
            self.total += message.amount
            return self.total

        @on(Quit)
        def quit(self, message: Quit) -> None:
            raise ValueError("no")

    async with ActorPool(child(Plain), 2) as pool:
        totals = await ask_all_of(pool, [Add(1)] * 10)
        assert sorted(await pool.ask_all(Add(0))) == sorted([max(totals), 10 - max(totals)])


async def test_round_robin_takes_turns() -> None:
    log: Log = []
    async with ActorPool(workers(log), 3, routing=round_robin) as pool:
        await ask_all_of(pool, [Work(n, 0) for n in range(6)])
        await pool.tell(Job(6, 0))
        pool.tell_nowait(Job(7, 0))
    names = [name for name, _ in sorted(log, key=lambda entry: entry[1])]
    assert names == [*names[:3], *names[:3], *names[:2]]
    assert len(set(names)) == 3


async def test_the_least_loaded_member_gets_the_message() -> None:
    log: Log = []
    async with ActorPool(workers(log), 2, routing=least_loaded) as pool:
        first, second = pool.members
        for number in range(3):
            await first.tell(Job(number))
        await ask_all_of(pool, [Work(n) for n in range(10, 13)])
        assert [name for name, number in log if number >= 10] == [second.name] * 3


async def test_broadcast_is_for_all() -> None:
    log: Log = []
    async with ActorPool(workers(log), 3, routing=broadcast) as pool:
        await pool.tell(Job(1))
        pool.tell_nowait(Job(2))
        with pytest.raises(ValueError, match="3 members were chosen: use ask_all"):
            await pool.ask(Work(1))
        assert await pool.ask_all(Work(3)) == [3, 3, 3]
        with pytest.raises(ActorCrashed):
            await pool.ask_all(Crash())
    assert Counter(number for _, number in log) == {1: 3, 2: 3, 3: 3}


async def test_the_same_key_goes_to_the_same_member_over_crashes_and_resizes() -> None:
    def keyed(message: Any) -> int:
        return int(message.number)

    log: Log = []
    async with ActorPool(workers(log), 4, routing=by_key(keyed)) as pool:
        await ask_all_of(pool, [Work(n, 0) for n in range(60)])
        before = {number: name for name, number in log}
        assert len(set(before.values())) == 4
        victim = pool.members[0]
        await victim.tell(Bang())
        await wait_until_idle(pool.system)
        log.clear()
        await ask_all_of(pool, [Work(n, 0) for n in range(60)])
        assert {number: name for name, number in log} == before
        pool.resize(5)
        log.clear()
        await ask_all_of(pool, [Work(n, 0) for n in range(60)])
        grown = {number: name for name, number in log}
        newcomer = pool.members[-1].name
        moved = {number for number in before if grown[number] != before[number]}
        assert moved
        assert {grown[number] for number in moved} == {newcomer}
        pool.resize(3)
        log.clear()
        await ask_all_of(pool, [Work(n, 0) for n in range(60)])
        shrunk = {number: name for name, number in log}
        left = {member.name for member in pool.members}
        assert all(shrunk[number] == before[number] for number in before if before[number] in left)


async def test_a_rule_of_ones_own_is_a_function() -> None:
    @may_wait
    def even_to_the_first(members: Sequence[Member], message: Any, turn: int) -> Sequence[int]:
        at = int(message.number) % 2
        return [at] if members[at].ready else []

    log: Log = []
    async with ActorPool(workers(log), 2, routing=even_to_the_first) as pool:
        assert await ask_all_of(pool, [Work(n) for n in (0, 2, 1, 4)]) == [0, 2, 1, 4]
        names = {number: name for name, number in log}
        assert names[0] == names[2] == names[4] != names[1]
        with pytest.raises(AttributeError, match="number"):
            await pool.ask(Crash())
        await pool.tell(Quit())
        assert await pool.ask(Work(5)) == 5
        assert pool.system.dead_letters.counts == {"unhandled": 1}


async def test_a_member_that_crashes_costs_its_message_and_the_others_go_on() -> None:
    log: Log = []
    async with ActorPool(workers(log, backoff=Backoff(10, 10, 0)), 2) as pool:
        with pytest.raises(ActorCrashed, match="crash"):
            await pool.ask(Crash())
        began = anyio.current_time()
        assert await ask_all_of(pool, [Work(n) for n in range(3)]) == [0, 1, 2]
        assert anyio.current_time() - began == pytest.approx(3)  # nothing waited for the one that is restarting
        assert len({name for name, _ in log}) == 1
        await anyio.sleep(10)
        await ask_all_of(pool, [Work(n) for n in range(2)])
        assert len({name for name, _ in log}) == 2


async def test_what_waits_is_pulled_when_the_only_member_was_restarted() -> None:
    log: Log = []
    async with ActorPool(workers(log), 1) as pool:
        for message in (Bang(), Job(1), Bang(), Job(2)):
            await pool.tell(message)
        assert await pool.ask(Work(3)) == 3
        assert [number for _, number in log] == [1, 2, 3]
        assert pool.system.dead_letters.counts == {"crashed": 2}


async def test_a_failure_that_nobody_asked_about_is_a_dead_letter() -> None:
    async with ActorPool(workers([]), 1) as pool:
        strange: Any = Strange()
        for message in (Refuse(), Bang(), strange):
            await pool.tell(message)
        await pool.tell(Job(1, 100))
        await anyio.sleep(50)
        pool.members[0].interrupt("test")
        await wait_until_idle(pool.system)
        letters = pool.system.dead_letters
        assert letters.counts == {"refused": 1, "crashed": 1, "unhandled": 1, "interrupted": 1}


async def test_a_message_that_was_redelivered_too_often_is_one_dead_letter() -> None:
    async with ActorPool(workers([], redeliver=2), 1) as pool:
        await pool.tell(Bang())
        await wait_until_idle(pool.system)
        assert pool.system.dead_letters.counts == {"quarantined": 1}
        assert await pool.ask(Work(1)) == 1


async def test_members_with_a_loop_of_their_own_pull() -> None:
    done: list[Any] = []

    class Loop(Actor[Work | Job]):
        async def run(self) -> None:
            async for message in self.inbox:
                await anyio.sleep(1)
                done.append(message)
                if isinstance(message, Work):
                    self.inbox.reply(message.number)

    async with ActorPool(child(Loop), 1) as pool:
        await pool.tell(Job(1))
        await pool.tell(Job(2))
        assert await pool.ask(Work(3)) == 3
        assert done == [Job(1), Job(2), Work(3)]
        assert not pool.system.dead_letters.counts


async def test_a_request_that_waits_times_out_or_is_cancelled_and_leaves_its_place() -> None:
    log: Log = []
    async with ActorPool(workers(log), 1, capacity=2) as pool:
        running = pool.ask(Work(0, 10))
        with pytest.raises(NotStartedTimeout):
            await pool.ask(Work(1), timeout=1)
        with anyio.move_on_after(1):
            await pool.ask(Work(2))
        given_up = pool.ask(Work(3))
        given_up.cancel()
        assert given_up.done
        with pytest.raises(NotStarted, match="cancelled"):
            await given_up
        assert pool.stats().queued == 0
        assert await running == 0
        slow = pool.ask(Work(4, 10))
        await anyio.sleep(1)
        slow.cancel()
        assert await pool.ask(Work(5)) == 5
        assert [number for _, number in log] == [0, 4, 5]


async def test_one_task_awaits_a_reply() -> None:
    async with ActorPool(workers([]), 1) as pool, anyio.create_task_group() as group:
        reply = pool.ask(Work(1))

        async def wait() -> None:
            assert await reply == 1

        group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(RuntimeError, match="awaited already"):
            await reply


async def test_a_full_pool_lets_tell_wait() -> None:
    log: Log = []
    async with ActorPool(workers(log), 1, capacity=2) as pool:
        for number in range(3):
            await pool.tell(Job(number))
        with pytest.raises(MailboxFull, match="2 messages wait in /actors/actors"):
            pool.tell_nowait(Job(9))
        began = anyio.current_time()
        await pool.tell(Job(3))
        assert anyio.current_time() - began == pytest.approx(1)
        with anyio.move_on_after(0.5):
            await pool.tell(Job(9))
    assert [number for _, number in log] == [0, 1, 2, 3]


async def test_members_that_leave_finish_their_mail_and_give_back_what_they_did_not_begin() -> None:
    log: Log = []
    async with ActorPool(workers(log), 3) as pool:
        replies = [pool.ask(Work(n)) for n in range(6)]
        await anyio.sleep(0.5)
        pool.resize(1)
        assert len(pool.members) == 1
        assert [await reply for reply in replies] == list(range(6))
        assert len(log) == 6
        pool.resize(2)
        await pool.members[0].kill("test")
        assert len(pool.members) == 1
        assert await pool.ask(Work(7)) == 7
        await pool.tell(Quit())
        await wait_until_idle(pool.system)
        assert not pool.members
        waits = pool.ask(Work(8))
        await anyio.sleep(1)
        pool.resize(1)
        assert await waits == 8
        with pytest.raises(ValueError, match="size=0"):
            pool.resize(0)


async def test_a_pool_without_members_says_so() -> None:
    async with ActorPool(workers([]), 1, routing=round_robin) as pool:
        await pool.members[0].stop()
        with pytest.raises(ActorNotFound, match=r"resize\(\)"):
            await pool.tell(Job(1))
        with pytest.raises(ActorNotFound):
            await pool.ask(Work(1))


@pytest.mark.parametrize("routing", [pull, round_robin])
async def test_leaving_the_block_finishes_what_waits(routing: Any) -> None:
    log: Log = []
    async with ActorPool(workers(log, shutdown=math.inf), 2, routing=routing) as pool:
        for number in range(4):
            await pool.tell(Job(number))
    assert sorted(number for _, number in log) == [0, 1, 2, 3]
    assert not pool.members
    with pytest.raises(PoolClosed):
        await pool.tell(Job(1))
    with pytest.raises(PoolClosed):
        pool.tell_nowait(Job(1))
    with pytest.raises(PoolClosed):
        await pool.ask(Work(1))


async def test_leaving_the_block_by_an_exception_ends_the_members_at_once() -> None:
    began, reply, waiting = anyio.current_time(), None, None
    async with ActorSystem() as system:
        with pytest.raises(KeyError):
            async with ActorPool(workers([]), 1, system=system) as pool:
                reply, waiting = pool.ask(Work(1, 100)), pool.ask(Work(2))
                await pool.tell(Job(3))
                await anyio.sleep(1)
                raise KeyError
        assert reply is not None
        assert waiting is not None
        with pytest.raises(Interrupted):
            await reply
        with pytest.raises(NotStarted, match="before a member was free"):
            await waiting
        assert system.dead_letters.counts == {"stopped": 1}
    assert anyio.current_time() - began == pytest.approx(1)
    assert_no_orphans(system)


async def test_a_pool_starts_in_a_given_system_and_ends_with_it() -> None:
    log: Log = []
    async with ActorSystem() as system:
        pool = ActorPool(workers(log, name="crew"), 2, system=system)
        with pytest.raises(PoolClosed, match="not running"):
            await pool.ask(Work(1))
        await pool.shutdown()
        pool = ActorPool(workers(log, name="crew"), 2, system=system)
        await pool.start()
        assert system.find("crew").path == "/system/crew"
        with pytest.raises(PoolClosed, match="started before"):
            await pool.start()
        await pool.tell(Job(1))
        await pool.tell(Job(2))
        await pool.tell(Job(3))
    assert sorted(number for _, number in log) == [1, 2, 3]
    assert_no_orphans(system)
    with pytest.raises(PoolClosed):
        await pool.tell(Job(4))
    with pytest.raises(ValueError, match="has no system"):
        await ActorPool(workers(log)).start()


async def test_members_that_cannot_start_fail_the_start() -> None:
    class Broken(Actor[Job]):
        def __init__(self) -> None:
            raise ValueError("broken")

        @on(Job)
        def job(self, message: Job) -> None:
            """Never."""

    with pytest.raises(StartError, match="broken"):
        async with ActorPool(child(Broken), 1):
            pass


async def test_too_many_crashes_restart_all_members_and_what_waits_is_kept() -> None:
    log: Log = []
    async with ActorPool(workers(log, backoff=Backoff(0, 0)), 2, max_restarts=2) as pool:
        for _ in range(3):
            await pool.tell(Bang())
        await pool.tell(Job(1))
        assert await pool.ask(Work(2)) == 2
        assert sorted(number for _, number in log) == [1, 2]
        assert len(pool.members) == 2
        assert list(pool.stats().members) == ["0", "1"]


async def test_a_member_that_waits_for_its_own_pool_in_a_circle_is_told() -> None:
    class Ask(Request[int]):
        pass

    class Selfish(Actor[Ask]):
        @on(Ask)
        async def ask(self, message: Ask) -> int:
            return await pools[0].ask(Ask())

    pools: list[ActorPool[Ask]] = []
    async with ActorPool(child(Selfish), 1, routing=round_robin) as pool:
        pools.append(pool)
        with pytest.raises(ActorCrashed) as caught:
            await pool.ask(Ask())
        assert isinstance(caught.value.__cause__, DeadlockError)
    pools.clear()
    async with ActorPool(child(Selfish), 1) as pool:
        pools.append(pool)
        with pytest.raises(ActorCrashed) as caught:
            await pool.ask(Ask())
        assert isinstance(caught.value.__cause__, DeadlockError)
        assert "an answer of the actor pool 'actors'" in str(caught.value.__cause__)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"size": 0}, "size=0"),
        ({"capacity": 0}, "capacity=0"),
        ({"capacity": math.nan}, "capacity=nan"),
        ({"max_restarts": math.nan}, "max_restarts=nan"),
        ({"max_restarts": -1}, "max_restarts=-1"),
        ({"within": math.nan}, "within=nan"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ActorPool(child(Worker, []), **options)


class Fake:
    def __init__(self, name: str, load: int) -> None:
        self.name, self.load = name, load

    @property
    def ready(self) -> bool:
        return not self.load


@given(loads=st.lists(st.integers(0, 3), min_size=1, max_size=8), turn=st.integers(0, 100), key=st.text())
def test_rules_choose_among_the_members_and_keys_stay_with_those_that_stay(
    loads: list[int], turn: int, key: str
) -> None:
    members = [Fake(str(at), load) for at, load in enumerate(loads)]
    route = by_key(lambda message: message)
    assert list(pull(members, key, turn)) == ([loads.index(0)] if 0 in loads else [])
    assert list(round_robin(members, key, turn)) == [turn % len(loads)]
    assert [loads[at] for at in least_loaded(members, key, turn)] == [min(loads)]
    assert list(broadcast(members, key, turn)) == list(range(len(loads)))
    (at,) = route(members, key, turn)
    assert list(route(members, key, turn + 1)) == [at]
    if len(members) > 1:
        gone = members[(at + 1) % len(members)]
        rest = [member for member in members if member is not gone]
        assert rest[route(rest, key, turn)[0]] is members[at]


@pytest.mark.parametrize("verb", ["kill", "stop"])
async def test_a_message_that_a_member_had_not_begun_when_it_ended_goes_to_another(verb: str) -> None:
    log: Log = []
    async with ActorPool(workers(log), 2) as pool:
        first, second = pool.members
        reply = pool.ask(Work(1), timeout=5)
        if verb == "kill":
            await first.kill("before it began")
            assert await reply == 1
            assert log == [(second.name, 1)]
            pool.tell_nowait(Job(2))
            await second.kill("before it began")
            assert pool.stats().queued == 1
            pool.resize(1)
            await pool.drain()
            await wait_until_idle(pool.system)
        else:  # who stops finishes what it was given
            await first.stop()
            assert await reply == 1
            await pool.tell(Job(2))
            await wait_until_idle(pool.system)
        assert [number for _, number in log] == [1, 2]
        assert not pool.system.dead_letters.counts


async def test_a_request_that_goes_to_another_member_keeps_its_deadline() -> None:
    async with ActorPool(workers([]), 2) as pool:
        first, second = pool.members
        reply = pool.ask(Work(1, 100), timeout=5)
        first._cell.kill("before it began")  # it ends when the reply is awaited already
        began = anyio.current_time()
        with pytest.raises(InterruptedTimeout):
            await reply
        assert anyio.current_time() - began == pytest.approx(5, rel=0.03)
        assert second.alive


async def test_telling_without_end_lets_others_run() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with ActorPool(workers([]), 1, capacity=math.inf) as pool, anyio.create_task_group() as group:
        group.start_soon(other)
        for number in range(1000):
            await pool.tell(Job(number, 0))
        group.cancel_scope.cancel()
    assert turns >= 2


async def test_cancelling_the_end_of_the_block_ends_the_members_of_an_actor_pool() -> None:
    began, pool = anyio.current_time(), ActorPool[Any_](workers([]), 1)
    with anyio.move_on_after(1):
        async with pool:
            await pool.tell(Job(1, 100))
            await pool.tell(Job(2, 100))
    assert anyio.current_time() - began == pytest.approx(1)
    assert not pool.members
    with pytest.raises(PoolClosed, match="not running"):
        _ = ActorPool(workers([])).system


async def test_an_actor_that_asks_a_pool_gives_it_what_is_left_of_its_own_time() -> None:
    class Ask(Request[int]):
        pass

    class Front(Actor[Ask]):
        @on(Ask)
        async def ask(self, message: Ask) -> int:
            return await pools[0].ask(Work(1, 100))

    pools: list[ActorPool[Any]] = []
    log: Log = []
    async with ActorPool(workers(log), 1) as pool:
        pools.append(pool)
        front = await pool.system.spawn(Front)
        began = anyio.current_time()
        with pytest.raises(InterruptedTimeout):
            await front.ask(Ask(), timeout=3)
        await wait_until_idle(pool.system)
        assert anyio.current_time() - began == pytest.approx(3, rel=0.03)
        assert await pool.ask(Work(2)) == 2
