"""Checks of the arguments of store methods, made before anything is written. All stores use the same messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf, isfinite
from typing import Final

from msgspec.structs import replace

from cuelight._text import safe_repr
from cuelight.errors import PoolClosed
from cuelight.tasks._stores._protocol import Claim, Finish, Query, Schedule
from cuelight.tasks._stores._rows import STATES
from cuelight.tasks._task import HEAVIEST, LIGHTEST, Limit, Record

EXACT: Final = 2**53
"""Integers below this are exact in every store: one of them stores numbers as doubles."""

FAR: Final = 1e13
"""Seconds since the epoch (about 300,000 years). Later times, from a clock or a caller, are rejected as invalid."""


KINDS: Final = (
    "done",
    "error",
    "timeout",
    "crash",
    "rate_limited",
    "released",
    "rejected",
    "cancelled",
    "unknown",
    "undecodable",
)
"""Scripts and files use their positions, so new kinds must be appended."""


def check_record(record: Record) -> None:
    """Raise `ValueError` for a record that no store can keep.

    The causes are: no id, two limits with the same key, NaN as a time, a number that is out of range, or invalid
    Unicode.
    """
    if not (type(record.id) is type(record.type) is str) or record.unique is not None or record.limits:
        _use_plain_texts(record)
    if not record.id or "\0" in record.id:
        raise ValueError(f"Record(id={safe_repr(record.id)}): give the task an id, without NUL characters")
    if not (record.id.isascii() and record.type.isascii() and record.nonce.isascii()):
        check_text("Record", id=record.id, type=record.type, nonce=record.nonce)
    if record.unique is not None or record.tenant is not None:
        check_text(f"Record({safe_repr(record.id)})", unique=record.unique or "", tenant=record.tenant or "")
    if not (-EXACT < record.priority < EXACT and record.max_retries < EXACT):
        numbers = f"priority={record.priority!r}, max_retries={record.max_retries!r}"
        raise ValueError(f"Record({safe_repr(record.id)}, {numbers}): give numbers below 2**53")
    if len(record.limits) > 1:
        keys = [limit.key for limit in record.limits]
        if len(keys) != len(set(keys)):
            raise ValueError(f"Record({safe_repr(record.id)}, limits={keys}): give each limit a different key")
    for limit in record.limits:
        check_text(f"Record({safe_repr(record.id)}, limits=...)", key=limit.key)
    if not (record.deadline == record.deadline and record.due == record.due and record.delay == record.delay):
        raise ValueError(f"Record({safe_repr(record.id)}): deadline, due and delay must be numbers, not NaN")
    if not LIGHTEST <= record.weight <= HEAVIEST or (record.tenant is None and record.weight != 1):
        way_out = "1 without a tenant" if record.tenant is None else f"{LIGHTEST:g} to {HEAVIEST:g}"
        raise ValueError(
            f"Record({safe_repr(record.id)}, tenant={record.tenant!r}, weight={record.weight!r}): give {way_out}"
        )
    if not record.result_ttl >= 0:
        raise ValueError(f"Record({safe_repr(record.id)}, result_ttl={record.result_ttl!r}): give seconds, 0 or more")


def _use_plain_texts(record: Record) -> None:
    """Convert instances of `str` subclasses to `str`: a subclass may redefine hashing and comparison.

    Raises:
        TypeError: one of the values is not a string.
    """
    record.id, record.type = _plain("id", record.id), _plain("type", record.type)
    if record.unique is not None:
        record.unique = _plain("unique", record.unique)
    if any(type(limit.key) is not str for limit in record.limits):
        record.limits = tuple(replace(limit, key=_plain("key", limit.key)) for limit in record.limits)


def _plain(name: str, text: str) -> str:
    if type(text) is str:
        return text
    if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance] - untyped callers
        raise TypeError(f"Record({name}={safe_repr(text)}): give text")
    return str.__str__(text)


def check_text(where: str, **texts: str) -> None:
    """Raise `TypeError` for a value that is not a string, and `ValueError` for a string with a lone surrogate."""
    for name, text in texts.items():
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance] - untyped callers
            raise TypeError(f"{where}: {name}={safe_repr(text)}: give text")
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"{where}: {name}={safe_repr(text)} is no Unicode text: {error.reason}") from None


def check_ids(ids: Sequence[str]) -> None:
    """Raise an error if `ids` is not a sequence of task identifiers.

    Raises:
        TypeError: `ids` is a single string, or one of the items is not a string.
        ValueError: one of the identifiers is not valid Unicode.
    """
    if isinstance(ids, str):
        raise TypeError(f"{safe_repr(ids)}: give a list of identifiers, such as [{safe_repr(ids)}]")
    for task_id in ids:
        if not isinstance(task_id, str):  # pyright: ignore[reportUnnecessaryIsInstance] - untyped callers
            raise TypeError(f"{safe_repr(task_id)} is not a task identifier: give strings")
        check_text("task", id=task_id)


def ids_given(ids: Iterable[str]) -> list[str]:
    """Return the identifiers as a list without duplicates.

    Raises:
        TypeError: `ids` is not iterable, or one of the items is not a string.
    """
    try:
        given = list(ids)
    except TypeError:
        raise TypeError(f"{safe_repr(ids)}: give the identifier of a task, or a list of them") from None
    check_ids(given)
    return list(dict.fromkeys(given))


def check_finish(finish: Finish) -> None:
    """Raise `ValueError` for an unknown kind, or for a delay that is negative or not finite."""
    if finish.kind not in KINDS:
        raise ValueError(f"Finish({finish.id!r}, kind={finish.kind!r}): the kinds are {', '.join(KINDS)}")
    if not (finish.delay >= 0 and isfinite(finish.delay)):
        raise ValueError(f"Finish({finish.id!r}, delay={finish.delay!r}): give seconds, 0 or more")


def check_exchange(finishes: Sequence[Finish], claim: Claim | None) -> None:
    """Raise `ValueError` for an unknown kind of finish, an invalid delay, or a lease of 0 seconds or less."""
    for finish in finishes:
        check_finish(finish)
        attempt = finish.attempt
        if attempt is not None:
            where = f"Finish({safe_repr(finish.id)}, attempt=...)"
            check_text(where, worker=attempt.worker, error=attempt.error, traceback=attempt.traceback)
    if claim is not None and not claim.lease > 0:
        raise ValueError(f"Claim(lease={claim.lease!r}): give seconds, more than 0")


def check_beat(lease: float | None) -> None:
    """Raise `ValueError` if the lease is not more than 0 seconds."""
    if lease is not None and not lease > 0:
        raise ValueError(f"beat(lease={lease!r}): give seconds, more than 0, or None to look only")


def check_set_limit(limit: Limit | None, key: str) -> None:
    """Raise `ValueError` if the key of the limit is not `key`, or if `key` is not valid Unicode."""
    check_text("set_limit", key=key)
    if limit is not None and limit.key != key:
        raise ValueError(f"set_limit({limit!r}, {key!r}): the limit must have this key")


def check_pause(key: str, seconds: float) -> None:
    """Raise `ValueError` if `seconds` is negative or not finite, or if the key is not valid Unicode."""
    check_text("pause_limit", key=key)
    if not 0 <= seconds < inf:
        raise ValueError(f"pause_limit({key!r}, {seconds!r}): give seconds, 0 or more")


def check_schedule(schedule: Schedule) -> None:
    """Raise `ValueError` for a schedule that no store can keep, because of its name, its record or its due time."""
    check_text("Schedule", name=schedule.name, spec=schedule.spec)
    if not -FAR < schedule.due < FAR:
        raise ValueError(f"Schedule({schedule.name!r}, due={schedule.due!r}): give seconds since the epoch")
    check_record(schedule.record)


def check_control(paused: bool | None, closed: bool | None) -> None:
    """Raise `TypeError` for a switch that is not True, False or None."""
    for name, value in {"paused": paused, "closed": closed}.items():
        if not (value is None or value is True or value is False):
            raise TypeError(f"control({name}={safe_repr(value)}): give True, False or None")


def check_query(query: Query) -> None:
    """Raise `ValueError` if the query asks for an unknown state."""
    if query.state is not None and query.state not in STATES:
        raise ValueError(f"Query(state={query.state!r}): the states are {', '.join(STATES)}")


def queue_closed() -> PoolClosed:
    return PoolClosed("the queue is closed to new tasks: open it again with TaskQueue.reopen()")
