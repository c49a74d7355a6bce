"""The cell that stands for an actor elsewhere, held to its invariants without any wire."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import anyio
import msgspec
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cuelight import ActorSystem, AskError, MailboxFull, NotStarted, Ref
from cuelight.errors import NotStartedTimeout
from cuelight.redis import NodeLost
from cuelight.redis._actors._frames import AskFrame, CancelFrame, Frame, TellFrame
from cuelight.redis._actors._remote_cell import PendingRequests, RemoteCell
from helpers import BACKENDS, Backend, run_on
from helpers.nodes import Add, Echo

WINDOW = 4


class Wire:
    """Stands for a peer, its membership and its coder: writes down what would be sent."""

    def __init__(self, runtime: Any) -> None:
        self.runtime, self.pending_requests, self.identity = runtime, PendingRequests(), "far"
        self.membership = self.coder = self
        self.sent: list[int] = []
        self.cancelled: list[int] = []

    def message(self, message: Any) -> tuple[str, bytes]:
        return type(message).__name__, msgspec.msgpack.encode(message)

    def send(self, frame: Frame, size: int = 0) -> None:
        if isinstance(frame, TellFrame):
            self.sent.append(msgspec.msgpack.decode(frame.body, type=Add).amount)
        elif isinstance(frame, AskFrame):
            self.sent.append(msgspec.msgpack.decode(frame.body, type=Echo).value["n"][0])
        elif isinstance(frame, CancelFrame):
            self.cancelled.append(frame.number)

    def keep(self, cell: RemoteCell) -> None:
        """It is kept."""

    def forget(self, cell: RemoteCell) -> None:
        """It is not."""


class Lane:
    """A cell, and what its users have done."""

    def __init__(self, runtime: Any) -> None:
        self.wire = Wire(runtime)
        self.cell = RemoteCell(self.wire, 1, "/far/actor")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        self.cell.capacity = self.cell.limit = WINDOW
        self.ref: Ref[Any] = Ref(self.cell)
        self.next = self.confirmed = 0
        self.waiting: dict[int, anyio.CancelScope] = {}
        self.line: list[int] = []  # in the order in which they came
        self.asks: dict[int, Any] = {}
        self.asked: set[int] = set()
        self.refused: set[int] = set()
        self.given_up: set[int] = set()

    async def tell(self, number: int) -> None:
        with anyio.CancelScope() as scope:
            self.waiting[number] = scope
            try:
                await self.ref.tell(Add(number))
            finally:
                del self.waiting[number]

    async def step(self, group: Any, what: str, which: int) -> None:
        number = self.next
        if what == "tell":
            self.line.append(number)
            group.start_soon(self.tell, number)
        elif what == "nowait":
            try:
                self.ref.tell_nowait(Add(number))
            except MailboxFull:
                self.refused.add(number)
                assert len(self.cell) == WINDOW or self.waiting or self.cell.senders
            else:
                self.line.append(number)
        elif what == "ask":
            self.line.append(number)
            self.asked.add(number)
            self.asks[number] = self.ref.ask(Echo({"n": [number]}), timeout=math.inf)
        elif what == "confirm":
            count = min(which, len(self.cell))
            self.confirmed += count
            self.cell.credited(count)
        elif what == "cancel" and (self.waiting or self.asks):
            chosen = sorted([*self.waiting, *self.asks])[which % (len(self.waiting) + len(self.asks))]
            if chosen in self.waiting:
                self.waiting[chosen].cancel()
            else:
                self.asks.pop(chosen).cancel()
            if chosen not in self.wire.sent:
                self.given_up.add(chosen)
        self.next += 1
        for _ in range(4):
            await checkpoint()

    def check(self) -> None:
        sent = self.wire.sent
        assert sent == [number for number in self.line if number in set(sent)]  # 1: in order, and each once
        assert len(sent) - self.confirmed == len(self.cell) <= WINDOW  # 2: no more than a window
        assert not self.given_up & set(sent)
        due = [number for number in self.line if number not in self.given_up]
        if len(self.cell) < WINDOW:  # and nobody waits while there is room
            assert sent == due


STEPS = st.lists(
    st.tuples(st.sampled_from(["tell", "tell", "nowait", "ask", "confirm", "confirm", "cancel"]), st.integers(1, 6)),
    min_size=20,  # else most of them would be over before the window is full
    max_size=60,
)


async def scenario(steps: list[tuple[str, int]]) -> None:
    async with ActorSystem("near") as system, anyio.create_task_group() as group:
        lane = Lane(system)
        for what, which in steps:
            await lane.step(group, what, which)
            lane.check()
        sent, unconfirmed = set(lane.wire.sent), lane.wire.sent[lane.confirmed :]
        lane.cell.lost(NodeLost("far"))
        lane.wire.pending_requests.lost("far", None, "gone")
        for _ in range(4):
            await checkpoint()
        letters: dict[str, list[int]] = {"node_lost": [], "stopped": []}
        for letter in system.dead_letters:
            letters[letter.reason].append(letter.message.amount)
        # 3: a message that was not confirmed, or never left, is a dead letter.
        assert letters["node_lost"] == [number for number in unconfirmed if number not in lane.asked]
        assert set(letters["stopped"]) == set(lane.line) - lane.asked - lane.given_up - sent
        assert len(system.dead_letters) == sum(map(len, letters.values()))
        # 4: each request is completed.
        for number, reply in lane.asks.items():
            assert reply.done
            assert isinstance(reply.error, NotStarted if number not in sent else AskError)
        assert len(lane.wire.pending_requests) == 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_remote_lanes_keep_order_window_and_every_message(backend: Backend, steps: list[tuple[str, int]]) -> None:
    run_on(backend, scenario, steps)


async def full(system: ActorSystem) -> Lane:
    """A lane in which there is no room."""
    lane = Lane(system)
    for number in range(WINDOW):
        lane.ref.tell_nowait(Add(number))
    return lane


async def test_a_broadcast_drops_what_finds_no_room_on_its_way_to_a_remote_actor() -> None:
    async with ActorSystem("near") as system:
        lane = await full(system)
        group = system.group("all")
        group.join(lane.ref)
        assert group.broadcast(Add(9)) == 0
        (letter,) = system.dead_letters
        assert (letter.reason, letter.message) == ("mailbox_full", Add(9))
        lane.cell.credited(1)
        assert group.broadcast(Add(10)) == 1
        assert lane.wire.sent == [*range(WINDOW), 10]


async def test_an_ask_that_finds_no_room_in_time_was_never_sent() -> None:
    async with ActorSystem("near") as system:
        lane = await full(system)
        with pytest.raises(NotStartedTimeout, match="had not begun"):
            await lane.ref.ask(Echo({"n": [9]}), timeout=0.02)
        lane.cell.credited(WINDOW)
        assert lane.wire.sent == list(range(WINDOW))
        assert len(lane.wire.pending_requests) == 0


async def test_asks_that_are_given_up_do_not_pile_up_before_a_remote_actor() -> None:
    async with ActorSystem("near") as system, anyio.create_task_group() as group:
        lane = await full(system)
        group.start_soon(lane.tell, 8)
        await checkpoint()
        for _ in range(500):
            lane.ref.ask(Echo({"n": [9]})).cancel()
            assert lane.ref.statistics().waiting_senders <= 70
        lane.cell.credited(1)
        while 8 not in lane.wire.sent:
            await checkpoint()
        assert lane.wire.sent == [*range(WINDOW), 8]


@pytest.mark.parametrize("anyio_backend", [BACKENDS["asyncio"]])
async def test_a_tell_that_is_cancelled_natively_just_as_its_actor_is_lost_has_not_sent_anything() -> None:
    async with ActorSystem("near") as system:
        lane = await full(system)
        task = asyncio.create_task(lane.ref.tell(Add(9)))
        await checkpoint()
        assert lane.ref.statistics().waiting_senders == 1
        lane.cell.lost(NodeLost("far"))  # which wakes it
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [letter.message.amount for letter in system.dead_letters] == list(range(WINDOW))
