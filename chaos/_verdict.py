"""The verdict from the ledger and the queue: losses, completions that were accepted twice, and recovery times."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from chaos._ledger import Event

__all__ = ["Fault", "Trouble", "Verdict", "judge"]


@dataclass(frozen=True)
class Fault:
    """A fault of a process or of the server.

    Attributes:
        at: seconds since the epoch.
        pid: the process; 0 for the server.
        kind: "kill worker", "freeze worker", "kill producer", or a fault of the server.
    """

    at: float
    pid: int
    kind: str


@dataclass
class Trouble:
    """A time in which the place of the queue was unreliable.

    Attributes:
        since: seconds since the epoch.
        until: the time of its end.
        kind: the fault.
        kept_until: the time before which every acknowledged change is still there, according to the place itself. It
            may have forgotten changes made after that time. None: it forgot nothing.
    """

    since: float
    until: float
    kind: str
    kept_until: float | None = None

    def forgot(self, at: float) -> bool:
        """Whether it may have forgotten a change acknowledged at this time."""
        return self.kept_until is not None and self.kept_until <= at <= self.until


@dataclass
class Verdict:
    """The result of a run.

    Attributes:
        given: tasks whose enqueue was acknowledged.
        completed: the number of them that completed.
        dead: the number of them in the dead letter queue.
        lost: those of them that are in neither state.
        executions: attempts that began.
        repeated: attempts beyond the first of each task.
        accepted_twice: tasks of which more than one completion was accepted.
        forgotten: tasks, or accepted completions, that the server itself forgot: no sync, or a replica behind.
        refused: completions of workers that had lost their lease.
        faults: the number of faults of each kind.
        recoveries: for each attempt in progress in a killed worker, the seconds until the task ran again,
            except for those that trouble of a server delayed.
        exited: workers that ended by themselves.
        deaf: workers that lived at the end and took no more work.
    """

    given: int = 0
    completed: int = 0
    dead: int = 0
    lost: list[str] = field(default_factory=list[str])
    executions: int = 0
    repeated: int = 0
    accepted_twice: list[str] = field(default_factory=list[str])
    forgotten: list[str] = field(default_factory=list[str])
    refused: int = 0
    faults: Counter[str] = field(default_factory=Counter[str])
    recoveries: list[float] = field(default_factory=list[float])
    exited: list[int] = field(default_factory=list[int])
    deaf: list[int] = field(default_factory=list[int])

    @property
    def passed(self) -> bool:
        """Whether nothing was lost, no completion was accepted twice, and every worker continued to work."""
        return not (self.lost or self.accepted_twice or self.exited or self.deaf)


def judge(
    events: Iterable[Event], states: Mapping[str, str], faults: Iterable[Fault], troubles: Sequence[Trouble] = ()
) -> Verdict:
    """Compare the events with the final states of the tasks in the queue."""
    verdict = Verdict()
    by_what: defaultdict[str, list[Event]] = defaultdict(list)
    for event in events:
        by_what[event.what].append(event)
    given = {event.task: event.at for event in by_what["given"]}
    verdict.given = len(given)
    verdict.completed = sum(states.get(task) == "completed" for task in given)
    verdict.dead = sum(states.get(task) == "dead_letter" for task in given)
    gone = {task for task in given if states.get(task) not in {"completed", "dead_letter"}}
    forgotten = {task for task in gone if task not in states and _forgot(troubles, given[task])}
    verdict.lost = sorted(gone - forgotten)
    begun = Counter(event.task for event in by_what["begun"] if event.task in given)
    verdict.executions = begun.total()
    verdict.repeated = begun.total() - len(begun)
    # A completion that the server forgot is made again, so only those that it remembered count as accepted.
    kept = Counter(event.task for event in by_what["accepted"] if not _forgot(troubles, event.at))
    undone = {event.task for event in by_what["accepted"] if _forgot(troubles, event.at)}
    verdict.accepted_twice = sorted(task for task, times in kept.items() if times > 1)
    verdict.forgotten = sorted(forgotten | {task for task in undone if kept[task]})
    verdict.refused = len(by_what["refused"])
    faults = list(faults)
    verdict.faults = Counter(fault.kind for fault in faults)
    verdict.recoveries = _recoveries(by_what, faults, troubles)
    return verdict


def _forgot(troubles: Iterable[Trouble], at: float) -> bool:
    return any(trouble.forgot(at) for trouble in troubles)


def _recoveries(
    by_what: Mapping[str, list[Event]], faults: Iterable[Fault], troubles: Iterable[Trouble]
) -> list[float]:
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
        # If there is none, the task had been completed and only its "accepted" line was lost, or its lease was lost
        # before.
        if later and min(later) > died and not any(one.since <= min(later) and one.until >= died for one in troubles):
            found.append(min(later) - died)
    return found
