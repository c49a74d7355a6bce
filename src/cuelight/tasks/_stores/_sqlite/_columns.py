"""Conversion between columns of a SQLite file and rows, even if another program or a person has written the file.

Invariants:

1. A partly unreadable row is returned with its `damage`. Other rows are not affected.
2. Exceptions of decoders do not leave this module.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import inf
from typing import Any, Final

import msgspec

from cuelight._text import safe_str, type_name
from cuelight.tasks._stores._checks import EXACT, FAR, KINDS
from cuelight.tasks._stores._protocol import Schedule
from cuelight.tasks._stores._rows import DEAD_LETTER, IN_FLIGHT, SCHEDULED, STATES, AttemptHistory, Damage, Row
from cuelight.tasks._task import Limit, Record

LATEST: Final = 4 * FAR
"""Seconds since the epoch that no time of a task reaches: times that callers pass are below `FAR`."""
UNDECODABLE: Final = "undecodable"
_BROKEN: Final = (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError)
_DIGITS: Final = 19
_EARLIEST: Final = -LATEST
_STEPS: Final = len(KINDS) * len(STATES)

_decode_record: Final = msgspec.msgpack.Decoder(Record).decode
_decode_attempts: Final = msgspec.msgpack.Decoder(AttemptHistory).decode
_decode_limit: Final = msgspec.msgpack.Decoder(Limit).decode
_decode_keys: Final = msgspec.json.Decoder(tuple[str, ...]).decode
_decode_leases: Final = msgspec.msgpack.Decoder(list[tuple[int, int]]).decode
_decode_lines: Final = msgspec.json.Decoder(dict[str, float]).decode


class InvalidText(str):
    """A text in the file that is not valid Unicode, in a printable form.

    Attributes:
        raw: the bytes in the file.
    """

    __slots__ = ("raw",)
    raw: bytes


def _encodable(value: Any) -> str:
    """Encode a `InvalidText`, which the encoder does not support."""
    if isinstance(value, InvalidText):
        return str(value)
    raise TypeError(f"a {type_name(value)} cannot be encoded")


encode: Final = msgspec.msgpack.Encoder(enc_hook=_encodable).encode
_SOUND: Final = encode(Record(id="", type=""))


def readable_text(raw: bytes) -> str:
    """Decode a text. Used as the text factory of a connection once invalid Unicode was found in the file."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        text = InvalidText(raw.decode("utf-8", "backslashreplace"))
        text.raw = raw
        return text


def json_of(values: Sequence[Any]) -> str:
    """An array for `json_each` in SQL."""
    return msgspec.json.encode(values).decode()


def body_of(row: Row) -> tuple[int, bytes, bytes]:
    """The stored parts of a record: the number of its task, the record without its payload, and the payload."""
    meta = msgspec.structs.replace(row.record, id="", payload=b"")
    return (row.seq, encode(meta), row.record.payload)


def rows_of(found: Iterable[Sequence[Any]], columns: Callable[[int], Sequence[Any]]) -> list[Row]:
    """The rows of a query result, each with the columns `id, deadline, meta, attempts, seq, state, ...`, see
    `_row_store.py`.

    Args:
        found: the result of the query.
        columns: returns the type and the priority of a task. Called for a task whose record is unreadable.
    """
    return [_row_of(values) or _damaged(values, columns) for values in found]


def _row_of(values: Sequence[Any]) -> Row | None:
    """The row, or None if a part of it is unreadable or invalid. SQLite checks the types of the columns."""
    name, deadline, meta, raw_attempts, seq, state, limit_queue, due, epoch, *others = values
    worker, last_finished_epoch, step, ended, reason, cancelling, payload, result, turn = others
    try:
        record = _decode_record(meta)
        record.id, record.deadline, record.payload = name, deadline, payload
        attempts = None if raw_attempts is None else _decode_attempts(raw_attempts)
    except _BROKEN:
        return None
    if (
        0 <= state <= DEAD_LETTER
        and 0 <= epoch | last_finished_epoch < EXACT
        and 0 <= step < _STEPS
        and _EARLIEST < ended < LATEST
        and 0.0 <= turn < EXACT
        and (
            state not in (SCHEDULED, IN_FLIGHT)
            if due is None
            else due > _EARLIEST and (due < LATEST or state > IN_FLIGHT)
        )
        and payload is not None
        and record.result_ttl >= 0
        and type(name) is str
        and "\0" not in name
    ):
        return Row(
            seq,
            record,
            state,
            limit_queue,
            due,
            epoch,
            worker,
            last_finished_epoch,
            step,
            ended,
            reason,
            cancelling,
            attempts,
            result,
            turn,
        )
    return None


def _damaged(values: Sequence[Any], columns: Callable[[int], Sequence[Any]]) -> Row:
    """A partly unreadable row, with the readable parts."""
    name, deadline, meta, raw_attempts, seq, state, limit_queue, due = values[:8]
    row = Row(seq=seq, record=Record(id=name, type=""), state=state, limit_queue=limit_queue, result=values[16])
    part, why, raw = "record", "its payload in the file is gone", b""
    if _makes_sense(values):
        row.due, row.epoch, row.worker, row.last_finished_epoch, row.last_finish, row.ended = due, *values[8:13]
        row.reason, row.cancelling, row.turn = values[13], bool(values[14]), values[17]
    else:
        part, why, raw = "row", "its row in the file makes no sense", encode([*values[4:15], values[17]])
    try:
        row.attempts = None if raw_attempts is None else _decode_attempts(raw_attempts)
    except _BROKEN as error:
        part, raw = "attempts", raw_attempts or b""
        why = f"what its attempts left behind cannot be read ({safe_str(error, 200)})"
    try:
        row.record = _decode_record(meta)
        if not row.record.result_ttl >= 0:
            raise ValueError(f"result_ttl={row.record.result_ttl!r}")
    except _BROKEN as error:
        kind, priority = columns(seq)
        row.record = Record(id="", type=kind, priority=priority)
        part, raw = "record", meta or b""
        gone = meta is None
        why = "its record in the file is gone" if gone else f"its record cannot be read ({safe_str(error, 200)})"
    unplaced, garbled = not 0 <= state < len(STATES), type(name) is not str or "\0" in name
    row.state = DEAD_LETTER if unplaced else state
    row.record.id = f"{UNDECODABLE}-{seq}-{name}".replace("\0", "") if garbled else name
    row.record.deadline, row.record.payload = deadline, values[15] or b""
    row.damage = Damage(part, why, raw, renamed=garbled, unplaced=unplaced)
    return row


def renamed_seq(task_id: str) -> int | None:
    """The number of a task that `rows_of` may have given this id."""
    if not task_id.startswith(UNDECODABLE):
        return None
    number = task_id.removeprefix(UNDECODABLE + "-").partition("-")[0]
    return int(number) if number.isdecimal() and len(number) < _DIGITS else None


def _makes_sense(values: Sequence[Any]) -> bool:
    """Whether the columns of a row are valid, apart from its record: with a valid record, the row would be readable."""
    return _row_of(("id", 0.0, _SOUND, None, *values[4:15], b"", None, values[17])) is not None


def keys_of(text: str) -> tuple[str, ...] | None:
    """The limits of a limit queue; None if they are unreadable."""
    try:
        return _decode_keys(text) or None
    except _BROKEN:
        return None


def limit_of(raw: bytes | None) -> Limit | None:
    """The override of a limit. Raises `ValueError` if it is unreadable."""
    try:
        return None if raw is None else _decode_limit(raw)
    except _BROKEN as error:
        raise ValueError(safe_str(error)) from error


def leases_of(raw: bytes) -> list[tuple[int, int]] | None:
    """The answer to a claim, as sequences and epochs; None if it is unreadable."""
    try:
        return _decode_leases(raw)
    except _BROKEN:
        return None


def virtual_times_of(text: str | None) -> dict[str, float]:
    """The virtual times of tenants, without unreadable ones."""
    try:
        lines = {} if text is None else _decode_lines(text)
    except _BROKEN:
        return {}
    return {line: at for line, at in lines.items() if 0 <= at < EXACT}


def schedules_of(found: Iterable[Sequence[Any]]) -> Iterator[Schedule]:
    """Schedules from the columns `name, spec, due, record`.

    An unreadable schedule has the spec "undecodable", is never due, and its payload is the stored record.
    """
    for name, spec, due, raw in found:
        try:
            record = _decode_record(raw)
            sound = type(name) is type(spec) is str and -LATEST < due < LATEST
        except _BROKEN:
            sound, record = False, Record(id=str(name), type="")
        if not sound:
            spec, due, record = UNDECODABLE, inf, Record(id=str(name), type="", payload=raw)  # noqa: PLW2901
        yield Schedule(name=str(name), spec=spec, due=due, record=record)


def is_invalid_text(error: BaseException) -> bool:
    """Whether the error means that a text in the file is not valid Unicode."""
    return isinstance(error, sqlite3.OperationalError) and "decode to UTF-8" in safe_str(error)
