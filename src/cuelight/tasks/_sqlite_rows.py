"""Between the columns of a SQLite file and rows: also of a file that another program wrote, or somebody's hand.

1. A row of which a part cannot be read comes back with its `damage`; the others come back whatever it is.
2. What decoders raise stays here.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import inf
from typing import Any, Final

import msgspec

from cuelight._text import safe_str, type_name
from cuelight.tasks._checks import EXACT, FAR
from cuelight.tasks._rows import DEAD_LETTER, IN_FLIGHT, SCHEDULED, STATES, Damage, Row, Story
from cuelight.tasks._store import Record, Schedule
from cuelight.tasks._task import Limit
from cuelight.tasks._transitions import KINDS

__all__ = [
    "LATEST",
    "UNDECODABLE",
    "Garbled",
    "body_of",
    "encode",
    "is_garbled",
    "json_of",
    "keys_of",
    "leases_of",
    "limit_of",
    "lines_of",
    "readable_text",
    "renamed_seq",
    "rows_of",
    "schedules_of",
]

LATEST: Final = 4 * FAR
"""Seconds since the epoch that no time of a task can be: what was given as a time is below `FAR`."""
UNDECODABLE: Final = "undecodable"
_BROKEN: Final = (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError)
_DIGITS: Final = 19
_EARLIEST: Final = -LATEST
_STEPS: Final = len(KINDS) * len(STATES)

_decode_record: Final = msgspec.msgpack.Decoder(Record).decode
_decode_story: Final = msgspec.msgpack.Decoder(Story).decode
_decode_limit: Final = msgspec.msgpack.Decoder(Limit).decode
_decode_keys: Final = msgspec.json.Decoder(tuple[str, ...]).decode
_decode_leases: Final = msgspec.msgpack.Decoder(list[tuple[int, int]]).decode
_decode_lines: Final = msgspec.json.Decoder(dict[str, float]).decode


class Garbled(str):
    """A text of a file that is no Unicode, as far as it can be shown.

    Attributes:
        raw: what is there.
    """

    __slots__ = ("raw",)
    raw: bytes


def _encodable(value: Any) -> str:
    """What an encoder makes of a `Garbled`, which is nothing that it knows."""
    if isinstance(value, Garbled):
        return str(value)
    raise TypeError(f"a {type_name(value)} cannot be encoded")


encode: Final = msgspec.msgpack.Encoder(enc_hook=_encodable).encode
_SOUND: Final = encode(Record(id="", type=""))


def readable_text(raw: bytes) -> str:
    """What a connection makes of the texts of a file in which one was found that is no Unicode."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        text = Garbled(raw.decode("utf-8", "backslashreplace"))
        text.raw = raw
        return text


def json_of(values: Sequence[Any]) -> str:
    """What SQL takes apart with `json_each`."""
    return msgspec.json.encode(values).decode()


def body_of(row: Row) -> tuple[int, bytes, bytes]:
    """What is kept of a record: its task, the record without its payload, and that."""
    meta = msgspec.structs.replace(row.record, id="", payload=b"")
    return (row.seq, encode(meta), row.record.payload)


def rows_of(found: Iterable[Sequence[Any]], columns: Callable[[int], Sequence[Any]]) -> list[Row]:
    """The rows of a question, each as `id, deadline, meta, story, seq, state, ...`, see `_sqlite_statements.py`.

    Args:
        found: what the question has found.
        columns: type and priority of a task, asked for one of which nothing else says them.
    """
    return [_row_of(values) or _damaged(values, columns) for values in found]


def _row_of(values: Sequence[Any]) -> Row | None:
    """None if a part of it cannot be read, or is not as a step may have left it; SQLite sees to the types."""
    name, deadline, meta, raw_story, seq, state, lane, due, epoch, *others = values
    worker, settled, step, ended, reason, cancelling, payload, result, turn = others
    try:
        record = _decode_record(meta)
        record.id, record.deadline, record.payload = name, deadline, payload
        story = None if raw_story is None else _decode_story(raw_story)
    except _BROKEN:
        return None
    if (
        0 <= state <= DEAD_LETTER
        and 0 <= epoch | settled < EXACT
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
            seq, record, state, lane, due, epoch, worker, settled, step, ended, reason, cancelling, story, result, turn
        )
    return None


def _damaged(values: Sequence[Any], columns: Callable[[int], Sequence[Any]]) -> Row:
    """A row of which a part cannot be read, with what is left of it."""
    name, deadline, meta, raw_story, seq, state, lane, due = values[:8]
    row = Row(seq=seq, record=Record(id=name, type=""), state=state, lane=lane, result=values[16])
    part, why, raw = "record", "its payload in the file is gone", b""
    if _makes_sense(values):
        row.due, row.epoch, row.worker, row.settled, row.step, row.ended = due, *values[8:13]
        row.reason, row.cancelling, row.turn = values[13], bool(values[14]), values[17]
    else:
        part, why, raw = "row", "its row in the file makes no sense", encode([*values[4:15], values[17]])
    try:
        row.story = None if raw_story is None else _decode_story(raw_story)
    except _BROKEN as error:
        part, raw = "story", raw_story or b""
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
    """The number of a task that `rows_of` may have named so."""
    if not task_id.startswith(UNDECODABLE):
        return None
    number = task_id.removeprefix(UNDECODABLE + "-").partition("-")[0]
    return int(number) if number.isdecimal() and len(number) < _DIGITS else None


def _makes_sense(values: Sequence[Any]) -> bool:
    """Whether the columns of a row are sound: a row with a record of which nothing is wrong would be read."""
    return _row_of(("id", 0.0, _SOUND, None, *values[4:15], b"", None, values[17])) is not None


def keys_of(text: str) -> tuple[str, ...] | None:
    """The limits of a lane; None if they cannot be read."""
    try:
        return _decode_keys(text) or None
    except _BROKEN:
        return None


def limit_of(raw: bytes | None) -> Limit | None:
    """What overrides a limit.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        return None if raw is None else _decode_limit(raw)
    except _BROKEN as error:
        raise ValueError(safe_str(error)) from error


def leases_of(raw: bytes) -> list[tuple[int, int]] | None:
    """What a claim was given, as sequences and epochs; None if it cannot be read."""
    try:
        return _decode_leases(raw)
    except _BROKEN:
        return None


def lines_of(text: str | None) -> dict[str, float]:
    """The virtual times of tenants; those that can be read."""
    try:
        lines = {} if text is None else _decode_lines(text)
    except _BROKEN:
        return {}
    return {line: at for line, at in lines.items() if 0 <= at < EXACT}


def schedules_of(found: Iterable[Sequence[Any]]) -> Iterator[Schedule]:
    """Periodic work, each as `name, spec, due, record`.

    What cannot be read has the spec "undecodable", is due never, and has all there is for a payload.
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


def is_garbled(error: BaseException) -> bool:
    """Whether a text of the file is no Unicode."""
    return isinstance(error, sqlite3.OperationalError) and "decode to UTF-8" in safe_str(error)
