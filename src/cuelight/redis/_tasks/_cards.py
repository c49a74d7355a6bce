"""Between what a store gets and gives, and what it keeps on the server.

A task is kept in two parts. Its row is an array that scripts read and write, see `book.lua`. Its record is bytes that
only we read: the length of a head, the head (msgpack), and the payload, which can be replaced by itself.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from math import inf
from typing import Any, Final

import msgspec

from cuelight.tasks import Attempt, Counts, Lease, Limit, Record, Schedule, Snapshot
from cuelight.tasks._rows import STATES

__all__ = ["Unreadable", "card_of", "leases_of", "limit_card", "schedule_of", "snapshots_of", "tag_of"]

_LENGTH: Final = struct.Struct(">I")
_EXACT: Final = 2**53
"""Scripts count in doubles."""
STORY: Final = 1
CHECKPOINT: Final = 2
PROGRESS: Final = 4
RESULT: Final = 8


class _Row(msgspec.Struct, array_like=True):
    """The names are those of `book.lua`. What a newer version has put behind them is ignored."""

    id: str
    seq: int
    state: int
    epoch: int
    due: float
    worker: str
    settled: int
    step: int
    ended: float
    reason: str
    cancelling: int
    lane: int
    has: int
    type: str
    nonce: str
    priority: int
    deadline: float
    retries: int
    timeouts: int
    crashes: int
    unique: str | bool
    unique_for: float
    ttl: float
    limits: Any
    created: float
    turn: float = 0.0
    tenant: str | bool = False
    weight: float = 1.0


class _Story(msgspec.Struct, array_like=True):
    errors: int = 0
    timeouts: int = 0
    crashes: int = 0
    rate_limited: int = 0
    released: int = 0
    history: tuple[Attempt, ...] = ()


_encode: Final = msgspec.msgpack.Encoder().encode
_decode_record: Final = msgspec.msgpack.Decoder(Record).decode
_decode_row: Final = msgspec.msgpack.Decoder(_Row).decode
_decode_story: Final = msgspec.msgpack.Decoder(_Story).decode


class Unreadable(Exception):
    """The record of a task cannot be read.

    Attributes:
        id: the task.
        epoch: of its last claim.
    """

    def __init__(self, task_id: str, epoch: int) -> None:
        super().__init__(f"the record of {task_id!r} in the store cannot be read")
        self.id, self.epoch = task_id, epoch


def tag_of(prefix: str, queue: str) -> str:
    """What all keys of a queue begin with: a hash tag, which no name can end before its time."""
    return (
        "{" + ":".join(re.sub(r"[%:{}]", lambda found: f"%{ord(found[0]):02X}", name) for name in (prefix, queue)) + "}"
    )


def limit_card(limit: Limit) -> list[Any]:
    """A limit as scripts have it."""
    return [
        limit.key,
        limit.max_concurrent or False,
        limit.rate or False,
        limit.per,
        limit.burst or False,
        limit.cost,
    ]


def card_of(record: Record, nonce: str) -> tuple[msgspec.Raw, bytes]:
    """The row of a new task (msgpack), and its record.

    Args:
        record: what a producer gave, checked.
        nonce: by which the same enqueue is known when it comes again.

    Raises:
        ValueError: a text in it is no Unicode, or a number is too large.
    """
    if not -_EXACT < record.priority < _EXACT:
        raise ValueError(f"Record({record.id!r}, priority={record.priority!r}): give a number below 2**53")
    row = [
        *(record.id, 0, 0, 0, record.due, "", 0, 0, record.delay, "", 0, 0, 0, record.type, nonce, record.priority),
        *(record.deadline, record.max_retries, record.max_timeouts, record.max_crashes),
        False if record.unique is None else record.unique,
        -1.0 if record.unique_for is None else record.unique_for,
        record.result_ttl,
        [limit_card(limit) for limit in record.limits] or False,
        record.created,
        *(0, False if record.tenant is None else record.tenant, record.weight),
    ]
    try:
        card = msgspec.Raw(_encode(row))
        head = _encode(msgspec.structs.replace(record, id="", payload=b"", created=0.0))
    except (ValueError, OverflowError) as error:
        raise ValueError(f"Record({record.id!r}) cannot be stored: {error}") from error
    return card, b"".join((_LENGTH.pack(len(head)), head, record.payload))


def _record_of(row: _Row, blob: bytes) -> Record:
    try:
        end = _LENGTH.size + _LENGTH.unpack_from(blob)[0]
        record = _decode_record(blob[_LENGTH.size : end])
    except (msgspec.MsgspecError, struct.error) as error:
        raise Unreadable(row.id, row.epoch) from error
    record.id, record.created, record.deadline, record.payload = row.id, row.created, row.deadline, blob[end:]
    return record


def _counts(story: _Story) -> Counts:
    return Counts(story.errors, story.timeouts, story.crashes, story.rate_limited, story.released)


def leases_of(parts: Sequence[bytes]) -> Iterator[Lease | Unreadable]:
    """The leases in the reply to a claim, each as its row, record, story and checkpoint."""
    for at in range(0, len(parts), 4):
        row = _decode_row(parts[at])
        try:
            record = _record_of(row, parts[at + 1])
        except Unreadable as error:
            yield error
            continue
        counts = _counts(_decode_story(parts[at + 2])) if row.has & STORY else Counts()
        yield Lease(record, row.epoch, row.due, counts, parts[at + 3] if row.has & CHECKPOINT else None)


def snapshots_of(parts: Sequence[bytes]) -> Iterator[Snapshot]:
    """The tasks in a reply, each as its row, record, story, checkpoint, progress and result."""
    for at in range(0, len(parts), 6):
        row = _decode_row(parts[at])
        story = _decode_story(parts[at + 2]) if row.has & STORY else _Story()
        try:
            record = _record_of(row, parts[at + 1])
        except Unreadable:  # people should see that there is something
            record = Record(id=row.id, type=row.type, created=row.created, payload=parts[at + 1])
        yield Snapshot(
            record=record,
            state=STATES[row.state],
            sequence=row.seq,
            epoch=row.epoch,
            worker=row.worker,
            due=0.0 if row.due == inf else row.due,
            reason=row.reason,
            ended=row.ended,
            cancelling=bool(row.cancelling),
            counts=_counts(story),
            history=story.history,
            checkpoint=parts[at + 3] if row.has & CHECKPOINT else None,
            progress=parts[at + 4] if row.has & PROGRESS else None,
            result=parts[at + 5] if row.has & RESULT else None,
        )


def schedule_of(name: str, spec: str, due: float, row: bytes, blob: bytes) -> Schedule:
    """Periodic work; the nonce of its record is in the row alone, for what it makes has none."""
    card = _decode_row(row)
    record = _record_of(card, blob)
    record.nonce = card.nonce
    return Schedule(name=name, spec=spec, due=float(due), record=record)
