"""The state machine alone, against its invariants and against a model that is too simple to be wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuelight.coordination._lock_state import ALL, GONE, GRANTED, WAITING, Core, CountedCore, LockCore, Ticket


@dataclass
class Model:
    """The same with two lists: who holds, and who waits; served from the front as far as it fits."""

    capacity: int
    writers_first: bool
    held: dict[int, int] = field(default_factory=dict[int, int])
    line: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])

    @property
    def used(self) -> int:
        return sum(self.held.values())

    def come(self, owner: int, weight: int) -> None:
        if self.writers_first and weight == self.capacity:
            writers = sum(1 for _, other in self.line if other == self.capacity)
            self.line.insert(writers, (owner, weight))
        else:
            self.line.append((owner, weight))
        self.serve()

    def serve(self) -> None:
        while self.line and self.used + self.line[0][1] <= self.capacity:
            owner, weight = self.line.pop(0)
            self.held[owner] = weight

    def leave(self, owner: int) -> None:
        self.held.pop(owner, None)
        self.line = [entry for entry in self.line if entry[0] != owner]
        self.serve()


class Fragile(Ticket):
    """A ticket whose owner may be gone before it is served."""

    lost = False
    woken = 0

    def gone(self) -> bool:
        return self.lost

    def wake(self) -> bool:
        self.woken += 1
        return True


OWNERS = 6
KINDS: dict[str, Callable[[], Core]] = {
    "lock": lambda: LockCore("it"),
    "plain lock": lambda: Core("it", 1),
    "semaphore": lambda: CountedCore("it", 4),
    "large semaphore": lambda: Core("it", 4, several=True),
    "read-write": lambda: Core("it", ALL),
    "writers first": lambda: Core("it", ALL, writers_first=True),
}
steps = st.lists(
    st.tuples(st.sampled_from(["come", "come", "try", "go", "lose"]), st.integers(0, OWNERS - 1), st.integers(1, 4)),
    min_size=10,
    max_size=60,
)


def _check(core: Core) -> None:
    held = core.held()
    assert sum(held.values()) <= core.capacity
    if not isinstance(core, LockCore):
        assert core.used == sum(held.values())
    line = [ticket for ticket in core.queue or () if not ticket.gone()]
    assert all(ticket.state == WAITING for ticket in line)
    if line:
        assert sum(held.values()) + line[0].weight > core.capacity or any(t.gone() for t in core.queue or ())
    if core.writers_first:
        kinds = [ticket.weight == core.capacity for ticket in line]
        assert kinds == sorted(kinds, reverse=True)


class Play:
    """A core and the model, which do the same."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.model = Model(core.capacity, core.writers_first)
        self.tickets: dict[int, Fragile] = {}
        self.now = 0.0

    def weight(self, amount: int) -> int:
        if self.core.capacity == ALL:
            return ALL if amount == 4 else 1
        return min(amount, self.core.capacity)

    def come(self, owner: int, weight: int) -> None:
        ticket = self.tickets[owner] = Fragile(owner, weight, self.now)
        self.core.enqueue(ticket)
        self.core.promote(self.now)
        self.model.come(owner, weight)

    def attempt(self, owner: int, weight: int) -> None:
        if self.core.try_acquire(owner, weight):
            assert not self.model.line
            self.model.come(owner, weight)
            assert owner in self.model.held
        else:
            assert self.model.line or self.model.used + weight > self.model.capacity

    def go(self, owner: int, weight: int, lost: bool) -> None:
        """Release it, or leave the line: whichever it is."""
        if owner in self.model.held:
            assert self.core.release(owner, self.model.held[owner], self.now)
            self.tickets.pop(owner, None)
        elif owner in self.tickets:
            ticket = self.tickets.pop(owner)
            ticket.lost = lost
            self.core.leave(ticket, self.now)
            assert ticket.state == GONE
        else:
            assert not self.core.release(owner, weight, self.now)
        self.model.leave(owner)

    def compare(self) -> None:
        _check(self.core)
        assert self.core.held() == self.model.held
        assert [(ticket.owner, ticket.weight) for ticket in self.core.queue or ()] == self.model.line
        for owner, ticket in self.tickets.items():
            assert (ticket.state == GRANTED) == (owner in self.model.held)
            assert ticket.woken == (ticket.state == GRANTED)


@pytest.mark.parametrize("kind", KINDS)
@given(program=steps)
def test_core_invariants(kind: str, program: list[tuple[str, int, int]]) -> None:
    play = Play(KINDS[kind]())
    for what, owner, amount in program:
        play.now += 1
        weight = play.weight(amount)
        busy = owner in play.model.held or owner in play.tickets
        if what == "come" and not busy:
            play.come(owner, weight)
        elif what == "try" and not busy:
            play.attempt(owner, weight)
        elif what in {"go", "lose"}:
            play.go(owner, weight, lost=what == "lose")
        play.compare()
    for owner in range(OWNERS):
        play.go(owner, 1, lost=False)
    assert play.core.held() == {}
    assert not play.core.queue


@given(program=steps)
def test_a_lost_waiter_is_passed_over(program: list[tuple[str, int, int]]) -> None:
    """Whoever was cancelled, but has not left the line yet, is granted nothing, and keeps nobody up."""
    core = Core("it", 4, several=True)
    tickets: list[Fragile] = []
    for number, (what, owner, weight) in enumerate(program):
        now = float(number)
        if what in {"come", "try"}:
            ticket = Fragile((owner, number), weight, now)
            tickets.append(ticket)
            core.enqueue(ticket)
            core.promote(now)
        elif what == "lose" and tickets:
            waiting = [ticket for ticket in tickets if ticket.state == WAITING]
            if waiting:
                waiting[owner % len(waiting)].lost = True
        elif tickets:
            holding = [ticket for ticket in tickets if ticket.state == GRANTED]
            if holding:
                core.leave(holding[owner % len(holding)], now)
        assert not any(ticket.lost and ticket.state == GRANTED for ticket in tickets)
        _check(core)
    for ticket in tickets:
        core.leave(ticket, 0.0)
    assert core.used == 0
    assert not core.queue


def test_a_downgrade_keeps_the_sum() -> None:
    core = Core("it", ALL)
    assert core.try_acquire("writer", ALL)
    assert not core.change_weight("somebody", 1, 0.0)
    reader, writer = Ticket("reader", 1, 0.0), Ticket("next", ALL, 0.0)
    core.enqueue(reader)
    core.enqueue(writer)
    assert core.change_weight("writer", 2, 1.0)
    assert core.held() == {"writer": 2, "reader": 1}
    assert core.used == 3
    assert (reader.state, writer.state) == (GRANTED, WAITING)
    assert core.blockers(writer) == ["writer", "reader"]
    assert core.blockers(reader) == []
    assert core.ahead(writer) == core.ahead(reader) == []


def test_the_figures() -> None:
    core = LockCore("it")
    assert core.try_acquire("a", 1)
    first, second = Ticket("b", 1, 1.0, "here"), Ticket("c", 1, 2.0)
    core.enqueue(first)
    core.enqueue(second)
    assert core.ahead(second) == ["b"]
    assert core.release("a", 1, 5.0)
    assert core.release("b", 1, 6.0)
    core.leave(second, 9.0)
    assert (core.acquired, core.waited) == (3, 2)
    assert (core.wait_seconds, core.longest_wait) == (8.0, 4.0)
    assert (core.hold_seconds, core.longest_hold) == (8.0, 4.0)
