"""Requests that a turn has sent through an actor pool end with it, wherever they are."""

# Replies are Any here: no annotation could say more.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownLambdaType=false

from __future__ import annotations

import gc
import math
import threading
import warnings
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from cuelight import Actor, ActorPool, ActorSystem, Message, Request, child, on
from cuelight.errors import ActorCrashed, Interrupted, InterruptedTimeout
from cuelight.pools import Routing, pull, round_robin
from cuelight.testing import VIRTUAL_BACKENDS, assert_no_orphans, virtual_backend
from helpers import Backend
from helpers.players import outcome, settle

pytestmark = pytest.mark.filterwarnings("ignore:the answer to:RuntimeWarning")


@pytest.fixture(params=VIRTUAL_BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    return virtual_backend(request.param)


class Work(Request[str]):
    pass


class Quick(Request[str]):
    pass


class Job(Request[Any]):
    how: str = ""


class Done(Message):
    value: Any = None


class Worker(Actor[Work | Quick]):
    def __init__(self, log: list[str]) -> None:
        self.log = log

    @on(Work)
    async def work(self, message: Work) -> str:
        self.log.append("begun")
        try:
            await anyio.sleep_forever()
        finally:
            self.log.append("cancelled")
        return ""

    @on(Quick)
    def quick(self, message: Quick) -> str:
        return "quick"


class Sender(Actor[Job | Done]):
    """Asks a pool, and is done, fails or waits for the first answer."""

    def __init__(self, pool: ActorPool[Any], requests: int, send: Callable[[ActorPool[Any]], Any]) -> None:
        self.pool, self.requests, self.send = pool, requests, send
        self.kept: list[Any] = []

    @on(Job)
    async def job(self, message: Job) -> Any:
        if message.how == "background":
            self.pipe_to_self(self._work(), Done)
            return None
        self.kept = [self.send(self.pool) for _ in range(self.requests)]
        await anyio.sleep(0.1)
        if message.how == "raise":
            raise ValueError(message.how)
        if message.how == "wait":
            await self.kept[0]
        return message.how

    async def _work(self) -> None:
        self.kept = [self.send(self.pool) for _ in range(self.requests)]
        await anyio.sleep(1)

    @on(Done)
    def done(self, message: Done) -> None:
        pass


def _asked(pool: ActorPool[Any]) -> Any:
    return pool.ask(Work(), timeout=1000)


ENDS: dict[str, Any] = {
    "cancelled": lambda _, reply: reply.cancel(),
    "interrupted": lambda ref, _: ref.interrupt(),
    "killed": lambda ref, _: ref._cell.kill("a test"),
    "overdue": None,
    "raised": None,
    "returned": None,
}


@pytest.mark.parametrize("rule", [pull, round_robin])
@pytest.mark.parametrize("end", ENDS)
async def test_a_turn_that_ends_withdraws_what_it_asked_actor_pools(end: str, rule: Routing) -> None:
    log: list[str] = []
    async with ActorPool(child(Worker, log), 2, routing=rule) as pool:
        system = pool.system
        ref = await system.spawn(child(Sender, pool, 4, _asked).with_options(restart="temporary"))
        how = {"raised": "raise", "returned": ""}.get(end, "wait")
        reply = ref.ask(Job(how), timeout=0.5 if end == "overdue" else 1000)
        await anyio.sleep(0.05)
        assert log == ["begun"] * 2
        if ENDS[end] is not None:
            ENDS[end](ref, reply)
        if end in ("raised", "overdue", "returned"):
            expected = {"raised": ActorCrashed, "overdue": InterruptedTimeout}.get(end, str)
            assert isinstance(await outcome(reply), expected)
        await settle()
        assert log.count("begun") == log.count("cancelled")
        if end != "overdue":  # then the time of the others is up at the same moment, in whichever order
            assert len(log) == 4  # the others have not begun, and never will
        assert pool.stats().queued == 0
        assert await pool.ask(Quick(), timeout=1) == "quick"
    assert_no_orphans(system)


async def test_background_work_that_ends_withdraws_what_it_asked_actor_pools() -> None:
    log: list[str] = []
    async with ActorPool(child(Worker, log), 2) as pool:
        ref = await pool.system.spawn(Sender, pool, 4, _asked)
        await ref.ask(Job("background"))
        await anyio.sleep(0.5)
        assert log == ["begun"] * 2
        await anyio.sleep(1)
        assert sorted(log) == ["begun"] * 2 + ["cancelled"] * 2
        assert pool.stats().queued == 0


async def test_a_detached_request_to_an_actor_pool_outlives_its_turn() -> None:
    log: list[str] = []
    async with ActorPool(child(Worker, log), 2) as pool:
        ref = await pool.system.spawn(Sender, pool, 3, lambda pool: _asked(pool).detach())
        await ref.ask(Job(), timeout=1)
        await anyio.sleep(10)
        assert (log, pool.stats().queued) == (["begun"] * 2, 1)
        actor: Any = ref._cell.actor
        for reply in actor.kept:
            reply.cancel()
        await settle()
        assert sorted(log) == ["begun"] * 2 + ["cancelled"] * 2


async def test_a_request_that_moves_to_another_member_still_ends_with_its_turn() -> None:
    log: list[str] = []

    def send(pool: ActorPool[Any]) -> Any:
        reply = _asked(pool)
        pool.members[0]._cell.kill("before it began")
        return reply

    async with ActorPool(child(Worker, log).with_options(restart="temporary"), 2) as pool:
        ref = await pool.system.spawn(Sender, pool, 1, send)
        reply = ref.ask(Job("wait"), timeout=1000)
        await anyio.sleep(1)
        assert (log, len(pool.members)) == (["begun"], 1)
        reply.cancel()
        await settle()
        assert log == ["begun", "cancelled"]


async def test_a_request_to_an_actor_pool_that_was_awaited_is_left_alone_when_the_turn_ends() -> None:
    class Asking(Actor[Job]):
        def __init__(self, pool: ActorPool[Any]) -> None:
            self.pool = pool

        @on(Job)
        async def job(self, message: Job) -> Any:
            answers = [await self.pool.ask(Quick()) for _ in range(5)]
            assert not self._cell.sent
            return answers

    async with ActorPool(child(Worker, [])) as pool:
        ref = await pool.system.spawn(Asking, pool)
        assert await ref.ask(Job()) == ["quick"] * 5


async def test_an_answer_of_an_actor_pool_that_nobody_awaited_is_warned_of() -> None:
    async with ActorPool(child(Worker, [])) as pool:
        for hear in ("", "done", "cancel", "detach", "await"):
            reply = pool.ask(Quick())
            await anyio.sleep(1)
            if hear == "done":
                assert reply.done
            elif hear == "await":
                await reply
            elif hear:
                getattr(reply, hear)()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                del reply
                gc.collect()
            told = [each for each in caught if "Quick()" in str(each.message)]  # garbage of others warns, too
            assert len(told) == (not hear), hear


async def test_actor_pools_refuse_seconds_that_are_none_and_other_threads() -> None:
    async with ActorSystem() as system:
        pool = ActorPool(child(Worker, []), system=system)
        await pool.start()
        for wrong in (math.nan, "1"):
            with pytest.raises((TypeError, ValueError), match="timeout"):
                await pool.ask(Quick(), timeout=wrong)  # type: ignore[arg-type]
        errors: list[BaseException] = []

        def elsewhere() -> None:
            for call in (pool.ask, pool.tell_nowait):
                try:
                    call(Quick())
                except RuntimeError as error:
                    errors.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert len(errors) == 2
        with pytest.raises(Interrupted):
            await pool.ask(Work(), timeout=0.5)
