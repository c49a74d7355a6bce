"""A frame that cannot be encoded or decoded costs that frame: its asker is told, and everything else goes on."""

# What is put into inboxes may be anything.
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false, reportUnknownParameterType=false
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false

from __future__ import annotations

import math
from datetime import datetime, timedelta, tzinfo
from typing import Any

import anyio
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuelight import Actor, ActorSystem, Interrupted, Message, NotStarted, Ref, Request, child, on
from cuelight.errors import AskError, MessageRefused, ends_the_program
from cuelight.redis import RedisClient
from cuelight.redis._actors import _frames as frames
from cuelight.redis._actors import _membership
from cuelight.redis._actors._frames import (
    EndedFrame,
    FailFrame,
    Raised,
    ReplyFrame,
    SignalFrame,
    TellFrame,
    addressee_of,
    batch_of,
    encode_frames,
    frames_of,
)
from cuelight.redis._actors._registry import Registry
from cuelight.redis._actors._remote_cell import WINDOW
from helpers.nodes import Add, Count, Echo, Plain, Player, Slow, Total, cluster_name, inside, node, node_of, pair, until
from helpers.redis_servers import shared_server

DEEP = b"\x91" * 200_000 + b"\xc0"


async def put(there: ActorSystem, payload: bytes, sender: bytes = b"forger", **fields: Any) -> None:
    """Put an entry into the inbox of a node, as somebody might who has access to the server."""
    directory = node_of(there)._membership.directory
    entry = {"s": sender, "q": 0, "t": len(payload), "v": 1, "p": payload, **fields}
    client = RedisClient(shared_server().url)
    inbox = directory._stream(directory.identity)
    await client.execute("XADD", inbox, "*", *(part for pair in entry.items() for part in pair))
    await client.execute("PUBLISH", directory.channel, "")
    await client.aclose()


def batch(*parts: Any) -> bytes:
    return msgspec.msgpack.encode(parts)


def raw(data: bytes) -> msgspec.Raw:
    return msgspec.Raw(data)


ENTRIES: dict[str, Any] = {
    "empty": lambda _: b"",
    "random bytes": lambda _: bytes(range(256)) * 4,
    "deep": lambda _: DEEP,
    "a deep frame": lambda _: batch(raw(DEEP)),
    "a deep field": lambda _: batch([4, 1, raw(DEEP)]),
    "a deep body": lambda serial: batch([1, serial, "Add", DEEP]),
    "a deep cause": lambda _: batch([5, 1, "ActorCrashed", "x", raw(b"\x97\xa1k\xa1t\xa0\xc4\x00\x90\xa0" * 20_000)]),
    "no Unicode": lambda serial: batch([13, serial, "interrupt", raw(b"\xa2\xff\xfe")]),
    "a kind that is no Unicode": lambda serial: batch([1, serial, raw(b"\xa2\xff\xfe"), b""]),
    "a serial above 2**63": lambda _: batch([1, 2**64 - 1, "Add", b""], [10, 2**64 - 1]),
    "a negative serial": lambda _: batch([1, -1, "Add", b""], [10, -(2**63)], [14, -1, -1, "", True]),
    "an unknown serial": lambda _: batch([1, 999_999, "Add", b""], [13, 999_999, "format c:", ""]),
    "an unknown tag": lambda _: batch([99, 1]),
    "an unknown verb": lambda _: batch([13, 999_999, "stop everything", "x"]),
    "maps": lambda _: batch({"a": 1}),
    "extensions": lambda _: b"\x91\xd4\x05a",
    "a float for an int": lambda _: batch([1, 1.5, "Add", b""]),
    "a true for an int": lambda _: batch([1, True, "Add", b""]),
    "no time": lambda serial: batch([2, serial, 1, "Total", msgspec.msgpack.encode(Total()), math.nan]),
    "a time below zero": lambda serial: batch([2, serial, 1, "Total", msgspec.msgpack.encode(Total()), -5.0]),
    "a huge time": lambda serial: batch([2, serial, 1, "Total", msgspec.msgpack.encode(Total()), 1e300]),
    "a request of the wrong kind": lambda serial: batch([3, serial, 1, "Total", msgspec.msgpack.encode(Total())]),
    "a stream and odd room": lambda serial: batch(
        [3, serial, 9, "Count", msgspec.msgpack.encode(Count(10))], [7, 9, -1000], [7, 9, 2**63], [8, 9, True]
    ),
    "answers to nobody": lambda _: batch([4, 1, b"\x01"], [5, 1, "OSError", "x"], [6, 1, b""], [9, 1, 2**63]),
    "errors of nobody": lambda _: batch([5, 1, "eval", "x", ["k", "t", "os:system", b"\xc1"]]),
    "exits of nobody": lambda _: batch([11, 1, "Crashed", "", ["A", "B"]], [12, 1]),
    "links": lambda serial: batch([14, serial, 1, "/" * 100_000, True], [14, serial, 1, "", False]),
    "unlinked": lambda serial: batch([14, serial, 77, "/a", False]),
    "credit below zero": lambda serial: batch([9, serial, -5]),
}


FIELDS: list[dict[str, Any]] = [
    {"t": "abc"},
    {"t": "9" * 5000},
    {"t": -5},
    {"q": "nan"},
    {"q": "inf"},
    {"v": b"\xff"},
    {"s": b"\xff\xfe"},
    {"s": ""},
    {"s": "a b{c}\0d"},
]


async def test_whatever_is_in_an_inbox_costs_that_entry() -> None:
    async with pair() as (here, there):
        own = await there.spawn(Player)
        await there.expose(own, "actor")
        ref = await here.resolve("actor")
        await ref.ask(Total())
        identity, serial = node_of(there).identity, own._cell.serial
        one = batch([1, serial, "Add", msgspec.msgpack.encode(Add(1))])
        entries: list[tuple[str, bytes, dict[str, Any]]] = [
            *((what, make(serial), {}) for what, make in ENTRIES.items()),
            *((str(fields), batch([10, serial]), fields) for fields in FIELDS),
        ]
        for told, (what, entry, fields) in enumerate(entries, 1):
            await put(there, entry, **fields)
            await put(there, one)
            await until(lambda: inside(own).total == told)  # noqa: B023 - awaited here
            assert await ref.ask(Total(), timeout=30) == told, what
            assert node_of(there).identity == identity, what


async def under_way(ref: Ref[Any], answers: list[Any]) -> None:
    try:
        answers.append(await ref.ask(Slow(60)))
    except AskError as error:
        answers.append(error)


UNREADABLE: list[tuple[str, Any, type[AskError], str]] = [
    ("there", lambda serial, number: [2, serial, number, None], NotStarted, "could not be read"),
    ("there", lambda serial, number: [3, serial, number, raw(b"\xa2\xff\xfe"), b""], NotStarted, "could not be read"),
    ("there", lambda serial, number: [2, serial, number, "Slow", b"", math.nan], NotStarted, "is no time"),
    ("here", lambda _, number: [4, number, "no bytes"], Interrupted, "refused here"),
    ("here", lambda _, number: [5, number, None], Interrupted, "refused here"),
    ("here", lambda _, number: [6, number, 7], Interrupted, "refused here"),
]


async def test_an_asker_is_told_of_a_request_that_could_not_be_read_and_of_an_answer_that_could_not() -> None:
    async with pair() as (here, there):
        flights = node_of(here)._membership.pending_requests
        for number, (where, part, error, text) in enumerate(UNREADABLE, 1):
            own = await there.spawn(Player)
            await there.expose(own, f"actor {number}")
            ref, answers = await here.resolve(f"actor {number}"), list[Any]()
            target, sender = (there, here) if where == "there" else (here, there)
            async with anyio.create_task_group() as group:
                group.start_soon(under_way, ref, answers)
                await until(lambda: flights.numbered(number) is not None)  # noqa: B023 - awaited here
                await put(target, batch(part(own._cell.serial, number)), node_of(sender).identity.encode())
            (answer,) = answers
            assert type(answer) is error
            assert text in str(answer)
            await own.kill("it may still be at it")
        assert len(flights) == 0


async def test_a_message_that_could_not_be_read_makes_room_for_the_next() -> None:
    async with pair() as (here, there):
        own = await there.spawn(Plain)
        await there.expose(own, "actor")
        ref = await here.resolve("actor")
        cell: Any = ref._cell
        await ref.tell(Add(1))
        await until(lambda: len(cell) == 0)
        cell.in_flight = None
        await put(there, batch([1, own._cell.serial, None, b""]), node_of(here).identity.encode())
        await until(lambda: there.dead_letters.counts["undecodable"] == 1)
        assert node_of(there)._membership.peer(node_of(here).identity)._credits == {own._cell.serial: 1}


async def test_half_a_surrogate_pair_in_the_reason_of_a_signal_arrives_with_escapes() -> None:
    async with pair() as (here, there):
        bystander = await there.spawn(Plain)
        await there.expose(bystander, "bystander")
        own = await there.spawn(Plain)
        await there.expose(own, "actor")
        ref, other = await here.resolve("actor"), await here.resolve("bystander")
        ref.interrupt("caf\udce9")
        assert await ref.ask(Total()) == 0
        await ref.kill("caf\udce9")
        assert (await ref.ended()).describe() == r"killed (caf\udce9)"
        assert await other.ask(Total()) == 0


async def test_half_a_surrogate_pair_in_the_exit_of_an_actor_arrives_with_escapes() -> None:
    async with pair() as (here, there):
        own = await there.spawn(child(Plain).with_options(restart="temporary"))
        await there.expose(own, "actor")
        ref = await here.resolve("actor")
        exits: list[Any] = []
        with anyio.fail_after(30):
            async with anyio.create_task_group() as group:

                async def watch() -> None:
                    exits.append(await ref.ended())

                group.start_soon(watch)
                await ref.ask(Total())
                await own.kill("caf\udce9")
        assert exits[0].describe() == r"killed (caf\udce9)"


async def test_messages_for_an_address_that_cannot_be_encoded_are_dead_letters_and_requests_not_started() -> None:
    async with pair() as (here, there):
        own = await there.spawn(Plain)
        await there.expose(own, "actor")
        good = await here.resolve("actor")
        membership, identity = node_of(here)._membership, node_of(here).identity
        bad: Ref[Any] = Ref(membership.cell_at((node_of(there).identity, 2**70, "/there/x")))
        for _ in range(WINDOW + 10):  # each makes room again
            await bad.tell(Add(1))
        with pytest.raises(NotStarted, match=r"Total\(\) could not be sent to /there/x@"):
            await bad.ask(Total())
        with pytest.raises(NotStarted):
            async for _ in bad.stream(Count(3)):
                pytest.fail("nobody is there")
        assert bad.interrupt("why")
        await until(lambda: here.dead_letters.counts["unsendable"] == WINDOW + 10)
        await good.tell(Add(2))
        assert await good.ask(Total()) == 2
        assert node_of(here).identity == identity


class CarryRef(Request[int]):
    to: Ref[Add]


class Carrier(Actor[CarryRef | Total]):
    @on(CarryRef)
    def carry(self, message: CarryRef) -> int:
        return 1

    @on(Total)
    def total(self, message: Total) -> int:
        return 2


@pytest.mark.parametrize(
    "address", [("", 1, "/x"), ("node", 0, "/x"), ("node", -1, "/x"), ("node", 2**64 - 1, "/x"), 7]
)
async def test_a_ref_whose_address_makes_no_sense_costs_its_message(address: Any) -> None:
    async with pair(messages=[CarryRef, Total, Add]) as (here, there):
        own = await there.spawn(Carrier)
        await there.expose(own, "actor")
        ref = await here.resolve("actor")
        body = msgspec.msgpack.encode({"type": "CarryRef", "to": address})
        await put(there, batch([1, own._cell.serial, "CarryRef", body]))
        await until(lambda: there.dead_letters.counts["undecodable"] == 1)
        (letter,) = there.dead_letters
        assert isinstance(letter.error, MessageRefused)
        assert await ref.ask(Total()) == 2


async def test_a_handler_of_frames_that_raises_costs_that_frame(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with pair() as (here, there):
        own = await there.spawn(Plain)
        await there.expose(own, "actor")
        ref = await here.resolve("actor")

        def fail(*_: object) -> None:
            raise GeneratorExit

        handlers: dict[Any, Any] = _membership._HANDLERS
        monkeypatch.setitem(handlers, frames.UpFrame, fail)
        await put(there, batch([12, 1], [1, own._cell.serial, "Add", msgspec.msgpack.encode(Add(1))]))
        await until(lambda: inside(own).total == 1)
        assert await ref.ask(Total()) == 1
    assert "an internal error of Cuelight in dealing with UpFrame(of=1)" in caplog.text


class Deep(Message):
    value: Any


async def test_a_message_that_is_nested_too_deep_is_refused_where_it_is_sent() -> None:
    value: Any = 1
    for _ in range(100_000):
        value = [value]
    async with pair(messages=[Deep, Echo, Total, Add]) as (here, there):
        own = await there.spawn(Plain)
        await there.expose(own, "actor")
        ref = await here.resolve("actor")
        with pytest.raises(MessageRefused, match="Deep cannot travel"):
            await ref.tell(Deep(value))
        with pytest.raises(MessageRefused, match="surrogates not allowed"):
            await ref.tell(Deep("caf\udce9"))
        assert await ref.ask(Total()) == 0
    while isinstance(value, list):  # freed level by level, for the interpreter does so recursively
        value = value[0]


def test_one_frame_that_cannot_be_encoded_costs_itself_and_not_its_batch() -> None:
    good, bad = ReplyFrame(1, b"x"), TellFrame(2**70, "Add", b"")
    worse = SignalFrame(2**70, "kill", "caf\udce9")
    payload, refused = encode_frames([good, bad, SignalFrame(1, "kill", "caf\udce9"), worse, good])
    assert frames_of(payload) == ([good, SignalFrame(1, "kill", r"caf\udce9"), good], [])
    assert [frame for frame, _ in refused] == [bad, worse]


class Zone(tzinfo):
    """Ends the program when it is asked."""

    def utcoffset(self, _: datetime | None) -> timedelta:
        raise SystemExit(3)

    def dst(self, _: datetime | None) -> None:
        return None

    def tzname(self, _: datetime | None) -> str:
        return "odd"


class Ends(Message):
    at: Any = None

    def __post_init__(self) -> None:
        if self.at == "read":
            raise KeyboardInterrupt


def test_code_of_users_that_ends_the_program_does_so_when_messages_are_encoded_and_decoded() -> None:
    def never(_: Any) -> Any:
        raise AssertionError

    coder = Registry([Ends], 1000).coder(never, never)
    with pytest.raises(SystemExit):
        coder.message(Ends(datetime(2026, 1, 1, tzinfo=Zone())))
    with pytest.raises(KeyboardInterrupt):
        coder.read("Ends", msgspec.msgpack.encode({"type": "Ends", "at": "read"}))


async def test_an_overflow_policy_that_ends_the_program_ends_the_system_for_remote_senders_too() -> None:
    def overflow(*_: Any) -> Any:
        raise SystemExit(3)

    ended: list[BaseException] = []
    cluster = cluster_name()
    async with ActorSystem("here", node=node(cluster)) as here:
        try:
            async with ActorSystem("there", node=node(cluster)) as there:
                own = await there.spawn(child(Player).with_options(capacity=1, overflow=overflow))
                await there.expose(own, "actor")
                ref = await here.resolve("actor")
                async with anyio.create_task_group() as group:
                    group.start_soon(under_way, ref, list[Any]())
                    await until(lambda: own.statistics().running is not None)
                    for _ in range(3):
                        await ref.tell(Add(1))
                    await anyio.sleep_forever()
        except BaseException as error:
            ended.append(error)
    assert ends_the_program(ended[0])


TEXT = st.text(st.characters(), max_size=5)  # with surrogates
RAISED = st.builds(
    Raised, TEXT, TEXT, TEXT, st.binary(max_size=3), st.lists(TEXT, max_size=2).map(tuple), TEXT, st.none()
)
FRAMES = st.one_of(
    st.builds(FailFrame, st.integers(), TEXT, TEXT, st.none() | RAISED, st.none() | RAISED),
    st.builds(EndedFrame, st.integers(), TEXT, TEXT, st.none() | RAISED),
    st.builds(SignalFrame, st.integers(), TEXT, TEXT),
)


@given(st.lists(FRAMES, max_size=5))
def test_what_can_be_sent_of_a_batch_is_sent(given: list[Any]) -> None:
    payload, bad = encode_frames(given)
    came, unreadable = frames_of(payload)
    assert not unreadable
    assert len(came) + len(bad) == len(given)
    for frame, _ in bad:
        assert not -(2**63) <= next(iter(msgspec.structs.asdict(frame).values())) < 2**64


@given(st.binary(max_size=40) | st.lists(st.integers(-(2**63), 2**64 - 1) | st.text()).map(batch_of))
def test_the_beginning_of_whatever_came_is_three_numbers(part: bytes) -> None:
    assert all(isinstance(number, int) for number in addressee_of(part))
