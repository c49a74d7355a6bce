"""What comes late, out of place or from nobody, between two nodes: it costs itself, and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from cuelight import (
    Actor,
    ActorCrashed,
    ActorSystem,
    Crashed,
    Interrupted,
    NotStarted,
    Ref,
    ReplyError,
    Request,
    Stopped,
    StreamRequest,
    Unknown,
    child,
    on,
)
from cuelight.actors import Killed, LinkedExit
from cuelight.redis import RedisClient, Undecoded
from cuelight.redis._actors import _frames as frames
from cuelight.redis._actors import _membership
from helpers.nodes import (
    Add,
    Boom,
    Count,
    Forward,
    Log,
    Names,
    Plain,
    Player,
    Refuse,
    Seen,
    Send,
    Slow,
    Total,
    Watcher,
    inside,
    node_of,
    pair,
    until,
)
from helpers.redis_servers import shared_server

NOBODY = 1_000_000


async def remote(here: ActorSystem, there: ActorSystem, kind: Any = Player, *args: Any) -> tuple[Ref[Any], Ref[Any]]:
    """An actor there: its ref as it is seen from here, and its own."""
    own = await there.spawn(kind, *args)
    await there.expose(own, "actor")
    return await here.resolve("actor"), own


def say(one: ActorSystem, to: ActorSystem, *words: frames.Frame) -> None:
    """Send frames from one node to another, whatever they mean there."""
    peer = node_of(one)._membership.peer(node_of(to).identity)
    for word in words:
        peer.send(word)


async def test_frames_about_unknown_actors_change_nothing(caplog: pytest.LogCaptureFixture) -> None:
    log = Log()
    async with pair() as (here, there):
        ref, own = await remote(here, there, Player, log)
        slow = ref.ask(Slow(0.1, "a"))  # the first request of this node
        say(
            here,
            there,
            frames.ReplyFrame(NOBODY, b"\xc0"),
            frames.FailFrame(NOBODY, "Interrupted", "no"),
            frames.ChunkFrame(NOBODY, b"\x01"),
            frames.MoreFrame(NOBODY, 3),
            frames.MoreFrame(1, 3),  # it is no stream
            frames.CancelFrame(NOBODY, overdue=False),
            frames.CreditFrame(NOBODY, 3),
            frames.EndedFrame(NOBODY, "Stopped", ""),
            frames.UpFrame(NOBODY),
            frames.SignalFrame(NOBODY, "kill", "no"),
            frames.LinkFrame(NOBODY, NOBODY, "/nobody", on=True),
        )
        say(there, here, frames.ChunkFrame(1, b"\x01"))
        assert await slow == "a"
        await ref.tell(Add(2))
        assert await ref.ask(Total()) == 2
        assert there.late_replies == 1
        assert here.late_replies == 0
        assert own.alive
        assert node_of(there).statistics().incarnation == node_of(here).statistics().incarnation == 1
    assert "internal error" not in caplog.text


@pytest.mark.parametrize(
    "fields",
    [("stray", "1"), ("s", "a", "q", "much", "t", "much", "v", "1", "p", "x"), ("s", b"\xff", "q", 1, "t", 1, "v", 1)],
    ids=["other fields", "no numbers", "too few"],
)
async def test_an_entry_in_an_inbox_that_is_no_batch_is_dead_lettered(fields: tuple[Any, ...]) -> None:
    async with pair(lease=1.0) as (here, there), RedisClient(shared_server().url) as client:
        ref, _ = await remote(here, there)
        directory = node_of(there)._membership.directory
        await client.execute("XADD", directory._stream(directory.identity), "*", *fields)
        await ref.tell(Add(1))
        assert await ref.ask(Total()) == 1
        (letter,) = there.dead_letters
        assert letter.reason == "undecodable"
        assert isinstance(letter.message, Undecoded)
        assert (letter.message.kind, letter.message.sender) == ("batch", "nobody")
        await until(lambda: node_of(there).statistics().peers == 1)  # nobody is no node
        assert node_of(there).statistics().incarnation == 1


async def test_a_frame_that_cannot_be_processed_costs_itself_and_is_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    handlers: dict[Any, Any] = _membership._HANDLERS
    deal = handlers[frames.TellFrame]

    def fail_at_two(peer: Any, frame: Any) -> None:
        if frame.body[-1] == 2:
            raise ZeroDivisionError
        deal(peer, frame)

    monkeypatch.setitem(handlers, frames.TellFrame, fail_at_two)
    async with pair() as (here, there):
        ref, own = await remote(here, there, Plain)
        for amount in (1, 2, 3):
            ref.tell_nowait(Add(amount))
        assert await ref.ask(Total()) == 4
        assert inside(own).amounts == [1, 3]
    (record,) = [one for one in caplog.records if "internal error" in one.message]
    assert "TellFrame(" in record.message


async def test_a_chunk_that_comes_after_its_reader_has_left_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    third = anyio.Event()

    class Telling(list[str]):
        def append(self, line: str) -> None:
            super().append(line)
            if line == "sent 2":
                third.set()

    log = Log()
    log.lines = Telling()
    async with pair() as (here, there):
        ref, _ = await remote(here, there, Player, log)
        async with ref.stream(Count(1000)) as stream:
            await third.wait()  # it was sent, and cannot be here yet
        assert [chunk async for chunk in _rest(stream)] == []
        await until(lambda: log.lines[-1] == "closed")
        assert await ref.ask(Total()) == 0
        assert node_of(here).statistics().asking == 0
    assert not caplog.records


async def _rest(stream: Any) -> AsyncIterator[int]:
    with pytest.raises(Interrupted, match="was closed by its reader"):
        async for chunk in stream:
            yield chunk


class Bursts(StreamRequest[int]):
    first: int
    second: int


class Burster(Actor[Bursts]):
    """Pauses between two bursts of chunks, and counts what it sent."""

    def __init__(self) -> None:
        self.sent, self.gate = 0, anyio.Event()

    @on(Bursts)
    async def burst(self, message: Bursts) -> AsyncIterator[int]:
        for number in range(message.first):
            self.sent += 1
            yield number
        await self.gate.wait()
        for number in range(message.second):
            self.sent += 1
            yield number


async def test_chunks_that_were_taken_while_a_handler_paused_make_room_for_later_ones() -> None:
    async with pair(messages=[Bursts]) as (here, there):
        ref, own = await remote(here, there, Burster)
        async with ref.stream(Bursts(10, 100)) as stream:
            assert [await anext(stream) for _ in range(10)] == list(range(10))
            taken = node_of(there)._membership.peer(node_of(here).identity).incoming_requests
            await until(lambda: [one.ahead for one in taken.asks.values()] == [2])  # it was told of eight
            inside(own).gate.set()
            await until(lambda: inside(own).sent == 10 + 14)
            await anyio.sleep(0.05)
            assert inside(own).sent == 10 + 14  # two that it was not told of and these are a window


async def test_a_remote_ask_that_is_given_up_at_once_is_never_begun() -> None:
    log = Log()
    async with pair() as (here, there):
        ref, _ = await remote(here, there, Player, log)
        reply = ref.ask(Slow(60, "a"))
        reply.cancel()
        with pytest.raises(Unknown, match="was cancelled"):
            await reply
        assert await ref.ask(Total()) == 0
        assert log.lines == []


async def test_stopping_an_idle_remote_actor_returns_when_it_has_ended() -> None:
    async with pair() as (here, there):
        ref, own = await remote(here, there, Plain)
        await ref.stop()
        assert (own.alive, ref.alive) == (False, False)
        assert await ref.ended() == Stopped()


async def test_a_remote_actor_that_ended_unseen_can_still_be_interrupted_stopped_and_linked() -> None:
    async with pair() as (here, there):
        ref, own = await remote(here, there, child(Plain).with_options(restart="temporary"))
        with pytest.raises(ActorCrashed):
            await own.ask(Boom())
        assert (own.alive, ref.alive) == (False, True)  # as far as anybody knows here
        assert ref.interrupt()
        linked = await here.spawn(child(Watcher, ref, link=True).with_options(restart="temporary"))
        await ref.stop()
        assert (await ref.ended()).describe() == "crashed: RuntimeError: bang"
        exit_ = await linked.ended()
        assert isinstance(exit_, Crashed)
        assert isinstance(exit_.error, LinkedExit)


async def test_undoing_a_link_to_a_remote_actor_that_never_was_does_nothing() -> None:
    async with pair() as (here, there):
        ref, own = await remote(here, there, child(Plain).with_options(restart="temporary"))
        other = await here.spawn(Watcher)
        inside(other).unlink(ref)
        assert await ref.ask(Total()) == 0
        await own.kill("not linked")
        assert await ref.ended() == Killed("not linked")
        assert await other.ask(Seen()) == []


async def test_all_watchers_of_a_remote_actor_are_told_of_its_end() -> None:
    async with pair() as (here, there):
        ref, own = await remote(here, there)
        watchers = [await here.spawn(Watcher, ref) for _ in range(3)]
        await own.kill("enough")
        for watcher in watchers:
            await until(lambda watcher=watcher: inside(watcher).exits)  # type: ignore[misc]
            assert inside(watcher).exits == [Killed("enough")]


async def test_a_ref_that_comes_back_when_its_actor_has_ended_says_how() -> None:
    async with pair() as (here, there):
        friend = await here.spawn(Plain)
        await here.expose(friend, "friend")
        ref, _ = await remote(here, there, Player, None, [await there.resolve("friend")])
        await friend.kill("enough")
        _, back = await ref.ask(Names())
        assert not back.alive
        assert await back.ended() == Killed("enough")
        await back.tell(Add(1))
        assert here.dead_letters.counts["stopped"] == 1
        with pytest.raises(NotStarted, match="has ended"):
            await back.ask(Total())


async def test_a_ref_to_an_actor_that_had_ended_before_it_was_sent_leads_to_a_dead_letter_of_its_own() -> None:
    async with pair() as (here, there):
        ref, _ = await remote(here, there)
        gone = await here.spawn(Plain)
        await gone.kill("early")
        await ref.tell(Send(gone, 17))
        await until(lambda: here.dead_letters.counts["stopped"] == 1)
        (letter,) = here.dead_letters
        assert (letter.actor, letter.message) == (gone.path, Add(17))


class Relay(Actor[Forward | Refuse]):
    """Fails as others do, and refuses with what is no refusal."""

    @on(Forward)
    async def forward(self, message: Forward) -> int:
        try:
            await message.to.ask(Boom())
        except ActorCrashed as error:
            raise error.__cause__ or error from None
        return 0

    @on(Refuse)
    def refuse(self, message: Refuse) -> None:
        odd: Any = ValueError(message.text)
        self.defer_reply().refuse(odd)


async def test_an_error_keeps_its_name_over_two_nodes() -> None:
    async with pair() as (here, there):
        crashing = await here.spawn(child(Plain))
        ref, _ = await remote(here, there, Relay)
        with pytest.raises(ActorCrashed) as crash:
            await ref.ask(Forward(crashing))
        assert isinstance(crash.value.__cause__, RuntimeError)
        assert crash.value.__cause__.args == ("bang",)


async def test_a_deferred_reply_that_fails_with_any_error_interrupts_a_remote_asker() -> None:
    async with pair() as (here, there):
        ref, _ = await remote(here, there, Relay)
        with pytest.raises(Interrupted, match="no way") as failure:
            await ref.ask(Refuse("no way"))
        assert isinstance(failure.value.__cause__, ValueError)


class Strict(ReplyError):
    """A refusal that cannot be made of a text alone."""

    def __new__(cls, text: str, *, code: int) -> Strict:
        made = super().__new__(cls, text)
        made.code = code
        return made

    def __init__(self, text: str, *, code: int) -> None:
        super().__init__(text)

    code: int


class Check(Request[None]):
    pass


class Checker(Actor[Check]):
    @on(Check)
    def check(self, message: Check) -> None:
        raise Strict("not so", code=7)


async def test_a_refusal_that_cannot_be_made_of_its_text_alone_comes_back() -> None:
    async with pair(messages=[Check, Strict]) as (here, there):
        ref, _ = await remote(here, there, Checker)
        with pytest.raises(Strict, match=r"^not so$"):
            await ref.ask(Check(), timeout=5)
