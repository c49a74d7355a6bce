"""What is no registered message, is too large or makes no sense is refused: where it is sent, or else counted."""

from __future__ import annotations

import copy
import types
from collections.abc import AsyncIterator
from typing import Any, Generic, TypeVar

import anyio
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuelight import Actor, ActorSystem, Interrupted, Message, NotStarted, Ref, Request, StreamRequest, on
from cuelight.actors import DeadLetter
from cuelight.errors import MessageRefused
from cuelight.redis import RedisClient, RedisNode, RemoteError, Undecoded
from cuelight.redis._actors import _membership
from cuelight.redis._actors._frames import AskFrame, CreditFrame, TellFrame, batch_of, frames_of
from helpers.nodes import Add, Blob, Echo, Plain, Player, Total, Twice, cluster_name, inside, node, node_of, pair, until
from helpers.redis_servers import shared_server

T = TypeVar("T")
VALUES = st.integers(-(2**63), 2**63) | st.text() | st.binary()


class Unknown(Message):
    pass


class Loose(Message):
    value: Any


class Ask42(Request[int]):
    pass


class Chunks(StreamRequest[int]):
    of: str


class Liar(Actor[Ask42 | Loose | Chunks]):
    @on(Chunks)
    async def chunks(self, message: Chunks) -> AsyncIterator[int]:
        yield 1
        wrong: Any = {"objects": object(), "texts": "two"}[message.of]
        yield wrong
        await anyio.sleep_forever()

    @on(Ask42)
    def answer(self, message: Ask42) -> int:
        return "forty-two"  # type: ignore[return-value]  # pyright: ignore[reportReturnType]

    @on(Loose)
    def loose(self, message: Loose) -> None:
        """Nothing."""


async def test_a_message_that_is_not_registered_is_refused_where_it_is_sent() -> None:
    async with pair() as (here, there):
        await there.expose(await there.spawn(Plain), "actor")
        ref = await here.resolve("actor")
        with pytest.raises(MessageRefused, match=r"test_refusals\.Unknown is not registered with this node"):
            await ref.tell(Unknown())
        with pytest.raises(MessageRefused, match="is not registered"):
            await ref.ask(Ask42())
        ref.tell_threadsafe(Unknown())  # a message that cannot be sent becomes a dead letter
        await until(lambda: here.dead_letters.counts["unsendable"] == 1)
        assert here.group("g").broadcast(Unknown()) == 0
        assert await ref.ask(Total()) == 0


async def test_a_message_that_is_too_large_is_refused_where_it_is_sent() -> None:
    async with pair(max_message=1000) as (here, there):
        await there.expose(await there.spawn(Plain), "actor")
        ref = await here.resolve("actor")
        with pytest.raises(MessageRefused, match="more than max_message=1000"):
            await ref.tell(Blob(bytes(1000)))
        await ref.tell(Blob(bytes(900)))
        assert await ref.ask(Total()) == 900


async def test_an_answer_that_is_too_large_says_so() -> None:
    cluster = cluster_name()
    async with (
        ActorSystem("here", node=node(cluster)) as here,
        ActorSystem("there", node=node(cluster, max_message=1000)) as there,
    ):
        await there.expose(await there.spawn(Player), "actor")
        ref = await here.resolve("actor")
        with pytest.raises(NotStarted, match="more than max_message=1000"):  # too large for the other side only
            await ref.ask(Echo({"x": list(range(1000))}))
        assert node_of(there).statistics().refused == 1


async def test_what_msgspec_cannot_encode_is_refused_where_it_is_sent() -> None:
    async with pair(messages=[Loose, Ask42]) as (here, there):
        await there.expose(await there.spawn(Liar), "liar")
        ref = await here.resolve("liar")
        with pytest.raises(MessageRefused, match=r"builtins\.object is none of the types that msgspec encodes"):
            await ref.tell(Loose(object()))
        async with ActorSystem("another") as another:
            with pytest.raises(MessageRefused, match="belongs to another system"):
                await ref.tell(Loose(await another.spawn(Plain)))


class Point:
    pass


class Drawn(Message):
    at: Point


async def test_what_msgspec_cannot_decode_is_refused_where_it_comes() -> None:
    async with pair(messages=[Drawn]) as (here, there):
        own = await there.spawn(Plain)
        await there.expose(own, "actor")
        anything: Any = 7
        await (await here.resolve("actor")).tell(Drawn(anything))
        await until(lambda: there.dead_letters.counts["undecodable"] == 1)
        (letter,) = there.dead_letters
        assert "Point'> is none of the types that msgspec decodes" in str(letter.error)


class Paged(Generic[T]):
    pass


class Page(Paged[bytes], Request[int]):
    pass


class Pager(Actor[Page]):
    @on(Page)
    def page(self, message: Page) -> int:
        return 7


async def test_the_type_of_an_answer_is_found_behind_other_generic_bases() -> None:
    async with pair(messages=[Page]) as (here, there):
        await there.expose(await there.spawn(Pager), "pager")
        assert await (await here.resolve("pager")).ask(Page()) == 7


async def test_an_answer_of_the_wrong_type_is_refused_by_the_asker() -> None:
    async with pair(messages=[Loose, Ask42]) as (here, there):
        await there.expose(await there.spawn(Liar), "liar")
        ref = await here.resolve("liar")
        with pytest.raises(Interrupted, match=r"refused here.*Expected `int`, got `str`"):
            await ref.ask(Ask42())
        assert node_of(here).statistics().refused == 1


@pytest.mark.parametrize(("of", "why"), [("objects", "its answer was lost"), ("texts", "was refused here")])
async def test_a_chunk_that_cannot_travel_ends_its_stream(of: str, why: str) -> None:
    async with pair(messages=[Chunks, Loose]) as (here, there):
        own = await there.spawn(Liar)
        await there.expose(own, "liar")
        ref = await here.resolve("liar")
        got: list[int] = []
        with pytest.raises(Interrupted, match=why):
            async for chunk in ref.stream(Chunks(of)):
                got += [chunk]
        assert got == [1]
        await until(lambda: own.statistics().running is None)


async def test_the_exits_of_actors_that_ended_long_ago_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_membership, "MAX_REMEMBERED", 1)
    async with pair() as (here, there):
        refs: list[Ref[Any]] = []
        for number in range(2):
            own = await there.spawn(Plain)
            await there.expose(own, f"actor {number}")
            refs.append(await here.resolve(f"actor {number}"))
            await own.kill("enough")
        assert [(await ref.ended()).describe() for ref in refs] == ["stopped", "killed (enough)"]
        for ref in refs:  # and those that have ended cannot be stopped, linked or interrupted any more
            assert not ref.interrupt()
            await ref.stop()


def test_a_remote_error_can_be_copied() -> None:
    error = copy.copy(RemoteError("ValueError", "no"))
    assert (error.kind, error.text, str(error)) == ("ValueError", "no", "ValueError: no")


async def test_a_message_that_the_other_side_does_not_know_is_counted_and_dead_lettered_there() -> None:
    cluster = cluster_name()
    known = RedisNode(shared_server().url, cluster=cluster, messages=[Add, Total])
    async with ActorSystem("here", node=node(cluster)) as here, ActorSystem("there", node=known) as there:
        own = await there.spawn(Player)
        await there.expose(own, "actor")
        ref = await here.resolve("actor")
        await ref.tell(Twice(4))
        with pytest.raises(NotStarted, match="no message 'Echo' is registered"):
            await ref.ask(Echo({}))
        (letter,) = there.dead_letters
        assert (letter.actor, letter.reason) == (own.path, "undecodable")
        assert isinstance(letter.message, Undecoded)
        assert letter.message.kind == "Twice"
        assert letter.message.sender.startswith("here-")
        assert isinstance(letter.error, MessageRefused)
        assert known.statistics().refused == 2
        await ref.tell(Add(1))
        assert await ref.ask(Total()) == 1


async def forge(there: ActorSystem, cluster: str, payload: bytes, *, form: int = 1) -> None:
    """Put a batch into an inbox, as somebody might who has access to the server."""
    client = RedisClient(shared_server().url)
    tag = f"{{cuelight:nodes:{cluster}}}"
    identity = node_of(there).identity
    fields = ("s", "forger", "q", 1, "t", len(payload), "v", form, "p", payload)
    await client.execute("XADD", f"{tag}:inbox:{identity}", "*", *fields)
    await client.execute("PUBLISH", f"{tag}:wake:{identity}", "")
    await client.aclose()


@pytest.mark.parametrize(
    ("payload", "form", "kind"),
    [
        (b"\xc1 nothing", 1, "frame"),
        (batch_of([]) + b"more", 1, "frame"),
        (msgspec.msgpack.encode([["future", 1]]), 1, "frame"),
        (batch_of([CreditFrame(1, 1)]), 99, "batch"),
    ],
    ids=["no msgpack", "too much", "no such frame", "a format of the future"],
)
async def test_a_corrupt_batch_is_counted_and_dead_lettered(payload: bytes, form: int, kind: str) -> None:
    cluster = cluster_name()
    async with ActorSystem("there", node=node(cluster)) as there:
        own = await there.spawn(Plain)
        await there.expose(own, "actor")
        await forge(there, cluster, payload, form=form)
        await until(lambda: there.dead_letters.counts["undecodable"] == 1)
        (letter,) = there.dead_letters
        assert letter.message == Undecoded(kind, letter.message.body, "forger")
        good = batch_of([TellFrame(own._cell.serial, "Add", msgspec.msgpack.encode(Add(3)))])
        await forge(there, cluster, good)  # and it goes on
        await until(lambda: inside(own).total == 3)


async def test_one_bad_frame_costs_itself_and_not_its_batch() -> None:
    cluster = cluster_name()
    async with ActorSystem("there", node=node(cluster)) as there:
        own = await there.spawn(Plain)
        await there.expose(own, "actor")
        serial = own._cell.serial
        good = TellFrame(serial, "Add", msgspec.msgpack.encode(Add(3)))
        parts = [
            good,
            TellFrame(serial, "Add", b"\xc1"),
            TellFrame(serial, "Add", msgspec.msgpack.encode({"type": "Add", "amount": "much"})),
            TellFrame(serial, "builtins.eval", b"'1'"),
            TellFrame(999_999, "Add", msgspec.msgpack.encode(Add(1))),
            AskFrame(serial, 1, "Nothing", b"", None),
            ["no", "frame"],
            good,
        ]
        await forge(there, cluster, msgspec.msgpack.encode(parts))
        await until(lambda: inside(own).total == 6)
        counts = there.dead_letters.counts
        assert (counts["undecodable"], counts["stopped"]) == (4, 1)
        letters: list[DeadLetter] = list(there.dead_letters)
        assert all("pickle" not in repr(letter) for letter in letters)


@given(st.binary(max_size=60) | st.lists(VALUES).map(msgspec.msgpack.encode))
def test_whatever_comes_is_frames_or_refused(payload: bytes) -> None:
    frames, bad = frames_of(payload)
    assert frames == []
    assert bad or payload == b"\x90"


def test_types_that_would_travel_under_one_name_are_refused() -> None:
    other = types.new_class("Add", (Message,))
    with pytest.raises(ValueError, match="would both travel as 'Add': give one of them a tag"):
        RedisNode(messages=[Add, other])

    class Tagged(Message, tag="another.Add"):
        amount: int

    RedisNode(messages=[Add, Tagged, Add])


def test_types_that_can_never_travel_are_refused_at_once() -> None:
    class Bad(Message):
        socket: NoSuchClass  # type: ignore[name-defined]  # pyright: ignore  # noqa: F821

    with pytest.raises(TypeError, match="Bad cannot travel"):
        RedisNode(messages=[Bad])
