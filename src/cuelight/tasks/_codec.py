"""Conversion between `Task`, which users see, and `Record`, which a store keeps.

Invariant: a record is only made from a valid task. Errors are raised to the producer, never in a store or a worker.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import TYPE_CHECKING, Any

from cuelight._text import safe_repr
from cuelight.pools import TaskStatus
from cuelight.tasks._functions._values import decode, encode
from cuelight.tasks._stores._protocol import Lease
from cuelight.tasks._task import HEAVIEST, LIGHTEST, Limit, Record, Task, TaskPriority

if TYPE_CHECKING:
    from cuelight.tasks._stores._protocol import Snapshot

_PRIORITIES = tuple(TaskPriority)
_LAST = len(_PRIORITIES) - 1


def record_of(task: Task, nonce: str) -> Record:
    """The record of a new task. The counts and the status of `task` are not copied.

    Args:
        task: the task.
        nonce: identifies this call of `enqueue`.

    Raises:
        ValueError: a field has an invalid value; the message names the field, its value and the accepted values.
        TypeError: a field has the wrong type, or the payload cannot be encoded.
    """
    deadline = task.deadline
    limits = task.limits
    if limits.__class__ is not tuple:
        limits = limits_of(limits)
    if not _is_usual(task):
        _check(task, limits)
    return Record(
        id=task.task_id,
        type=task.task_type,
        nonce=nonce,
        payload=encode(task.payload, "payload"),
        priority=int(task.priority),
        deadline=float(deadline) if deadline else inf,
        delay=float(task.delay),
        created=float(task.created_at),
        max_retries=task.max_retries,
        max_timeouts=task.max_timeouts,
        max_crashes=task.max_crashes,
        timeout=None if task.timeout is None else float(task.timeout),
        unique=task.unique,
        unique_for=None if task.unique_for is None else float(task.unique_for),
        limits=limits,
        result_ttl=float(task.result_ttl),
        tenant=task.tenant,
        weight=float(task.tenant_weight),
    )


def task_of(kept: Lease | Snapshot) -> Task:
    """The task of a lease or a snapshot. Raises `ValueError` if its payload was not made by `encode`."""
    record = kept.record
    state, history = (TaskStatus.IN_FLIGHT, ()) if isinstance(kept, Lease) else (TaskStatus(kept.state), kept.history)
    return Task(
        task_id=record.id,
        task_type=record.type,
        payload=decode(record.payload),
        priority=_PRIORITIES[min(max(record.priority, 0), _LAST)],  # a later version may have more priorities
        deadline=None if record.deadline == inf else record.deadline,
        max_retries=record.max_retries,
        retry_count=kept.counts.errors,
        status=state,
        created_at=record.created,
        delay=record.delay,
        timeout=record.timeout,
        max_timeouts=record.max_timeouts,
        max_crashes=record.max_crashes,
        unique=record.unique,
        unique_for=record.unique_for,
        limits=record.limits,
        result_ttl=record.result_ttl,
        tenant=record.tenant,
        tenant_weight=record.weight,
        counts=kept.counts,
        history=history,
        checkpoint=None if kept.checkpoint is None else decode(kept.checkpoint),
    )


def limits_of(limits: Any) -> tuple[Any, ...]:
    """The limits as a tuple. Raises `TypeError` if they are not iterable."""
    if isinstance(limits, Limit):
        return (limits,)
    if not isinstance(limits, Iterable) or isinstance(limits, str):
        raise TypeError(f"limits={safe_repr(limits)}: give Limit objects, such as (Limit('openai', max_concurrent=5),)")
    return tuple(limits)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def _is_usual(task: Task) -> bool:
    """Whether the task is certainly valid. Fast, for tasks that do not use the less common fields."""
    return (
        task.task_id.__class__ is str
        and task.task_type.__class__ is str
        and task.max_retries.__class__ is task.max_timeouts.__class__ is task.max_crashes.__class__ is int
        and task.created_at.__class__ is task.result_ttl.__class__ is float
        and task.priority in _PRIORITIES
        and min(task.max_retries, task.max_timeouts, task.max_crashes) >= 0
        and task.result_ttl >= 0
        and task.created_at > 0
        and task.task_id != ""
        and task.delay == 0
        and task.limits == ()
        and task.deadline is None
        and task.timeout is None
        and task.unique is None
        and task.unique_for is None
        and task.tenant is None
        and task.tenant_weight == 1.0
    )


def _check(task: Task, limits: tuple[Limit, ...]) -> None:
    """Check every field.

    Raises:
        ValueError: a field has an invalid value.
        TypeError: a field has the wrong type.
    """
    _check_names(task)
    if task.priority not in _PRIORITIES:
        raise ValueError(
            f"priority={safe_repr(task.priority)}: give a TaskPriority, or 0 (most urgent) to {_PRIORITIES[-1]:d}"
        )
    for name in ("max_retries", "max_timeouts", "max_crashes"):
        times = getattr(task, name)
        if not isinstance(times, int) or isinstance(times, bool):
            raise TypeError(f"{name}={safe_repr(times)}: give a whole number")
        if times < 0:
            raise ValueError(f"{name}={safe_repr(times)}: give 0 or more")
    _check_times(task)
    _check_weight(task)
    for limit in limits:
        if not isinstance(limit, Limit):  # pyright: ignore[reportUnnecessaryIsInstance] - untyped callers
            raise TypeError(
                f"limits has {safe_repr(limit)}: give Limit objects, such as Limit('openai', max_concurrent=5)"
            )
    keys = [limit.key for limit in limits]
    if len(set(keys)) < len(keys):
        raise ValueError(f"limits have the same key twice ({', '.join(keys)}): give each key once")


def _check_names(task: Task) -> None:
    names: dict[str, Any] = {
        "task_id": task.task_id,
        "task_type": task.task_type,
        "unique": task.unique,
        "tenant": task.tenant,
    }
    for name, value in names.items():
        if not isinstance(value, str) and not (name in ("unique", "tenant") and value is None):
            raise TypeError(f"{name}={safe_repr(value)}: give a string")
        if value == "" and name != "task_type":
            raise ValueError(f"{name}='': give it some characters, or leave it out")


def _check_times(task: Task) -> None:
    """Check the fields that are times. NaN fails every comparison, so all fields reject it."""
    times: dict[str, tuple[Any, float, str]] = {
        "deadline": (task.deadline, 0, "seconds since the epoch (time.time() + 60), or None for never"),
        "delay": (task.delay, 0, "seconds, 0 or more"),
        "created_at": (task.created_at, -inf, "seconds since the epoch"),
        "result_ttl": (task.result_ttl, 0, "seconds, 0 or more"),
        "timeout": (task.timeout, 0, "more than 0 seconds, or None for as long as it takes"),
        "unique_for": (task.unique_for, 0, "more than 0 seconds, or None until it is finished"),
    }
    for name, (value, least, out) in times.items():
        optional, positive = name in {"deadline", "timeout", "unique_for"}, name in {"timeout", "unique_for"}
        if value is None and optional:
            continue
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise TypeError(f"{name}={safe_repr(value)}: give {out}")
        endless = value == inf and name in {"deadline", "result_ttl"}
        if not least <= value <= inf or (value == inf and not endless) or (positive and value == 0):
            raise ValueError(f"{name}={safe_repr(value)}: give {out}")
    if task.unique_for is not None and task.unique is None:
        raise ValueError(f"unique_for={safe_repr(task.unique_for)} without unique: give the unique key")


def _check_weight(task: Task) -> None:
    weight: Any = task.tenant_weight
    if not isinstance(weight, int | float) or isinstance(weight, bool):
        raise TypeError(f"tenant_weight={safe_repr(weight)}: give a number, {LIGHTEST:g} to {HEAVIEST:g}")
    if not LIGHTEST <= weight <= HEAVIEST:
        raise ValueError(f"tenant_weight={safe_repr(weight)}: give {LIGHTEST:g} to {HEAVIEST:g}")
    if weight != 1 and task.tenant is None:
        raise ValueError(f"tenant_weight={safe_repr(weight)} without tenant: give the tenant that has this weight")
