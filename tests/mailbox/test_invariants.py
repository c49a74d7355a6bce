"""The invariants that stand at the top of `_channel.py`, in the same words, against a model that is a deque."""

import asyncio
import math
from collections import deque
from collections.abc import Coroutine
from typing import Any

import hypothesis.strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cuelight.errors import ChannelClosed, MailboxFull
from cuelight.mailbox import Channel, Permit, select

Task = asyncio.Task[Any]


class ChannelMachine(RuleBasedStateMachine):
    """Tasks that send, receive, select, reserve and are cancelled; between the rules the loop runs until all wait."""

    @initialize(capacity=st.sampled_from([0, 1, 2, 3, math.inf]))
    def start(self, capacity: float) -> None:
        self.loop = asyncio.new_event_loop()
        self.channel = Channel[int](capacity)
        self.silent = Channel[int]()
        self.numbers = iter(range(10**6))
        self.sent: deque[int] = deque()  # the model: what was sent and not received yet
        self.senders: dict[Task, int] = {}
        self.receivers: set[Task] = set()
        self.reservers: set[Task] = set()
        self.permits: list[Permit[int]] = []

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.loop.run_until_complete(asyncio.sleep(0))
            self.loop.run_until_complete(asyncio.sleep(0))
            self.loop.close()

    def _task(self, operation: Coroutine[Any, Any, Any]) -> Task:
        return self.loop.create_task(operation)

    def _run(self) -> None:
        async def settle() -> None:
            for _ in range(6):
                await asyncio.sleep(0)

        self.loop.run_until_complete(settle())
        self._collect()

    def _collect(self) -> None:
        for task in [task for task in self.senders if task.done()]:
            item = self.senders.pop(task)
            if self._succeeded(task):
                self.sent.append(item)
        for task in [task for task in self.reservers if task.done()]:
            self.reservers.remove(task)
            if self._succeeded(task):
                self.permits.append(task.result())
        got = [task for task in self.receivers if task.done()]
        self.receivers.difference_update(got)
        received = [task.result() for task in got if self._succeeded(task)]
        for item in sorted(received):
            self._received(item)

    def _succeeded(self, task: Task) -> bool:
        if task.cancelled():
            return False
        error = task.exception()
        if error is not None:
            assert isinstance(error, ChannelClosed), error
            assert self.channel.closed
        return error is None

    def _received(self, item: int) -> None:
        assert item in self.sent, "received twice, or never sent"
        # 7. Items are received in the order in which they were sent.
        assert item == self.sent.popleft()

    @rule(selecting=st.booleans())
    def send(self, selecting: bool) -> None:
        item = next(self.numbers)
        case = self.channel.sending(item)
        self.senders[self._task(select(self.silent, case) if selecting else self.channel.send(item))] = item
        self._run()

    @rule(selecting=st.booleans())
    def receive(self, selecting: bool) -> None:
        async def receive_by_select() -> int:
            return (await select(self.silent, self.channel))[1]

        self.receivers.add(self._task(receive_by_select() if selecting else self.channel.receive()))
        self._run()

    @rule()
    def send_nowait(self) -> None:
        item = next(self.numbers)
        try:
            self.channel.send_nowait(item)
        except (MailboxFull, ChannelClosed):
            pass
        else:
            self.sent.append(item)
        self._run()

    @rule()
    def reserve(self) -> None:
        self.reservers.add(self._task(self.channel.reserve()))
        self._run()

    @precondition(lambda self: self.permits)
    @rule(using=st.booleans())
    def use_permit(self, using: bool) -> None:
        permit = self.permits.pop(0)
        if using:
            item = next(self.numbers)
            try:
                permit.send(item)
                self.sent.append(item)
            except ChannelClosed:
                assert self.channel.closed
        permit.release()
        self._run()

    @precondition(lambda self: self.senders or self.receivers or self.reservers)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        tasks = [*self.senders, *self.receivers, *self.reservers]
        data.draw(st.sampled_from(tasks)).cancel()
        self._run()

    @precondition(lambda self: self.receivers)
    @rule(count=st.integers(1, 3))
    def send_and_cancel_in_one_step(self, count: int) -> None:
        """Receivers that are cancelled natively just after they got their items give them back."""
        for _ in range(count):
            item = next(self.numbers)
            try:
                self.channel.send_nowait(item)
            except (MailboxFull, ChannelClosed):
                continue
            self.sent.append(item)
        for task in self.receivers:
            task.cancel()
        self._run()
        assert not self.receivers

    @precondition(lambda self: self.channel.statistics().sent > 10)
    @rule()
    def close(self) -> None:
        self.channel.close()
        self.silent.close()  # else selects would go on with it
        self._run()

    @invariant()
    def hold(self) -> None:
        if not hasattr(self, "channel"):
            return
        statistics = self.channel.statistics()
        buffered, capacity = statistics.buffered, statistics.capacity
        items_wait = bool(self.senders)
        # 1. While an item is buffered, no receiver waits.
        if buffered:
            assert not statistics.waiting_receivers
        # 2. While there is room, no sender waits.
        if capacity and buffered + len(self.permits) < capacity:
            assert not statistics.waiting_senders
        # 3. No sender with an item waits while a receiver waits, except beside receivers kept for permits.
        if items_wait and statistics.waiting_receivers:
            assert capacity == 0
            assert statistics.waiting_receivers <= len(self.permits)
        # 4. Buffered items and kept places are no more than the capacity, but for what came back or went past.
        if capacity and not self.channel.closed and not self.channel._returned:
            assert buffered + len(self.permits) <= capacity
        # 5. What was sent was received, was dropped or is buffered.
        assert statistics.sent == statistics.received + statistics.dropped + buffered
        assert [*self.channel._buffer] == [*self.sent]
        # 6. At a closed channel nobody waits.
        if statistics.closed:
            assert not statistics.waiting_receivers
            assert not statistics.waiting_senders
            assert not [*self.senders, *self.receivers, *self.reservers]


def test_channel_invariants() -> None:
    run_state_machine_as_test(ChannelMachine)
