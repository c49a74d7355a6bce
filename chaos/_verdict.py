"""What the ledger and the queue say together: what was lost, what was accepted twice, how long recovery took."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from chaos._ledger import Event

__all__ = ["Fault", "Trouble", "Verdict", "judge"]


@dataclass(frozen=True)
class Fault:
    """Something that was done to a process.

    Attributes:
        at: when, in seconds since the epoch.
        pid: to whom.
        kind: "kill worker", "freeze worker", "kill producer", or what was done to the server; its pid is 0.
    """

    at: float
    pid: int
    kind: str


@dataclass
class Trouble:
    """A time in which the place of the queue was not to be relied on.

    Attributes:
        since: seconds since the epoch.
        until: when it was over.
        kind: what was done to it.
        kept_until: what was acknowledged before this is there still, by what the place itself says; what came between
            that and `since` it may have forgotten. None: it forgot nothing.
    """

    since: float
    until: float
    kind: str
    kept_until: float | None = None

    def forgot(self, at: float) -> bool:
        """Whether it may have forgotten what was acknowledged then."""
        return self.kept_until is not None and self.kept_until <= at <= self.until


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
        forgotten: tasks, or accepted completions, that the server itself forgot: no sync, or a replica behind.
        refused: completions of workers that had lost their lease.
        faults: how many of each kind.
        recoveries: for each attempt that was under way in a killed worker, the seconds until the task ran again;
            without those that the trouble of a server held up.
        exited: workers that ended by themselves.
        deaf: workers that lived at the end and took no work any more.
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
        """Whether nothing was lost, no completion accepted twice, and every worker worked on."""
        return not (self.lost or self.accepted_twice or self.exited or self.deaf)


def judge(
    events: Iterable[Event], states: Mapping[str, str], faults: Iterable[Fault], troubles: Sequence[Trouble] = ()
) -> Verdict:
    """Compare what was written down with the states in which the queue has its tasks at the end."""
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
    # A completion that the server forgot is made again: only what it remembered counts as accepted.
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
        # Without one it had been completed, and only the line about that was lost; or it had lost its lease before.
        if later and min(later) > died and not any(one.since <= min(later) and one.until >= died for one in troubles):
            found.append(min(later) - died)
    return found
