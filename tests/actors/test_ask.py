"""What comes of an ask: the answer, or an error that says whether the work may have been done."""

import asyncio
import math
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from cuelight import (
    Actor,
    ActorCrashed,
    ActorSystem,
    Interrupted,
    Message,
    NotStarted,
    Ref,
    ReplyError,
    Request,
    child,
    on,
)
from cuelight.errors import InterruptedTimeout, NotStartedTimeout
from cuelight.testing import VIRTUAL_BACKENDS, assert_no_orphans, virtual_backend, wait_until_idle
from helpers import Backend
from helpers.players import Bang, Boom, Busy, Get, Hold, Loop, Plain, Put, Refuse, Wait, outcome, settle


@pytest.fixture(params=[*VIRTUAL_BACKENDS, "asyncio-debug", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    if request.param in VIRTUAL_BACKENDS:
        return virtual_backend(request.param)
    return ("asyncio", {"debug": True} if request.param == "asyncio-debug" else {"use_uvloop": True})


@pytest.mark.parametrize("kind", [Plain, Busy, Loop])
async def test_ask_answers_refuses_and_crashes_alike_for_every_kind_of_actor(kind: Any) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(child(kind).with_options(restart="temporary"))
        assert await ref.ask(Get()) == []
        with pytest.raises(ReplyError, match="no"):
            await ref.ask(Refuse())
        await ref.tell(Put(1))
        with pytest.raises(ReplyError, match="no"):
            await ref.ask(Refuse())  # queued
        assert await ref.ask(Get()) == [1]
        with pytest.raises(ActorCrashed, match=r"crashed on Boom\(why='x'\): ValueError: x") as caught:
            await ref.ask(Boom("x"))
        assert isinstance(caught.value.__cause__, ValueError)
        with pytest.raises(NotStarted, match="it has ended"):
            await ref.ask(Get())


async def test_a_crash_while_requests_are_queued_leaves_them_to_the_next_incarnation() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Plain)
        ref.tell_nowait(Put(1))
        crash, later = ref.ask(Boom()), ref.ask(Get())
        assert isinstance(await outcome(crash), ActorCrashed)
        assert await later == []


async def test_a_dead_target_fails_an_ask_at_once() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Busy)
        await ref.stop()
        reply = ref.ask(Get())
        assert reply.done
        with pytest.raises(NotStarted, match=r"did not take Get\(\): it has ended \(stopped\)"):
            await reply
        reply.cancel()
    assert isinstance(await outcome(ref.ask(Get())), NotStarted)


async def test_a_target_that_stops_refuses_new_requests_and_answers_the_queued() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Busy)
        await ref.tell(Hold())
        await settle()
        queued = ref.ask(Get())
        ref._cell.stop()
        with pytest.raises(NotStarted, match="it is stopping"):
            await ref.ask(Get())
        ref.interrupt()
        assert await queued == ["cut"]


async def test_cancelling_a_queued_ask_drops_the_request_unhandled() -> None:
    async with ActorSystem() as system:
        items: list[Any] = []
        ref = await system.spawn(Busy, items)
        await ref.tell(Hold())
        await settle()
        with anyio.move_on_after(0.01) as scope:
            await ref.ask(Wait())
        assert scope.cancelled_caught
        ref.interrupt()
        await wait_until_idle(system)
        assert items == ["cut"]  # that of Hold
        assert ref.statistics().handled == 0 or items == ["cut"]


async def test_cancelling_an_ask_in_flight_cancels_the_handler_and_the_actor_lives_on() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Busy)
        with anyio.move_on_after(0.01) as scope:
            await ref.ask(Wait())
        assert scope.cancelled_caught
        assert await ref.ask(Get()) == ["cut"]
        assert ref.statistics().restarts == 0
        assert not system.dead_letters.total


async def test_a_reply_can_be_cancelled_twice_and_after_the_answer() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Busy)
        reply = ref.ask(Wait())
        await settle()
        reply.cancel()
        reply.cancel()
        with pytest.raises(Interrupted, match="was cancelled while"):
            await reply
        answered = ref.ask(Get())
        assert await answered == ["cut"]
        answered.cancel()
        assert await answered == ["cut"]
        plain = await system.spawn(Plain)
        done = plain.ask(Get())
        done.cancel()
        assert await done == []
        assert done.done


async def test_timeouts_say_whether_the_handler_had_begun() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Busy)
        with pytest.raises(InterruptedTimeout, match="its handler was running and has been cancelled"):
            await ref.ask(Wait(), timeout=0.05)
        await ref.tell(Hold())
        with pytest.raises(NotStartedTimeout, match="it had not begun; 1 messages are in its mailbox") as caught:
            await ref.ask(Wait(), timeout=0.05)
        assert isinstance(caught.value, TimeoutError)
        ref.interrupt()
        assert await ref.ask(Get(), timeout=math.inf) == ["cut", "cut"]
        assert isinstance(await outcome(ref.ask(Wait(), timeout=0)), NotStartedTimeout | InterruptedTimeout)


async def test_a_request_that_nobody_awaits_is_still_cut_off_in_time() -> None:
    async with ActorSystem(ask_timeout=0.05) as system:
        ref = await system.spawn(Busy)
        reply = ref.ask(Wait())
        await system.wait_until_idle()  # its handler was cut off
        assert isinstance(await outcome(reply), InterruptedTimeout)
        assert await ref.ask(Get()) == ["cut"]


async def test_one_task_may_await_a_reply() -> None:
    async with ActorSystem() as system, anyio.create_task_group() as tasks:
        ref = await system.spawn(Busy)
        reply = ref.ask(Wait("a"))
        tasks.start_soon(outcome, reply)
        await settle()
        with pytest.raises(RuntimeError, match="awaited already"):
            await reply
        assert ref.interrupt()


class Forward(Request[Any]):
    timeout: float | None = None


class Remaining(Request[float]):
    pass


class Middle(Actor[Forward | Remaining]):
    """Asks another on behalf of its asker."""

    def __init__(self, to: Ref[Wait]) -> None:
        self.to = to

    @on(Forward)
    async def forward(self, message: Forward) -> Any:
        return await outcome(self.to.ask(Wait(), message.timeout))

    @on(Remaining)
    async def left(self, message: Remaining) -> float:
        return self.remaining


async def test_nested_asks_inherit_the_remaining_time() -> None:
    async with ActorSystem() as system:
        items: list[Any] = []
        last = await system.spawn(Busy, items)
        middle = await system.spawn(Middle, last)
        began = anyio.current_time()
        with pytest.raises(InterruptedTimeout):
            await middle.ask(Forward(), timeout=0.1)
        assert anyio.current_time() - began < 5
        await wait_until_idle(system)
        assert items == ["cut"]
        assert isinstance(await middle.ask(Forward(0.01), timeout=5), InterruptedTimeout)
        assert 0 < await middle.ask(Remaining(), timeout=1) <= 1.02
        assert await middle.ask(Remaining(), timeout=math.inf) == math.inf


async def test_cancelling_an_ask_reaches_through_nested_asks() -> None:
    async with ActorSystem() as system:
        items: list[Any] = []
        last = await system.spawn(Busy, items)
        middle = await system.spawn(Middle, last)
        reply = middle.ask(Forward())
        await settle()
        reply.cancel()
        await wait_until_idle(system)
        assert items == ["cut"]
        assert last.alive
        assert middle.alive


class Answer(Message):
    until: anyio.Event


class Slow(Actor[Wait | Answer | Get]):
    """Finishes its work even if it is cancelled."""

    @on(Wait)
    async def wait(self, message: Wait) -> str:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.1)
        return message.name

    @on(Answer)
    async def answer(self, message: Answer) -> None:
        with anyio.CancelScope(shield=True):
            await message.until.wait()

    @on(Get)
    async def get(self, message: Get) -> list[Any]:
        return []


async def test_late_replies_are_counted_never_delivered() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Slow)
        with pytest.raises(InterruptedTimeout):
            await ref.ask(Wait("late"), timeout=0.02)
        assert await ref.ask(Get()) == []
        assert system.late_replies == 1


async def test_a_message_that_was_handled_in_spite_of_an_interrupt_is_no_dead_letter() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Slow)
        until = anyio.Event()
        await ref.tell(Answer(until))
        await settle()
        assert ref.interrupt()
        until.set()
        assert await ref.ask(Get()) == []
        assert not system.dead_letters.total
        assert ref.statistics().handled == 2


class Step(Request[int]):
    """Passed along a chain of actors."""


class Link(Actor[Step]):
    def __init__(self, to: Ref[Step] | None, cut: list[int]) -> None:
        self.to, self.cut = to, cut

    @on(Step)
    async def step(self, message: Step) -> int:
        if self.to is not None:
            return 1 + await self.to.ask(message)
        if self.cut:
            return 0
        try:
            await anyio.sleep_forever()
        finally:
            self.cut.append(1)
        return -1


async def test_a_chain_of_ten_thousand_nested_asks_works_and_is_cancelled(anyio_backend: Backend) -> None:
    length = 1_000 if anyio_backend[1].get("debug") else 10_000
    async with ActorSystem(ask_timeout=3000) as system:
        cut: list[int] = []
        first = await system.spawn(Link, None, cut)
        for _ in range(length):
            first = await system.spawn(Link, first, cut)
        reply = first.ask(Step())
        await settle()
        reply.cancel()
        await wait_until_idle(system)
        assert cut == [1]
        assert await first.ask(Step()) == length
    assert_no_orphans(system)


class Pass(Message):
    left: int


class Passer(Actor[Pass]):
    def __init__(self, done: anyio.Event) -> None:
        self.done = done
        self.next: Ref[Pass] | None = None

    @on(Pass)
    def take(self, message: Pass) -> None:
        if message.left:
            self.ref.tell_nowait(Pass(message.left - 1))
        else:
            self.done.set()


async def test_a_chain_of_ten_thousand_tells_works() -> None:
    async with ActorSystem() as system:
        done = anyio.Event()
        ref = await system.spawn(Passer, done)
        await ref.tell(Pass(10_000))
        await done.wait()


async def test_native_cancel_of_an_asker_reaches_the_callee(anyio_backend_name: str) -> None:
    if anyio_backend_name != "asyncio":
        return
    async with ActorSystem() as system:
        ref = await system.spawn(Busy)

        async def ask() -> None:
            await ref.ask(Wait())

        task = asyncio.ensure_future(ask())
        await settle()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await ref.ask(Get()) == ["cut"]


async def test_native_cancel_of_the_task_of_an_actor_kills_it_and_tells_its_asker(anyio_backend_name: str) -> None:
    if anyio_backend_name != "asyncio":
        return
    async with ActorSystem() as system:
        for kind in ("busy", "idle"):
            ref = await system.spawn(Busy)
            if kind == "idle":
                ref.tell_nowait(Put("open"))
                await ref.ask(Wait())  # a checkpoint, so that it has a task
            reply = ref.ask(Wait() if kind == "busy" else Get())
            await settle()
            (task,) = [task for task in asyncio.all_tasks() if task.get_name() == ref.path]
            task.cancel()
            assert (await ref.ended()).describe() == "killed (its task was cancelled from outside)"
            result = await outcome(reply)
            assert isinstance(result, Interrupted) if kind == "busy" else result == []


setting: ContextVar[str] = ContextVar("setting", default="unset")


class SetIt(Request[str]):
    value: str


class Setter(Actor[SetIt]):
    @on(SetIt)
    def set_it(self, message: SetIt) -> str:
        before = setting.get()
        setting.set(message.value)
        return before


async def test_context_variables_of_a_handler_do_not_leak_into_the_asker() -> None:
    setting.set("mine")
    async with ActorSystem() as system:
        ref = await system.spawn(Setter)
        setting.set("changed")
        assert await ref.ask(SetIt("a")) == "mine"  # those of its spawner
        assert setting.get() == "changed"
        assert await ref.ask(SetIt("b")) == "a"  # its own stay
        ref._cell.runtime.inline = -1
        assert await ref.ask(SetIt("c")) == "b"
        assert setting.get() == "changed"


async def test_inline_asks_have_a_cooperative_budget() -> None:
    async with ActorSystem() as system, anyio.create_task_group() as tasks:
        ref = await system.spawn(Plain)
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await anyio.lowlevel.checkpoint()

        tasks.start_soon(other)
        await anyio.lowlevel.checkpoint()
        for _ in range(10_000):
            await ref.ask(Get())
        assert turns > 10_000 // 1024
        tasks.cancel_scope.cancel()


async def test_tells_let_other_tasks_run() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Plain)
        for number in range(10_000):  # many more than it has room for, and never full
            await ref.tell(Put(number))
        assert len(await ref.ask(Get())) == 10_000


async def test_what_a_crash_took_is_a_dead_letter_and_a_told_refusal_too() -> None:
    async with ActorSystem() as system:
        for kind in (Plain, Busy):
            ref: Ref[Any] = await system.spawn(kind)
            await ref.tell(Refuse())
            await ref.tell(Bang())
            await ref.ask(Get())
        letters = [(letter.message, letter.reason, type(letter.error)) for letter in system.dead_letters]
        assert letters == [(Refuse(), "refused", ReplyError), (Bang(), "crashed", ValueError)] * 2
