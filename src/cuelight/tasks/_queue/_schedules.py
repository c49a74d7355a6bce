"""Declarations of periodic work, and the resulting changes of the schedules in a store."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from cuelight._text import safe_repr
from cuelight.tasks._codec import record_of
from cuelight.tasks._functions._function import TaskFunction
from cuelight.tasks._functions._values import decode
from cuelight.tasks._queue._periodic import cron_spec, due_after_change, every_spec, is_same_period, next_due, shifted
from cuelight.tasks._stores._protocol import Schedule
from cuelight.tasks._task import Task

if TYPE_CHECKING:
    from cuelight.tasks._task import Record


class Periodic(msgspec.Struct, frozen=True):
    """Periodic work without a due time.

    Attributes:
        name: unique in the queue.
        spec: the period or the cron line.
        record: the task to enqueue.
        is_named: whether the name was given; otherwise it is the task type.
    """

    name: str
    spec: str
    record: Record
    is_named: bool


@dataclass(frozen=True, slots=True)
class Every:
    """A task that is enqueued once per period, for `TaskQueue.sync_schedules`.

    Attributes:
        seconds: the period.
        what: the task. A task function is called without arguments; for arguments, pass `function.task(...)`.
        name: unique in the queue; by default, the task type.

    Raises:
        ValueError: the period is invalid, or the task has a deadline or no type.
        TypeError: `what` is neither a task nor a task function.
    """

    seconds: float
    what: Task | TaskFunction[..., Any]
    name: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        self.periodic()

    def periodic(self) -> Periodic:
        return named(every_spec(self.seconds), self.what, self.name)


@dataclass(frozen=True, slots=True)
class Cron:
    """A task that is enqueued at the times of a cron line, for `TaskQueue.sync_schedules`.

    Attributes:
        line: "30 9 * * MON-FRI" (minute, hour, day, month, weekday), or "@daily". This needs the extra `cron`.
        what: see `Every`.
        tz: the time zone of the line: "Europe/Berlin".
        name: see `Every`.

    Raises:
        ValueError: the line is invalid, or the task has a deadline or no type.
        TypeError: `what` is neither a task nor a task function.
        ImportError: the extra `cron` is not installed.
    """

    line: str
    what: Task | TaskFunction[..., Any]
    tz: str = field(default="UTC", kw_only=True)
    name: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        self.periodic()

    def periodic(self) -> Periodic:
        return named(cron_spec(self.line, self.tz), self.what, self.name)


class ScheduleChanges(msgspec.Struct):
    """The changes that `sync_schedules` made, as names of schedules.

    Attributes:
        added: new schedules.
        changed: schedules with another time or another task than before.
        removed: schedules that were not in the list.
        unchanged: all other schedules.
    """

    added: list[str] = msgspec.field(default_factory=list[str])
    changed: list[str] = msgspec.field(default_factory=list[str])
    removed: list[str] = msgspec.field(default_factory=list[str])
    unchanged: list[str] = msgspec.field(default_factory=list[str])


def named(spec: str, what: Task | TaskFunction[..., Any], name: str | None) -> Periodic:
    """Periodic work with its name.

    Raises:
        ValueError: the task has a deadline, or there is neither a name nor a task type.
        TypeError: `what` is neither a task nor a task function.
    """
    given: Any = what
    if isinstance(given, TaskFunction):
        task: Task = given.task()  # pyright: ignore[reportUnknownMemberType]
    elif isinstance(given, Task):
        task = given
    else:
        raise TypeError(
            f"{safe_repr(given)} is not a task: give a function that is decorated with @task, `function.task(...)`, or "
            f"a Task"
        )
    known = task.task_type if name is None else name
    if not isinstance(known, str):  # pyright: ignore[reportUnnecessaryIsInstance] - untyped callers
        raise TypeError(f"name={safe_repr(known)}: give a string")
    if not known:
        raise ValueError("periodic work without a name: give the task a task_type, or the schedule a name")
    if task.deadline:
        raise ValueError(f"the periodic task {known!r} has a deadline, which passes once: give it a timeout instead")
    task_id, task.task_id = task.task_id, known  # the due time is appended for each task
    try:
        return Periodic(known, spec, record_of(task, ""), name is not None)
    finally:
        task.task_id = task_id


def declared(entries: Iterable[Every | Cron]) -> dict[str, Periodic]:
    """Periodic work by name.

    Raises:
        TypeError: an item is not a schedule.
        ValueError: two schedules have the same name, or one of them is invalid.
    """
    found: dict[str, Periodic] = {}
    for entry in entries:
        given: Any = entry
        if not isinstance(given, Every | Cron):
            raise TypeError(
                f"{safe_repr(given)} is not a schedule: give Every(seconds, task) or Cron(line, task), in a list"
            )
        periodic = given.periodic()
        if periodic.name in found:
            raise ValueError(
                f"two schedules are named {periodic.name!r}, the type of their tasks by default: give each a "
                f"different name, as in {type(given).__name__}(..., name='...')"
            )
        found[periodic.name] = periodic
    return found


def updated(periodic: Periodic, there: Schedule | None, now: float) -> Schedule:
    """The new schedule for a store, given the current one with the same name.

    Raises:
        ValueError: the current one is for other work, and the name was not given explicitly.
    """
    if there is None:
        spec = periodic.spec
        return Schedule(name=periodic.name, spec=spec, due=next_due(spec, now), record=periodic.record)
    if not periodic.is_named and not _is_same_work(periodic.record, there.record):
        raise ValueError(
            f"there is already a schedule {periodic.name!r}, of the task type {there.record.type!r} with other "
            f"arguments: give this one a different name, or pass name={periodic.name!r} to replace it"
        )
    # A store keeps the due time while the text of the spec is the same. The identifiers of the tasks continue
    # unchanged.
    spec = there.spec if is_same_period(periodic.spec, there.spec) else periodic.spec
    due = due_after_change(spec, now, there.spec, there.due)
    record = msgspec.structs.replace(periodic.record, id=there.record.id)
    return Schedule(name=periodic.name, spec=spec, due=due, record=record)


def is_changed(after: Schedule, before: Schedule) -> bool:
    """Whether a store must be updated. The creation time and the encoding of the arguments do not matter."""
    if after.spec != before.spec or not _is_same_work(after.record, before.record):
        return True
    ignored: dict[str, Any] = {"created": 0.0, "payload": b"", "nonce": ""}
    one = msgspec.structs.replace(after.record, **ignored)
    return one != msgspec.structs.replace(before.record, **ignored)


def moved_back(schedule: Schedule, now: float, mark: str) -> Schedule:
    """A schedule that is due again, if its due time was computed before the clock was set back.

    Its tasks get another name before the "@", because repeated times would otherwise result in identifiers that are
    already used.

    Args:
        schedule: the schedule.
        now: the current time, in seconds since the epoch.
        mark: characters that no previous version of the schedule has had.
    """
    record = msgspec.structs.replace(schedule.record, id=f"{schedule.name}~{mark}")
    due = next_due(schedule.spec, now)
    return msgspec.structs.replace(schedule, spec=shifted(schedule.spec, mark), due=due, record=record)


def _is_same_work(one: Record, other: Record) -> bool:
    """Whether two records call the same function with the same arguments."""
    if one.type != other.type:
        return False
    if one.payload == other.payload:
        return True
    try:
        return bool(decode(one.payload) == decode(other.payload))
    except ValueError:  # the record in the store is damaged
        return False
