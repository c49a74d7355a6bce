"""The state machine alone, against its invariants and against a model that is too simple to be wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuelight.coordination._lock_state import (
    ALL,
    CANCELLED,
    GRANTED,
    WAITING,
    CapacityState,
    FastLockState,
    FastSemaphoreState,
    LockWaiter,
)


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


class Fragile(LockWaiter):
    """A ticket whose owner may be gone before it is served."""

    lost = False
    woken = 0

    def is_cancelled(self) -> bool:
        return self.lost

    def wake(self) -> bool:
        self.woken += 1
        return True


OWNERS = 6
KINDS: dict[str, Callable[[], CapacityState]] = {
    "lock": lambda: FastLockState("it"),
    "plain lock": lambda: CapacityState("it", 1),
    "semaphore": lambda: FastSemaphoreState("it", 4),
    "large semaphore": lambda: CapacityState("it", 4, multiple_holds=True),
    "read-write": lambda: CapacityState("it", ALL),
    "writers first": lambda: CapacityState("it", ALL, writers_first=True),
}
steps = st.lists(
    st.tuples(st.sampled_from(["come", "come", "try", "go", "lose"]), st.integers(0, OWNERS - 1), st.integers(1, 4)),
    min_size=10,
    max_size=60,
)


def _check(state: CapacityState) -> None:
    held = state.held()
    assert sum(held.values()) <= state.capacity
    if not isinstance(state, FastLockState):
        assert state.used == sum(held.values())
    line = [waiter for waiter in state.queue or () if not waiter.is_cancelled()]
    assert all(waiter.state == WAITING for waiter in line)
    if line:
        assert sum(held.values()) + line[0].weight > state.capacity or any(t.is_cancelled() for t in state.queue or ())
    if state.writers_first:
        kinds = [waiter.weight == state.capacity for waiter in line]
        assert kinds == sorted(kinds, reverse=True)


class Play:
    """A core and the model, which do the same."""

    def __init__(self, state: CapacityState) -> None:
        self.state = state
        self.model = Model(state.capacity, state.writers_first)
        self.tickets: dict[int, Fragile] = {}
        self.now = 0.0

    def weight(self, amount: int) -> int:
        if self.state.capacity == ALL:
            return ALL if amount == 4 else 1
        return min(amount, self.state.capacity)

    def come(self, owner: int, weight: int) -> None:
        waiter = self.tickets[owner] = Fragile(owner, weight, self.now)
        self.state.enqueue(waiter)
        self.state.grant_waiters(self.now)
        self.model.come(owner, weight)

    def attempt(self, owner: int, weight: int) -> None:
        if self.state.try_acquire(owner, weight):
            assert not self.model.line
            self.model.come(owner, weight)
            assert owner in self.model.held
        else:
            assert self.model.line or self.model.used + weight > self.model.capacity

    def go(self, owner: int, weight: int, lost: bool) -> None:
        """Release it, or leave the line: whichever it is."""
        if owner in self.model.held:
            assert self.state.release(owner, self.model.held[owner], self.now)
            self.tickets.pop(owner, None)
        elif owner in self.tickets:
            waiter = self.tickets.pop(owner)
            waiter.lost = lost
            self.state.remove_waiter(waiter, self.now)
            assert waiter.state == CANCELLED
        else:
            assert not self.state.release(owner, weight, self.now)
        self.model.leave(owner)

    def compare(self) -> None:
        _check(self.state)
        assert self.state.held() == self.model.held
        assert [(waiter.owner, waiter.weight) for waiter in self.state.queue or ()] == self.model.line
        for owner, waiter in self.tickets.items():
            assert (waiter.state == GRANTED) == (owner in self.model.held)
            assert waiter.woken == (waiter.state == GRANTED)


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
    assert play.state.held() == {}
    assert not play.state.queue


@given(program=steps)
def test_a_lost_waiter_is_passed_over(program: list[tuple[str, int, int]]) -> None:
    """Whoever was cancelled, but has not left the line yet, is granted nothing, and keeps nobody up."""
    state = CapacityState("it", 4, multiple_holds=True)
    tickets: list[Fragile] = []
    for number, (what, owner, weight) in enumerate(program):
        now = float(number)
        if what in {"come", "try"}:
            waiter = Fragile((owner, number), weight, now)
            tickets.append(waiter)
            state.enqueue(waiter)
            state.grant_waiters(now)
        elif what == "lose" and tickets:
            waiting = [waiter for waiter in tickets if waiter.state == WAITING]
            if waiting:
                waiting[owner % len(waiting)].lost = True
        elif tickets:
            holding = [waiter for waiter in tickets if waiter.state == GRANTED]
            if holding:
                state.remove_waiter(holding[owner % len(holding)], now)
        assert not any(waiter.lost and waiter.state == GRANTED for waiter in tickets)
        _check(state)
    for waiter in tickets:
        state.remove_waiter(waiter, 0.0)
    assert state.used == 0
    assert not state.queue


def test_a_downgrade_keeps_the_sum() -> None:
    state = CapacityState("it", ALL)
    assert state.try_acquire("writer", ALL)
    assert not state.change_weight("somebody", 1, 0.0)
    reader, writer = LockWaiter("reader", 1, 0.0), LockWaiter("next", ALL, 0.0)
    state.enqueue(reader)
    state.enqueue(writer)
    assert state.change_weight("writer", 2, 1.0)
    assert state.held() == {"writer": 2, "reader": 1}
    assert state.used == 3
    assert (reader.state, writer.state) == (GRANTED, WAITING)
    assert state.blockers(writer) == ["writer", "reader"]
    assert state.blockers(reader) == []
    assert state.owners_ahead(writer) == state.owners_ahead(reader) == []


def test_the_figures() -> None:
    state = FastLockState("it")
    assert state.try_acquire("a", 1)
    first, second = LockWaiter("b", 1, 1.0, "here"), LockWaiter("c", 1, 2.0)
    state.enqueue(first)
    state.enqueue(second)
    assert state.owners_ahead(second) == ["b"]
    assert state.release("a", 1, 5.0)
    assert state.release("b", 1, 6.0)
    state.remove_waiter(second, 9.0)
    assert (state.acquired, state.waited) == (3, 2)
    assert (state.wait_seconds, state.longest_wait) == (8.0, 4.0)
    assert (state.hold_seconds, state.longest_hold) == (8.0, 4.0)
