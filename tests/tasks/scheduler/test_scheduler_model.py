"""The invariants of `tasks/_scheduler.py`, for any order of events."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cuelight.tasks import SchedulingStrategy, Task, TaskScheduler, WorkerInfo

NAMES = st.sampled_from(["a", "b", "c", "d", "e"])
TYPES = st.sampled_from(["x", "y", "z"])


class Schedules(RuleBasedStateMachine):
    strategy = SchedulingStrategy.ROUND_ROBIN

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = TaskScheduler(self.strategy).__enter__()
        self.model: dict[str, WorkerInfo] = {}

    @rule(name=NAMES, types=st.lists(TYPES, max_size=2), most=st.integers(1, 3), load=st.integers(0, 4))
    def register(self, name: str, types: list[str], most: int, load: int) -> None:
        self.scheduler.register_worker(WorkerInfo(name, list(types), most, load))
        self.model[name] = WorkerInfo(name, types, most, load)

    @rule(name=NAMES)
    def unregister(self, name: str) -> None:
        assert self.scheduler.unregister_worker(name) == (self.model.pop(name, None) is not None)

    @rule(type_=TYPES, name=NAMES)
    def set_preferred(self, type_: str, name: str) -> None:
        self.scheduler.set_affinity(type_, name)

    @rule(type_=TYPES, key=st.none() | st.sampled_from(["k1", "k2"]))
    def assign(self, type_: str, key: str | None) -> None:
        chosen = self.scheduler.assign(Task(task_type=type_, unique=key))
        capable = {
            name for name, worker in self.model.items() if not worker.capabilities or type_ in worker.capabilities
        }
        roomy = {name for name, worker in self.model.items() if worker.current_load < worker.max_concurrent}
        # 3. A task is assigned to some worker as long as one is eligible.
        assert bool(chosen) == bool(capable & roomy)
        if chosen:
            # 1. No task is assigned to a worker that has `max_concurrent` tasks already.
            assert chosen in roomy
            # 2. No task is assigned to a worker that is not capable of its type.
            assert chosen in capable
            self.model[chosen].current_load += 1

    @rule(name=NAMES)
    def complete(self, name: str) -> None:
        worker = self.model.get(name)
        busy = worker is not None and worker.current_load > 0
        assert self.scheduler.report_completion(name) == busy
        if worker is not None and busy:
            worker.current_load -= 1

    @invariant()
    def loads_add_up(self) -> None:
        """4. A worker's load is what it was registered with, and what was assigned to it since, less what was reported
        complete; never below zero.
        """
        assert self.scheduler.workers() == [self.model[name] for name in sorted(self.model)]
        assert all(worker.current_load >= 0 for worker in self.model.values())


class ByLoad(Schedules):
    strategy = SchedulingStrategy.LEAST_LOADED


class ByAffinity(Schedules):
    strategy = SchedulingStrategy.AFFINITY


TestRoundRobin = Schedules.TestCase
TestLeastLoaded = ByLoad.TestCase
TestAffinity = ByAffinity.TestCase


@given(names=st.sets(st.text(min_size=1, max_size=3), min_size=1, max_size=8), count=st.integers(0, 60))
def test_round_robin_is_fair_within_one(names: set[str], count: int) -> None:
    """5. Over workers that stay eligible round robin gives each as many tasks as any other, within one."""
    with TaskScheduler(SchedulingStrategy.ROUND_ROBIN) as scheduler:
        for name in names:
            scheduler.register_worker(name, max_concurrent=count + 1)
        taken = Counter(scheduler.assign(Task()) for _ in range(count))
        shares = [taken[name] for name in names]
        assert max(shares) - min(shares) <= 1
        assert sum(shares) == count
