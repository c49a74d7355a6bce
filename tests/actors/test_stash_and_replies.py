"""Messages that are set aside: stashed to be handled later, or answered later."""

import gc
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
    ReplyPort,
    Request,
    child,
    on,
)
from cuelight.actors import Killed
from cuelight.errors import InterruptedTimeout
from cuelight.testing import VIRTUAL_BACKENDS, virtual_backend, wait_until_idle
from helpers import Backend
from helpers.players import Bang, Boom, Get, Loop, Put, outcome, settle


@pytest.fixture(params=VIRTUAL_BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    return virtual_backend(request.param)


class Later(Request[Any]):
    """Answered, handled or refused later."""

    item: Any = None
    twice: bool = False


class Open(Message):
    pass


class Shut(Actor[Put | Later | Open | Get | Bang]):
    """Stashes everything until it is opened."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.open = False

    @on(Put)
    def put(self, message: Put) -> None:
        if self.open:
            self.items.append(message.item)
        else:
            self.stash()

    @on(Later)
    def later(self, message: Later) -> Any:
        if self.open:
            return message.item
        self.stash()
        if message.twice:
            self.stash()
        return "not this"

    @on(Open)
    def do_open(self, message: Open) -> None:
        self.open = True
        self.unstash()

    @on(Get)
    def get(self, message: Get) -> list[Any]:
        return self.items

    @on(Bang)
    def bang(self, message: Bang) -> None:
        raise ValueError


class AsyncShut(Shut):
    async def put(self, message: Put) -> None:
        await anyio.lowlevel.checkpoint()
        Shut.put(self, message)

    async def later(self, message: Later) -> Any:
        await anyio.lowlevel.checkpoint()
        return Shut.later(self, message)


@pytest.mark.parametrize("kind", [Shut, AsyncShut])
async def test_stashed_messages_are_handled_in_order_after_unstash(kind: Any) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(kind)
        inline = ref.ask(Later("inline"))
        for number in range(3):
            await ref.tell(Put(number))
        queued = ref.ask(Later("queued"))
        await wait_until_idle(system)
        assert not inline.done
        assert not queued.done
        assert ref.statistics().queued == 0
        await ref.tell(Open())
        await ref.tell(Put("last"))
        assert (await inline, await queued) == ("inline", "queued")
        assert await ref.ask(Get()) == [0, 1, 2, "last"]
        assert not system.dead_letters.total


@pytest.mark.parametrize("kind", [Shut, AsyncShut])
async def test_unstash_wakes_an_idle_actor(kind: Any) -> None:
    async with ActorSystem() as system:
        ref: Ref[Any] = await system.spawn(kind)
        reply = ref.ask(Later(1))
        await wait_until_idle(system)
        actor: Any = ref._cell.actor
        actor.open = True
        actor.unstash()  # as background work may do
        assert await reply == 1


@pytest.mark.parametrize("kind", [Shut, AsyncShut])
async def test_a_full_stash_crashes_its_actor(kind: Any) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(child(kind).with_options(capacity=2, restart="temporary"))
        for number in range(3):
            await ref.tell(Put(number))
            await wait_until_idle(system)
        exit_: Any = await ref.ended()
        assert "the stash of" in str(exit_.error)
        assert "holds 2 messages: unstash(), or give it more capacity" in str(exit_.error)
        assert [(one.message.item, one.reason) for one in system.dead_letters] == [
            (2, "crashed"),
            (0, "stopped"),
            (1, "stopped"),
        ]


@pytest.mark.parametrize("kind", [Shut, AsyncShut])
async def test_the_stash_is_kept_over_a_crash(kind: Any) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(kind)
        await ref.tell(Put(1))
        reply = ref.ask(Later(2))
        await ref.tell(Bang())
        await ref.tell(Open())
        await wait_until_idle(system)
        assert ref.statistics().restarts == 1
        await ref.tell(Open())
        assert await ref.ask(Get()) == [1]
        assert await reply == 2


@pytest.mark.parametrize("kind", [Shut, AsyncShut])
async def test_what_is_stashed_at_the_end_is_a_dead_letter_or_not_started(kind: Any) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(kind)
        await ref.tell(Put(1))
        reply = ref.ask(Later(2))
        await wait_until_idle(system)
        await ref.stop()
        with pytest.raises(NotStarted):
            await reply
        assert [(one.message, one.reason) for one in system.dead_letters] == [(Put(1), "stopped")]


@pytest.mark.parametrize("kind", [Shut, AsyncShut])
async def test_a_stashed_request_keeps_its_deadline_and_can_be_cancelled(kind: Any) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(kind)
        began = anyio.current_time()
        with pytest.raises(NotStarted):
            await ref.ask(Later(1), timeout=5)
        assert anyio.current_time() - began == pytest.approx(5, abs=0.2)
        reply = ref.ask(Later(2))
        await wait_until_idle(system)
        reply.cancel()
        await ref.tell(Open())
        assert await ref.ask(Get()) == []


@pytest.mark.parametrize("kind", [Shut, AsyncShut])
async def test_a_message_is_set_aside_once(kind: Any) -> None:
    async with ActorSystem() as system:
        for queued in (False, True):
            ref = await system.spawn(kind)
            if queued:
                ref.tell_nowait(Get())
            result = await outcome(ref.ask(Later(1, twice=True)))
            assert isinstance(result, ActorCrashed)
            assert "was set aside already" in str(result.__cause__)
            await ref.kill()
        actor: Any = (await system.spawn(kind))._cell.actor
        actor.unstash()
        with pytest.raises(RuntimeError, match="no message is being handled"):
            actor.stash()
        with pytest.raises(RuntimeError, match="no message is being handled"):
            actor.defer_reply()


class Deferring(Actor[Later | Put | Get | Boom]):
    """Keeps the ports of what it is asked."""

    def __init__(self, ports: list[ReplyPort]) -> None:
        self.ports = ports

    @on(Later)
    def later(self, message: Later) -> Any:
        self.ports.append(self.defer_reply())
        if message.twice:
            self.defer_reply()
        return "not this"

    @on(Put)
    def put(self, message: Put) -> None:
        self.defer_reply()

    @on(Get)
    def get(self, message: Get) -> list[Any]:
        return []

    @on(Boom)
    def boom(self, message: Boom) -> None:
        self.ports.append(self.defer_reply())
        raise ValueError


class AsyncDeferring(Deferring):
    async def later(self, message: Later) -> Any:
        await anyio.lowlevel.checkpoint()
        return Deferring.later(self, message)

    async def boom(self, message: Boom) -> None:
        await anyio.lowlevel.checkpoint()
        Deferring.boom(self, message)


KINDS = [Deferring, AsyncDeferring]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_deferred_reply_is_sent_or_refused_later(kind: Any) -> None:
    async with ActorSystem() as system:
        ports: list[ReplyPort] = []
        ref = await system.spawn(kind, ports)
        replies = [ref.ask(Later()) for _ in range(3)]
        assert await ref.ask(Get()) == []  # it goes on meanwhile
        assert [reply.done for reply in replies] == [False] * 3
        assert not ports[0].abandoned
        ports[1].send("b")
        ports[0].send("a")
        ports[2].refuse(ReplyError("c"))
        assert ports[0].abandoned
        assert [str(await outcome(reply)) for reply in replies] == ["a", "b", "c"]
        ports[0].send("again")
        ports[0].refuse(ReplyError("again"))
        assert await replies[0] == "a"
        assert system.late_replies == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_a_reply_port_that_is_dropped_fails_the_ask(kind: Any) -> None:
    async with ActorSystem() as system:
        ports: list[ReplyPort] = []
        ref = await system.spawn(kind, ports)
        reply = ref.ask(Later(5))
        await settle()
        ports.clear()
        gc.collect()
        with pytest.raises(Interrupted, match=r"deferred the reply to Later\(item=5, twice=False\) and dropped it"):
            await reply
        answered = ref.ask(Later())
        await settle()
        ports.pop().send(1)
        assert await answered == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_an_ask_that_gives_up_leaves_its_port_abandoned(kind: Any) -> None:
    async with ActorSystem() as system:
        ports: list[ReplyPort] = []
        ref = await system.spawn(kind, ports)
        began = anyio.current_time()
        with pytest.raises(InterruptedTimeout):
            await ref.ask(Later(), timeout=3)
        assert anyio.current_time() - began == pytest.approx(3, abs=0.1)
        assert ports[0].abandoned
        ports[0].send(1)
        assert system.late_replies == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_what_cannot_be_deferred_crashes(kind: Any) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(child(kind, []).with_options(restart="temporary"))
        await ref.tell(Put(1))
        exit_: Any = await ref.ended()
        assert "was told, not asked" in str(exit_.error)
        for queued in (False, True):
            ports: list[ReplyPort] = []
            ref = await system.spawn(child(kind, ports).with_options(restart="temporary"))
            if queued:
                ref.tell_nowait(Get())
            result = await outcome(ref.ask(Later(twice=True)))
            assert "was set aside already" in str(result.__cause__)
            ref = await system.spawn(child(kind, ports).with_options(restart="temporary"))
            if queued:
                ref.tell_nowait(Get())
            assert isinstance(await outcome(ref.ask(Boom())), ActorCrashed)
            assert (await ref.ended()).abnormal


class Aside(Actor[Later | Put | Get]):
    """Goes on for ever after it has set its message aside."""

    @on(Later)
    async def later(self, message: Later) -> Any:
        self.port = self.defer_reply()
        await anyio.sleep_forever()

    @on(Put)
    async def put(self, message: Put) -> None:
        self.stash()
        if message.item == "crash":
            raise ValueError
        await anyio.sleep_forever()

    @on(Get)
    async def get(self, message: Get) -> list[Any]:
        return []


async def test_a_handler_that_set_its_message_aside_can_still_be_cancelled() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Aside)
        reply = ref.ask(Later())
        await settle()
        assert ref.statistics().running is None
        assert ref.interrupt()
        assert await ref.ask(Get()) == []
        assert not reply.done
        await ref.tell(Put(1))
        await settle()
        began = anyio.current_time()
        await ref.kill("now")
        assert anyio.current_time() == began
        assert await ref.ended() == Killed("now")
        assert [(one.message, one.reason) for one in system.dead_letters] == [(Put(1), "stopped")]
        crash = await system.spawn(child(Aside).with_options(restart="temporary"))
        await crash.tell(Put("crash"))
        assert (await crash.ended()).abnormal


async def test_a_run_loop_defers_and_is_told_what_it_forgot_to_answer() -> None:
    async with ActorSystem() as system:

        class Forgetful(Actor[Later | Put]):
            async def run(self) -> None:
                async for message in self.inbox:
                    if isinstance(message, Later) and message.item == "end":
                        return

        ref = await system.spawn(child(Forgetful).with_options(restart="temporary"))
        forgotten = ref.ask(Later(1))
        await settle()
        ended = ref.ask(Later("end"))
        with pytest.raises(Interrupted, match=r"took .* and went on without a reply"):
            await forgotten
        with pytest.raises(Interrupted, match="its run ended without a reply"):
            await ended
        loop = await system.spawn(Loop)
        assert isinstance(await outcome(loop.ask(Boom())), ActorCrashed)
