"""What the ledger and the queue say together: what was lost, what was accepted twice, how long recovery took."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from chaos._ledger import Event

__all__ = ["Fault", "Verdict", "judge"]


@dataclass(frozen=True)
class Fault:
    """Something that was done to a process.

    Attributes:
        at: when, in seconds since the epoch.
        pid: to whom.
        kind: "kill worker", "freeze worker" or "kill producer".
    """

    at: float
    pid: int
    kind: str


@dataclass
class Verdict:
    """The result of a run.

    Attributes:
        given: tasks whose enqueue was acknowledged.
        completed: of these, completed.
        dead: of these, in the dead letter queue.
        lost: of these, neither.
        executions: attempts that began.
        repeated: attempts beyond the first of each task.
        accepted_twice: tasks of which more than one completion was accepted.
        refused: completions of workers that had lost their lease.
        faults: how many of each kind.
        recoveries: for each attempt that was under way in a killed worker, the seconds until the task ran again.
    """

    given: int = 0
    completed: int = 0
    dead: int = 0
    lost: list[str] = field(default_factory=list[str])
    executions: int = 0
    repeated: int = 0
    accepted_twice: list[str] = field(default_factory=list[str])
    refused: int = 0
    faults: Counter[str] = field(default_factory=Counter[str])
    recoveries: list[float] = field(default_factory=list[float])

    @property
    def passed(self) -> bool:
        """Whether nothing was lost, and no completion accepted twice."""
        return not self.lost and not self.accepted_twice


def judge(events: Iterable[Event], states: Mapping[str, str], faults: Iterable[Fault]) -> Verdict:
    """Compare what was written down with the states in which the queue has its tasks at the end."""
    verdict = Verdict()
    by_what: defaultdict[str, list[Event]] = defaultdict(list)
    for event in events:
        by_what[event.what].append(event)
    given = {event.task for event in by_what["given"]}
    verdict.given = len(given)
    verdict.completed = sum(states.get(task) == "completed" for task in given)
    verdict.dead = sum(states.get(task) == "dead_letter" for task in given)
    verdict.lost = sorted(task for task in given if states.get(task) not in {"completed", "dead_letter"})
    begun = Counter(event.task for event in by_what["begun"])
    verdict.executions = begun.total()
    verdict.repeated = begun.total() - len(begun)
    accepted = Counter(event.task for event in by_what["accepted"])
    verdict.accepted_twice = sorted(task for task, times in accepted.items() if times > 1)
    verdict.refused = len(by_what["refused"])
    faults = list(faults)
    verdict.faults = Counter(fault.kind for fault in faults)
    verdict.recoveries = _recoveries(by_what, faults)
    return verdict


def _recoveries(by_what: Mapping[str, list[Event]], faults: Iterable[Fault]) -> list[float]:
    killed = {fault.pid: fault.at for fault in faults if fault.kind == "kill worker"}
    over = {(event.task, event.epoch) for event in by_what["accepted"]}
    starts: defaultdict[str, list[Event]] = defaultdict(list)
    for event in by_what["begun"]:
        starts[event.task].append(event)
    found: list[float] = []
    for event in by_what["begun"]:
        died = killed.get(event.pid)
        if died is None or event.at > died or (event.task, event.epoch) in over:
            continue
        later = [again.at for again in starts[event.task] if again.epoch > event.epoch]
        if later:  # else it had been completed, and only the line about that was lost
            found.append(min(later) - died)
    return found
