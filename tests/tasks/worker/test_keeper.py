"""The keeper of leases; its invariants are in `cuelight/tasks/_keeper.py`."""

from __future__ import annotations

import threading
import time
from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cuelight.errors import StoreUnavailable
from cuelight.tasks import Beat, Store
from cuelight.tasks._worker._lease_keeper import LeaseKeeper

LEASE = 9.0
Key = tuple[str, int]


class Leases:
    """A store that knows leases only: when each runs out, and which somebody wants cancelled."""

    def __init__(self) -> None:
        self.time = 0.0
        self.until: dict[Key, float] = {}
        self.cancelling: set[Key] = set()
        self.away = False
        self.beats: list[float | None] = []
        self.beaten = threading.Event()

    def claim(self, key: Key) -> None:
        self.until[key] = self.time + LEASE

    def beat(self, worker: str, leases: list[Key], lease: float | None) -> Beat:
        self.beats.append(lease)
        self.beaten.set()
        if self.away:
            raise StoreUnavailable("arranged")
        lost = [key for key in leases if self.until.get(key, 0.0) <= self.time]
        for key in leases:
            if lease is not None and key not in lost:
                self.until[key] = self.time + lease
        return Beat(lost, [key for key in leases if key in self.cancelling and key not in lost])


def new_keeper(leases: Leases, told: list[Beat], **options: Any) -> LeaseKeeper:
    usual: dict[str, Any] = {"lease": LEASE, "notify": told.append, "clock": lambda: leases.time}
    return LeaseKeeper(cast("Store", leases), "w", **(usual | options))


class KeeperMachine(RuleBasedStateMachine):
    """Steps taken whenever they are due, in a time of our own, with a store that comes and goes."""

    def __init__(self) -> None:
        super().__init__()
        self.leases = Leases()
        self.told: list[Beat] = []
        self.keeper = new_keeper(self.leases, self.told)
        self.held: dict[Key, float] = {}
        self.lost: list[Key] = []
        self.cancelled: list[Key] = []
        self.next = 0.0
        self.epoch = 0

    def step(self) -> None:
        seen = len(self.told)
        self.next = self.leases.time + self.keeper.step()
        for beat in self.told[seen:]:
            for key in beat.lost:
                assert key in self.held, "a lease is reported lost only while it is held"
                del self.held[key]
            self.lost += beat.lost
            self.cancelled += beat.cancelled

    @rule()
    def claim(self) -> None:
        self.epoch += 1
        key = (f"t{self.epoch % 3}", self.epoch)
        self.leases.claim(key)
        self.held[key] = self.leases.time
        self.keeper.hold(*key, self.leases.time)

    @rule(number=st.integers(0, 5))
    def drop(self, number: int) -> None:
        for key in list(self.held)[number : number + 1]:
            del self.held[key]
            self.keeper.drop(*key)
            self.leases.until.pop(key)

    @rule(number=st.integers(0, 5))
    def cancel(self, number: int) -> None:
        self.leases.cancelling.update(list(self.held)[number : number + 1])

    @rule(number=st.integers(0, 5))
    def steal(self, number: int) -> None:
        for key in list(self.held)[number : number + 1]:
            self.leases.until[key] = 0.0

    @rule()
    def go_or_come(self) -> None:
        self.leases.away = not self.leases.away

    @rule(steps=st.integers(1, 30))
    def pass_time(self, steps: int) -> None:
        for _ in range(steps):
            self.leases.time = max(self.leases.time, self.next)
            self.step()

    @invariant()
    def a_lease_that_is_held_has_not_run_out_unless_it_was_stolen(self) -> None:
        for key in self.held:
            until = self.leases.until[key]
            assert until == 0.0 or until > self.leases.time

    @invariant()
    def a_lease_is_reported_lost_at_most_once(self) -> None:
        assert len(self.lost) == len(set(self.lost))

    @invariant()
    def a_wish_to_cancel_is_reported_once_for_each_lease(self) -> None:
        assert len(self.cancelled) == len(set(self.cancelled))

    @invariant()
    def while_the_store_answers_all_is_known_half_a_second_later(self) -> None:
        if not self.leases.away:
            self.leases.time = max(self.leases.time, self.next)
            self.step()
            assert not [key for key in self.held if self.leases.until[key] == 0.0]
            assert {key for key in self.held if key in self.leases.cancelling} <= set(self.cancelled)


TestKeeperMachine = KeeperMachine.TestCase
TestKeeperMachine.settings = settings(settings.default, stateful_step_count=40)


def test_its_thread_renews_while_the_main_thread_is_busy_and_ends_with_close() -> None:
    leases = Leases()
    leases.time = 1.0
    told: list[Beat] = []
    keeper = new_keeper(leases, told, lease=0.3, clock=time.monotonic)
    keeper.start()
    leases.until["a", 1] = 1e12
    keeper.hold("a", 1)
    deadline = time.monotonic() + 5
    while leases.beats.count(0.3) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)  # what a blocked event loop does
    leases.cancelling.add(("a", 1))
    while not told:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    keeper.close()
    keeper.close()
    assert told == [Beat([], [("a", 1)])]
    assert not [thread for thread in threading.enumerate() if thread.name == "cuelight leases of w"]
    beats = len(leases.beats)
    keeper.hold("b", 1)
    assert len(leases.beats) == beats


def test_an_idle_keeper_sleeps_until_something_is_held() -> None:
    leases = Leases()
    keeper = new_keeper(leases, [], lease=0.3, clock=time.monotonic)
    keeper.start()
    assert not leases.beaten.wait(0.3)
    leases.until["a", 1] = 1e12
    keeper.hold("a", 1)
    assert leases.beaten.wait(5)
    keeper.close()


def test_a_consumer_that_fails_does_not_end_the_keeper(caplog: pytest.LogCaptureFixture) -> None:
    leases = Leases()

    def fail(beat: Beat) -> None:
        raise ValueError("mine")

    keeper = new_keeper(leases, [], notify=fail)
    keeper.hold("a", 1, 0.0)
    keeper.step()
    assert "could not report" in caplog.text


@pytest.mark.parametrize("options", [{"lease": 0}, {"every": 0}])
def test_times_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="more than 0 seconds"):
        new_keeper(Leases(), [], **options)
