"""The invariants of `_store.py`, in its words, for random steps: all stores against a model and each other."""

import asyncio
import copy
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine
from math import inf
from pathlib import Path
from typing import Any, TypeVar

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from cuelight.tasks import Bound, Claim, Finish, Limit, Query, Record, Schedule, Snapshot, Store
from helpers.store_model import FINAL, Model
from helpers.stores import START, STORES, HandClock

R = TypeVar("R")

RECENT = st.integers(1, 8)  # which of the last tasks, or of the last leases
WORKERS = st.sampled_from(["w1", "w2"])
LIMITS = (
    Limit("one", max_concurrent=1),
    Limit("two", max_concurrent=2),
    Limit("rate", rate=2.0, per=10.0, burst=3.0),
    Limit("rate", rate=2.0, per=10.0, burst=3.0, cost=2.0),
    Limit("both", max_concurrent=2, rate=1.0, per=4.0),
)
KINDS = st.sampled_from(
    [
        "done",
        "done",
        "error",
        "error",
        "timeout",
        "crash",
        "rate_limited",
        "released",
        "rejected",
        "undecodable",
        "cancelled",
        "unknown",
    ]
)
BOUNDS = st.sampled_from([None, None, None, Bound(6), Bound(6, shed=True)])


@st.composite
def records(draw: st.DrawFn) -> Record:
    """A record without an id, most times, and with a deadline that counts from now."""
    tenant = draw(st.sampled_from([None, None, "a", "b"]))
    return Record(
        id=draw(st.sampled_from(["", "", "", "again"])),
        type=draw(st.sampled_from(["x", "y"])),
        nonce=draw(st.sampled_from(["1", "2"])),
        payload=draw(st.sampled_from([b"", b"p"])),
        priority=draw(st.sampled_from([1, 2, 2])),
        deadline=draw(st.sampled_from([inf, inf, inf, 6.0, 25.0])),
        delay=draw(st.sampled_from([0.0, 0.0, 0.0, 5.0])),
        max_retries=draw(st.sampled_from([0, 2])),
        max_crashes=draw(st.sampled_from([1, 3])),
        unique=draw(st.sampled_from([None, None, None, "u"])),
        unique_for=draw(st.sampled_from([None, 15.0])),
        limits=tuple(draw(st.lists(st.sampled_from(LIMITS), max_size=2, unique_by=lambda limit: limit.key))),
        result_ttl=draw(st.sampled_from([0.0, 30.0])),
        tenant=tenant,
        weight=1.0 if tenant is None else draw(st.sampled_from([1.0, 1.0, 0.5, 3.0])),
    )


class StoreMachine(RuleBasedStateMachine):
    """Producers, workers that may die, people and time, on all stores in step."""

    @initialize()
    def start(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp())
        self.clock = HandClock()
        self.model = Model(START)
        self.stores = [make(self.folder, self.clock) for make in STORES.values()]
        for store in self.stores:
            self._run(store.open())
        self.leases: list[tuple[str, int, str]] = []  # (id, epoch, worker), stale ones too
        self.claims: list[tuple[Claim, list[tuple[str, int]], float]] = []
        self.ids = ["again"]
        self.nonces = 0

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            for store in self.stores:
                self._run(store.close())
            self.loop.close()
            shutil.rmtree(self.folder)

    def _run(self, step: Coroutine[Any, Any, R]) -> R:
        return self.loop.run_until_complete(step)

    def _all(self, step: Callable[[Store], Coroutine[Any, Any, R]]) -> R:
        """Make one step on every store; they must agree."""
        return self._agreed([self._run(step(store)) for store in self.stores])

    def _agreed(self, answers: list[R]) -> R:
        assert all(answer == answers[0] for answer in answers), answers
        return answers[0]

    # Producers

    @rule(new=st.lists(records(), min_size=1, max_size=4), bound=BOUNDS)
    def add(self, new: list[Record], bound: Bound | None) -> None:
        if self.model.closed:
            return
        for record in new:
            self.ids.append(record.id or f"t{len(self.ids)}")
            record.id = self.ids[-1]
            record.deadline += self.clock.now
        added = self._all(lambda store: store.add(new, bound))
        assert [(one.outcome, one.id) for one in added] == self.model.add(copy.deepcopy(new), bound)

    # Workers

    @rule(worker=WORKERS, most=st.integers(0, 4), lease=st.sampled_from([10.0, 30.0]))
    def claim(self, worker: str, most: int, lease: float) -> None:
        self.nonces += 1
        self._claim(Claim(worker, f"n{self.nonces}", most, lease))

    def _claim(self, claim: Claim, finishes: tuple[Finish, ...] = ()) -> None:
        exchange = self._all(lambda store: store.exchange(finishes, claim))
        assert exchange.accepted == [self.model.finish(finish) for finish in finishes]
        self.model.sweep()
        self.model.leased(exchange.leases, claim.worker, claim.most, claim.lease)
        given = [(lease.record.id, lease.epoch, claim.worker) for lease in exchange.leases]
        assert not set(given) & set(self.leases), "3: no (id, epoch) is given twice"
        assert exchange.wake_at >= self.clock.now
        self.leases += given
        if given:
            pairs = [(task_id, epoch) for task_id, epoch, _ in given]
            self.claims.append((claim, pairs, self.clock.now + claim.lease))
        # The answer was lost: the same claim, and the same finishes, are accepted again and change nothing.
        again = self._all(lambda store: store.exchange(finishes, claim))
        assert again.accepted == exchange.accepted or any(finish.id not in self.model.tasks for finish in finishes)
        if given:
            assert again.leases == exchange.leases
        else:
            self.model.leased(again.leases, claim.worker, claim.most, claim.lease)
            assert again.leases == []

    @rule(back=RECENT)
    def claim_again(self, back: int) -> None:
        if not self.claims:
            return
        claim, pairs, remembered = self.claims[-min(back, len(self.claims))]
        if self.clock.now < remembered:
            exchange = self._all(lambda store: store.exchange([], claim))
            held = [pair for pair in pairs if self.model.holds(*pair, claim.worker)]
            assert [(lease.record.id, lease.epoch) for lease in exchange.leases] == held
            self.model.leased_again(exchange.leases, claim.lease)
            self.claims.append((claim, held, self.clock.now + claim.lease))

    @rule(back=RECENT, held=st.sampled_from([True, True, True, False]), kind=KINDS, delay=st.sampled_from([0.0, 7.0]))
    def finish(self, back: int, held: bool, kind: str, delay: float) -> None:
        finish = self._finish(back, held, kind, delay)
        if finish is not None:
            accepted = self._all(lambda store: store.exchange([finish]))
            assert accepted.accepted == [self.model.finish(finish)], "3: a stale step is refused"

    def _finish(self, back: int, held: bool, kind: str, delay: float) -> Finish | None:
        leases = [lease for lease in self.leases if self.model.holds(*lease)] if held else self.leases
        if not leases:
            return None
        task_id, epoch, _ = leases[-min(back, len(leases))]
        pause = "one" if kind == "rate_limited" and delay else None
        return Finish(task_id, epoch, kind, delay=delay, pause_key=pause)

    @rule(back=RECENT, kind=KINDS, worker=WORKERS, most=st.integers(1, 4))
    def finish_and_claim(self, back: int, kind: str, worker: str, most: int) -> None:
        finish = self._finish(back, True, kind, 0.0)
        self.nonces += 1
        self._claim(Claim(worker, f"n{self.nonces}", most, 10.0), () if finish is None else (finish,))

    @rule(worker=WORKERS, lease=st.sampled_from([None, 10.0]))
    def beat(self, worker: str, lease: float | None) -> None:
        pairs = [(task_id, epoch) for task_id, epoch, _ in self.leases[-6:]]
        beat = self._agreed([store.beat(worker, pairs, lease) for store in self.stores])
        held = [pair for pair in pairs if self.model.holds(*pair, worker)]
        assert beat.lost == [pair for pair in pairs if pair not in held]
        assert beat.cancelled == [pair for pair in held if self.model.tasks[pair[0]].cancelling]
        for task_id, _ in held if lease else ():
            self.model.tasks[task_id].due = self.clock.now + (lease or 0.0)

    # Time and people

    @rule(seconds=st.sampled_from([0.5, 3.0, 10.0, 31.0]))
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.model.now = self.clock.now
        self.model.forget_over()

    @rule(what=st.sampled_from(["cancel", "cancel", "replay", "replay", "edit", "purge", "save"]), back=RECENT)
    def handle_one(self, what: str, back: int) -> None:
        task_id = self.ids[-min(back, len(self.ids))]
        match what:
            case "cancel":
                assert self._all(lambda store: store.cancel([task_id])) == [self.model.cancel(task_id)]
            case "replay":
                assert self._all(lambda store: store.replay([task_id])) == [self.model.replay(task_id)]
            case "edit":
                assert self._all(lambda store: store.edit(task_id, b"e")) == self.model.edit(task_id, b"e")
            case "purge":
                assert self._all(lambda store: store.purge([task_id])) == self.model.purge(task_id)
            case _:
                saved = self._all(lambda store: store.save(task_id, 1, progress=b"1"))
                assert saved == self.model.holds(task_id, 1)

    @rule(what=st.sampled_from(["pause", "close", "unpark", "unpark", "fire"]))
    def handle_all(self, what: str) -> None:
        match what:
            case "pause":
                self.model.paused = not self.model.paused
                self._all(lambda store: store.control(paused=self.model.paused))
            case "close":
                self.model.closed = not self.model.closed
                self._all(lambda store: store.control(closed=self.model.closed))
            case "unpark":
                assert self._all(lambda store: store.unpark(["x"])) == self.model.unpark("x")
            case _:
                self._fire()

    def _fire(self) -> None:
        if self.model.closed:
            return
        schedule = Schedule(name="s", spec="1", due=START, record=Record(id="s", type="x", nonce="1"))
        self._all(lambda store: store.put_schedule(schedule))
        (there,) = self._all(lambda store: store.schedules())
        assert self._all(lambda store: store.fire("s", there.due, there.due + 10))
        assert not self._all(lambda store: store.fire("s", there.due, there.due + 10))
        self.model.add([Record(id=f"s@{there.due:.3f}", type="x", created=self.clock.now)], None)

    @rule(key=st.sampled_from(["one", "two"]), most=st.sampled_from([None, 1, 3]))
    def set_limit(self, key: str, most: int | None) -> None:
        limit = None if most is None else Limit(key, max_concurrent=most)
        self._all(lambda store: store.set_limit(limit, key))
        self.model.overrides.pop(key, None)
        if limit is not None:
            self.model.overrides[key] = limit

    @rule(key=st.sampled_from(["one", "rate", "both"]), seconds=st.sampled_from([0.0, 8.0]))
    def pause_limit(self, key: str, seconds: float) -> None:
        self._all(lambda store: store.pause_limit(key, seconds))
        self.model.pause_limit(key, seconds)

    # The invariants

    @invariant()
    def each_task_is_where_the_model_has_it(self) -> None:
        """1. One state each. 2. Never lost. 4. One lease at most. 7, 8. Dead letters and why."""
        there = self._all(lambda store: store.find(Query(limit=1000)))
        assert [_seen(one) for one in there] == [
            (
                known.record.id,
                known.state,
                known.sequence,
                known.epoch,
                known.due,
                known.reason,
                known.ended,
                known.cancelling,
                known.counts,
                known.attempts[-20:],
                known.record.payload,
                known.record.deadline,
            )
            for known in self.model.tasks.values()
        ]
        size = self._all(lambda store: store.size())
        states = Counter(known.state for known in self.model.tasks.values())
        assert {name: getattr(size, name) for name in states} == dict(states)
        assert sum(getattr(size, name) for name in ("pending", "scheduled", "in_flight", "parked", *FINAL)) == len(
            there
        )
        assert (size.paused, size.closed) == (self.model.paused, self.model.closed)

    @invariant()
    def a_rate_is_never_exceeded(self) -> None:
        """6. What was started in any time of t seconds costs at most `burst + t * rate / per`."""
        for key in ("rate", "both"):
            starts = [(at, limit) for at, limit in self.model.starts if limit.key == key]
            for first in range(len(starts)):
                cost = 0.0
                for at, limit in starts[first:]:
                    cost += limit.cost
                    burst = limit.burst or limit.rate or 0.0
                    assert cost <= burst + (at - starts[first][0]) * (limit.rate or 0.0) / limit.per + 1e-6


def _seen(there: Snapshot) -> tuple[Any, ...]:
    record = there.record
    place = (record.id, there.state, there.sequence, there.epoch, there.due, there.reason, there.ended)
    attempts = [attempt.kind for attempt in there.history]
    return (*place, there.cancelling, there.counts, attempts, record.payload, record.deadline)


@pytest.mark.timeout(300)  # 2,400 steps, each of which a real disk syncs
def test_store_invariants(stress: bool) -> None:
    steps = settings(stateful_step_count=40, max_examples=1000 if stress else 60)
    run_state_machine_as_test(StoreMachine, settings=steps)


def test_the_model_notices_a_store_that_is_wrong() -> None:
    model = Model(START)
    model.add([Record(id="a", type="t"), Record(id="b", type="t", priority=1)], None)
    wrong: Store = STORES["memory"](Path(), HandClock())

    async def leases() -> Any:
        await wrong.add([Record(id="a", type="t")])
        return (await wrong.exchange([], Claim("w", "n", 1, 15.0))).leases

    given = asyncio.run(leases())
    with pytest.raises(AssertionError, match="b may run and was not claimed"):
        model.leased(given, "w", 1, 15.0)
