"""The decoders of a SQLite store, for any bytes at all: each gives values, or says that there are none."""

from __future__ import annotations

from math import inf
from typing import Any

import hypothesis.strategies as st
import msgspec
from hypothesis import example, given, settings

from cuelight.tasks import Attempt, Limit, Record, Schedule
from cuelight.tasks._stores._rows import AttemptHistory, Damage, Row
from cuelight.tasks._stores._sqlite._columns import (
    InvalidText,
    keys_of,
    leases_of,
    limit_of,
    readable_text,
    renamed_seq,
    rows_of,
    schedules_of,
    virtual_times_of,
)

encode = msgspec.msgpack.encode
FUZZ = settings(max_examples=max(300, settings().max_examples))

DEEP = st.integers(1, 3000).map(lambda depth: b"\x91" * depth + b"\xc0")
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=8) | st.binary(),
    lambda parts: st.lists(parts, max_size=4) | st.dictionaries(st.text(max_size=4), parts, max_size=3),
    max_leaves=10,
)
META = encode(Record(id="", type="x", limits=(Limit("k", rate=1.0),), tenant="T", unique="u"))
STORY = encode(AttemptHistory(history=(Attempt("error", "w", 1.0, error="e"),), checkpoint=b"c"))
WHOLE = st.integers(-(2**63), 2**63 - 1) | st.integers(-1, 8)
REAL = st.floats(allow_nan=False)  # which SQLite keeps as NULL
TEXT = st.text(max_size=8) | st.binary(max_size=8).map(readable_text)
GOOD = ("id", inf, META, STORY, 7, 0, -1, None, 1, "w", 0, 0, 0.0, "", 0, b"payload", None, 0.0)


@st.composite
def mutated(draw: st.DrawFn, good: bytes) -> bytes:
    """Bytes of ours with some changed, some gone and some more."""
    raw = bytearray(good)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(0, len(raw) - 1)))
        raw[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(raw)


def anything(good: bytes) -> st.SearchStrategy[bytes]:
    return st.just(good) | mutated(good) | st.binary(max_size=60) | VALUE.map(encode) | DEEP


@st.composite
def columns(draw: st.DrawFn) -> tuple[Any, ...]:
    """A row as SQLite may give it: the types are those of the columns, and NULL where they allow it."""
    some: dict[int, st.SearchStrategy[Any]] = {
        0: TEXT,
        1: REAL,
        2: st.none() | anything(META),  # none where there is no body
        3: st.none() | anything(STORY),
        4: WHOLE,
        5: WHOLE,
        6: WHOLE,
        7: st.none() | REAL,
        8: WHOLE,
        9: TEXT,
        10: WHOLE,
        11: WHOLE,
        12: REAL,
        13: TEXT,
        14: WHOLE,
        15: st.none() | st.binary(max_size=8),
        16: st.none() | st.binary(max_size=8),
        17: REAL,
    }
    row: list[Any] = list(GOOD)
    for at in draw(st.sets(st.sampled_from(sorted(some)), max_size=4)):
        row[at] = draw(some[at])
    return tuple(row)


@FUZZ
@example(found=[GOOD])
@given(st.lists(columns(), max_size=3))
def test_rows_of_a_file_are_read_or_say_what_is_wrong(found: list[tuple[Any, ...]]) -> None:
    rows = rows_of(found, lambda _: ("t", 0))
    assert len(rows) == len(found)
    for row, values in zip(rows, found, strict=True):
        assert isinstance(row, Row)
        assert row.seq == values[4]
        assert type(row.record.payload) is bytes
        if row.damage is None:
            assert 0 <= row.state < 7
            assert row.record.id == values[0]
        else:
            assert isinstance(row.damage, Damage)
            row.damage.why.encode()
            row.record.id.encode()
            if row.damage.renamed and 0 < row.seq < 2**53:
                assert renamed_seq(row.record.id) == row.seq


@FUZZ
@given(anything(encode(Limit("k", rate=1.0))), anything(encode([(1, 2), (3, 4)])))
def test_limits_and_leases_of_a_file_are_read_or_none(limit: bytes, leases: bytes) -> None:
    try:
        assert isinstance(limit_of(limit), Limit)
    except ValueError as error:
        str(error).encode()
    found = leases_of(leases)
    assert found is None or all(type(seq) is type(epoch) is int for seq, epoch in found)


@FUZZ
@example(text="[" * 100_000)
@example(text='{"a": NaN}')
@given(st.text() | TEXT | VALUE.map(lambda value: repr(value)))
def test_keys_and_turns_of_a_file_are_read_or_none(text: str) -> None:
    keys = keys_of(text)
    assert keys is None or all(isinstance(key, str) for key in keys)
    assert all(0 <= at < 2**53 for at in virtual_times_of(text).values())


@FUZZ
@given(TEXT, TEXT, REAL, anything(META))
def test_a_schedule_of_a_file_is_shown_whatever_comes(name: str, spec: str, due: float, raw: bytes) -> None:
    (schedule,) = schedules_of([(name, spec, due, raw)])
    assert isinstance(schedule, Schedule)
    assert type(schedule.name) is str
    if schedule.spec == "undecodable" and spec != "undecodable":
        assert (schedule.due, schedule.record.payload) == (inf, raw)


@given(st.binary())
def test_a_text_of_a_file_is_shown_as_far_as_it_is_one(raw: bytes) -> None:
    text = readable_text(raw)
    text.encode()
    assert not isinstance(text, InvalidText) or text.raw == raw
