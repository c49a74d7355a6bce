"""What every store refuses, whatever keeps its rows: before anything is written, and in the same words."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from cuelight.errors import PoolClosed
from cuelight.tasks._rows import STATES
from cuelight.tasks._store import Claim, Finish, Query, Record
from cuelight.tasks._task import HEAVIEST, LIGHTEST, Limit
from cuelight.tasks._transitions import check_finish

__all__ = [
    "check_beat",
    "check_exchange",
    "check_pause",
    "check_query",
    "check_record",
    "check_set_limit",
    "queue_closed",
]


def check_record(record: Record) -> None:
    """Refuse a record that no store can keep.

    Raises:
        ValueError: it has no id, two limits with one key, or a time that is no number.
    """
    if not record.id or "\0" in record.id:
        raise ValueError(f"Record(id={record.id!r}): give the task an id, without NUL characters")
    if len(record.limits) > 1:
        keys = [limit.key for limit in record.limits]
        if len(keys) != len(set(keys)):
            raise ValueError(f"Record({record.id!r}, limits={keys}): give each limit a key of its own")
    if not (record.deadline == record.deadline and record.due == record.due and record.delay == record.delay):
        raise ValueError(f"Record({record.id!r}): deadline, due and delay must be numbers, not NaN")
    if not LIGHTEST <= record.weight <= HEAVIEST or (record.tenant is None and record.weight != 1):
        way_out = "1 without a tenant" if record.tenant is None else f"{LIGHTEST:g} to {HEAVIEST:g}"
        raise ValueError(f"Record({record.id!r}, tenant={record.tenant!r}, weight={record.weight!r}): give {way_out}")
    if not record.result_ttl >= 0:
        raise ValueError(f"Record({record.id!r}, result_ttl={record.result_ttl!r}): give seconds, 0 or more")


def check_exchange(finishes: Sequence[Finish], claim: Claim | None) -> None:
    """Refuse finishes and claims that mean nothing.

    Raises:
        ValueError: the kind or the delay of a finish, or the length of a lease, is none.
    """
    for finish in finishes:
        check_finish(finish)
    if claim is not None and not claim.lease > 0:
        raise ValueError(f"Claim(lease={claim.lease!r}): give seconds, more than 0")


def check_beat(lease: float | None) -> None:
    """Refuse a lease that has run out before it begins.

    Raises:
        ValueError: it is so.
    """
    if lease is not None and not lease > 0:
        raise ValueError(f"beat(lease={lease!r}): give seconds, more than 0, or None to look only")


def check_set_limit(limit: Limit | None, key: str) -> None:
    """Refuse to override a limit with one of another key.

    Raises:
        ValueError: it is so.
    """
    if limit is not None and limit.key != key:
        raise ValueError(f"set_limit({limit!r}, {key!r}): the limit must have this key")


def check_pause(key: str, seconds: float) -> None:
    """Refuse a pause that has no length.

    Raises:
        ValueError: it is so.
    """
    if not 0 <= seconds < inf:
        raise ValueError(f"pause_limit({key!r}, {seconds!r}): give seconds, 0 or more")


def check_query(query: Query) -> None:
    """Refuse to look for a state that no task can have.

    Raises:
        ValueError: it is so.
    """
    if query.state is not None and query.state not in STATES:
        raise ValueError(f"Query(state={query.state!r}): the states are {', '.join(STATES)}")


def queue_closed() -> PoolClosed:
    """The error of a queue that takes no tasks."""
    return PoolClosed("the queue is closed to new tasks: open it again with control(closed=False)")
