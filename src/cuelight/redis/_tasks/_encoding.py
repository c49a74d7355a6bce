"""Converts between the values of the task store interface and the data on the server.

A task has two parts on the server. Its row is an array that scripts read and write, see `keys.lua`. Its record is bytes
that only this module reads: the length of a head, the head (msgpack), and the payload, which can be replaced alone.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from math import inf
from typing import Any, Final

import msgspec

from cuelight._text import safe_str
from cuelight.tasks import Attempt, Counts, Lease, Limit, Record, Schedule, Snapshot
from cuelight.tasks._stores._rows import DEAD_LETTER, STATES

_LENGTH: Final = struct.Struct(">I")
_EXACT: Final = 2**53
"""Scripts count in doubles: whole numbers below this are exact."""
ATTEMPTS: Final = 1
CHECKPOINT: Final = 2
PROGRESS: Final = 4
RESULT: Final = 8


class _TaskRow(msgspec.Struct, array_like=True):
    """The fields are named as in `keys.lua`. Fields that a newer version has appended are ignored."""

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
    limits: msgspec.Raw
    created: float
    turn: float = 0.0
    tenant: str | bool = False
    weight: float = 1.0


class _StoredAttempts(msgspec.Struct, array_like=True):
    errors: int = 0
    timeouts: int = 0
    crashes: int = 0
    rate_limited: int = 0
    released: int = 0
    history: tuple[Attempt, ...] = ()


_encode: Final = msgspec.msgpack.Encoder().encode
_decode_record: Final = msgspec.msgpack.Decoder(Record).decode
_decode_row: Final = msgspec.msgpack.Decoder(_TaskRow).decode
_decode_attempts: Final = msgspec.msgpack.Decoder(_StoredAttempts).decode


_BROKEN: Final = (msgspec.MsgspecError, struct.error, ValueError, OverflowError, RecursionError, IndexError)
"""The errors that decoders raise for damaged bytes, including deep nesting and text that is not valid Unicode."""

UNDECODABLE: Final = "undecodable"


class CorruptTask(Exception):
    """A part of a task cannot be read.

    Attributes:
        part: the damaged part: "row", "record" or "story" (the data that attempts have left).
        row: the row of the task, as it is stored.
        why: a sentence without the name of the task.
    """

    def __init__(self, part: str, row: bytes, error: Exception) -> None:
        what = "what its attempts left behind" if part == "story" else f"its {part} in the store"
        self.part, self.row, self.why = part, row, f"{what} cannot be read ({safe_str(error, 200)})"
        super().__init__(self.why)


def tag_of(prefix: str, queue: str) -> str:
    """Return the common prefix of all keys of a queue: a hash tag, in which names are escaped so that they cannot end
    it.
    """
    return (
        "{" + ":".join(re.sub(r"[%:{}]", lambda found: f"%{ord(found[0]):02X}", name) for name in (prefix, queue)) + "}"
    )


def encode_limit(limit: Limit) -> list[Any]:
    """Convert a limit to the array that scripts use."""
    return [
        limit.key,
        limit.max_concurrent or False,
        limit.rate or False,
        limit.per,
        limit.burst or False,
        limit.cost,
    ]


def encode_task(record: Record, nonce: str) -> tuple[msgspec.Raw, bytes]:
    """Return the row of a new task (msgpack), and its record.

    Args:
        record: the record of a producer, already checked.
        nonce: identifies the enqueue, so that it is recognised when it is sent again.

    Raises:
        ValueError: a text in it is not valid Unicode, or a number is too large.
    """
    if not -_EXACT < record.priority < _EXACT:
        raise ValueError(f"Record({record.id!r}, priority={record.priority!r}): give a number below 2**53")
    row = [
        *(record.id, 0, 0, 0, record.due, "", 0, 0, record.delay, "", 0, 0, 0, record.type, nonce, record.priority),
        *(record.deadline, record.max_retries, record.max_timeouts, record.max_crashes),
        False if record.unique is None else record.unique,
        -1.0 if record.unique_for is None else record.unique_for,
        record.result_ttl,
        [encode_limit(limit) for limit in record.limits] or False,
        record.created,
        *(0, False if record.tenant is None else record.tenant, record.weight),
    ]
    try:
        task_row = msgspec.Raw(_encode(row))
        head = _encode(msgspec.structs.replace(record, id="", payload=b"", created=0.0))
    except (ValueError, OverflowError) as error:
        raise ValueError(f"Record({record.id!r}) cannot be stored: {error}") from error
    return task_row, b"".join((_LENGTH.pack(len(head)), head, record.payload))


def _row_of(raw: bytes) -> _TaskRow:
    try:
        return _decode_row(raw)
    except _BROKEN as error:
        raise CorruptTask("row", raw, error) from error


def _record_of(row: _TaskRow, raw: bytes, blob: bytes) -> Record:
    try:
        end = _LENGTH.size + _LENGTH.unpack_from(blob)[0]
        record = _decode_record(blob[_LENGTH.size : end])
    except _BROKEN as error:
        raise CorruptTask("record", raw, error) from error
    if record.type != row.type:
        raise CorruptTask("row", raw, ValueError(f"its type is {row.type!r}, and that of its record {record.type!r}"))
    record.id, record.created, record.deadline, record.payload = row.id, row.created, row.deadline, blob[end:]
    return record


def _attempts_of(row: _TaskRow, raw: bytes, attempts: bytes) -> _StoredAttempts:
    if not row.has & ATTEMPTS:
        return _StoredAttempts()
    try:
        return _decode_attempts(attempts)
    except _BROKEN as error:
        raise CorruptTask("story", raw, error) from error


def _counts(attempts: _StoredAttempts) -> Counts:
    return Counts(attempts.errors, attempts.timeouts, attempts.crashes, attempts.rate_limited, attempts.released)


def leases_of(parts: Sequence[bytes]) -> Iterator[Lease | CorruptTask]:
    """Decode the leases in the reply to a claim, each from its row, record, story and checkpoint."""
    for at in range(0, len(parts) - 3, 4):
        raw = parts[at]
        try:
            row = _row_of(raw)
            record, attempts = _record_of(row, raw, parts[at + 1]), _attempts_of(row, raw, parts[at + 2])
        except CorruptTask as error:
            yield error
            continue
        yield Lease(record, row.epoch, row.due, _counts(attempts), parts[at + 3] if row.has & CHECKPOINT else None)


def snapshots_of(parts: Sequence[bytes]) -> Iterator[Snapshot | CorruptTask]:
    """Decode the tasks in a reply, each from its row, record, story, checkpoint, progress and result.

    A dead letter is shown with its readable parts; its reason says that the rest cannot be read.
    """
    for at in range(0, len(parts) - 5, 6):
        try:
            yield _snapshot_of(parts[at : at + 6])
        except CorruptTask as error:
            yield error


def _snapshot_of(parts: Sequence[bytes]) -> Snapshot:
    raw, blob = parts[:2]
    row = _row_of(raw)
    dead = row.state == DEAD_LETTER
    try:
        record = _record_of(row, raw, blob)
    except CorruptTask:
        if not dead:
            raise
        record = Record(id=row.id, type=row.type, created=row.created, payload=blob)
    try:
        attempts = _attempts_of(row, raw, parts[2])
    except CorruptTask:
        if not dead:
            raise
        attempts = _StoredAttempts()
    if not 0 <= row.state < len(STATES):
        raise CorruptTask("row", raw, ValueError(f"{row.state} is no state"))
    state = STATES[row.state]
    return Snapshot(
        record=record,
        state=state,
        sequence=row.seq,
        epoch=row.epoch,
        worker=row.worker,
        due=0.0 if row.due == inf else row.due,
        reason=row.reason,
        ended=row.ended,
        cancelling=bool(row.cancelling),
        counts=_counts(attempts),
        history=attempts.history,
        checkpoint=parts[3] if row.has & CHECKPOINT else None,
        progress=parts[4] if row.has & PROGRESS else None,
        result=parts[5] if row.has & RESULT else None,
    )


def snapshot_of_corrupt(corrupt: CorruptTask) -> Snapshot:
    """Return the snapshot of an unreadable task that is not a dead letter yet."""
    record = Record(id="", type="", payload=corrupt.row)
    return Snapshot(record=record, state="dead_letter", reason=UNDECODABLE, sequence=0, epoch=0, counts=Counts())


def schedule_of(name: str, spec: str | bool, due: float, row: bytes, blob: bytes) -> Schedule:
    """Decode a schedule. The nonce of its record is only in its row, because the tasks that it creates have none.

    An unreadable schedule is returned with the spec "undecodable", an infinite due time, and all its bytes as the
    payload.
    """
    try:
        task_row = _row_of(row)
        record = _record_of(task_row, row, blob)
    except CorruptTask:
        return Schedule(name=name, spec=UNDECODABLE, due=inf, record=Record(id=name, type="", payload=blob))
    record.nonce = task_row.nonce
    return Schedule(name=name, spec=str(spec), due=float(due), record=record)
