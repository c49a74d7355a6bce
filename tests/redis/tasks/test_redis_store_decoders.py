"""The decoders of a store over Redis, for any bytes at all: each gives values, or its one documented error."""

from __future__ import annotations

from math import inf
from typing import Any

import hypothesis.strategies as st
import msgspec
from hypothesis import example, given, settings

from cuelight.errors import PoolClosed, StoreRefused
from cuelight.redis._tasks._encoding import CorruptTask, encode_task, leases_of, schedule_of, snapshots_of
from cuelight.redis._tasks._notifications import ChangeNotifications
from cuelight.redis._tasks._scripts import reply_of
from cuelight.tasks import Lease, Limit, Record, Schedule, Snapshot

encode = msgspec.msgpack.encode
FUZZ = settings(max_examples=max(300, settings().max_examples))

DEEP = st.integers(1, 3000).map(lambda depth: b"\x91" * depth + b"\xc0")
VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda parts: st.lists(parts, max_size=4) | st.dictionaries(st.text(max_size=4), parts, max_size=3),
    max_leaves=10,
)
GOOD = msgspec.msgpack.decode(
    encode_task(Record(id="t", type="x", limits=(Limit("k", rate=1.0),), tenant="T", unique="u"), "nonce")[0]
)
BLOB = encode_task(Record(id="t", type="x", limits=(Limit("k", rate=1.0),)), "nonce")[1]
STORY = encode([1, 0, 0, 0, 0, [{"kind": "error", "worker": "w", "at": 1.0, "error": "e"}]])


@st.composite
def mutated(draw: st.DrawFn, good: bytes) -> bytes:
    """Bytes of ours with some changed, some gone and some more."""
    raw = bytearray(good)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(0, len(raw) - 1)))
        raw[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(raw)


@st.composite
def rows(draw: st.DrawFn) -> bytes:
    """A row with some fields replaced."""
    row: list[Any] = list(GOOD)
    row[12] = draw(st.integers(0, 15))  # what the task has
    for _ in range(draw(st.integers(0, 3))):
        row[draw(st.integers(0, len(row) - 1))] = draw(VALUE)
    return encode(row)


def anything(good: bytes) -> st.SearchStrategy[bytes]:
    return st.just(good) | mutated(good) | st.binary(max_size=60) | VALUE.map(encode) | DEEP


ROW = rows() | anything(encode(GOOD))
PART = st.tuples(
    ROW, anything(BLOB), anything(STORY), st.binary(max_size=9), st.binary(max_size=9), st.binary(max_size=9)
)


@FUZZ
@given(parts=st.lists(PART, max_size=3), extra=st.integers(0, 5))
def test_leases_are_read_or_named_whatever_comes(parts: list[tuple[bytes, ...]], extra: int) -> None:
    flat = [piece for part in parts for piece in part[:4]]
    found = list(leases_of([*flat, *[b""] * (extra % 4)]))
    assert len(found) == len(parts)
    for one, part in zip(found, parts, strict=True):
        assert isinstance(one, Lease | CorruptTask)
        if isinstance(one, CorruptTask):
            assert one.row == part[0]
            assert one.part in ("row", "record", "story")


@FUZZ
@given(parts=st.lists(PART, max_size=3), extra=st.integers(0, 5))
def test_tasks_are_read_or_named_whatever_comes(parts: list[tuple[bytes, ...]], extra: int) -> None:
    flat = [piece for part in parts for piece in part]
    found = list(snapshots_of([*flat, *[b""] * extra]))
    assert len(found) == len(parts)
    assert all(isinstance(one, Snapshot | CorruptTask) for one in found)


@FUZZ
@given(row=ROW, blob=anything(BLOB), spec=st.text(max_size=5) | st.booleans(), due=st.floats())
def test_a_schedule_is_shown_whatever_comes(row: bytes, blob: bytes, spec: str | bool, due: float) -> None:
    shown = schedule_of("s", spec, due, row, blob)
    assert isinstance(shown, Schedule)
    assert shown.name == "s"
    if shown.spec == "undecodable":
        assert (shown.due, shown.record.payload) == (inf, blob) or spec == "undecodable"


STATUS = st.sampled_from([b"", b"closed", b"future", b"broken", b"damaged", b"x"])


@FUZZ
@given(
    status=STATUS,
    head=anything(encode([1.0, 1, 1, True])) | st.just(b"\xff"),
    rest=st.lists(st.binary(max_size=5), max_size=2),
)
@example(status=b"", head=b"", rest=[])
def test_an_answer_is_read_or_refused_whatever_comes(status: bytes, head: bytes, rest: list[bytes]) -> None:
    for raw in ([status, head, *rest], [status], []):
        try:
            reply = reply_of(raw, "server", "meta")
        except (StoreRefused, PoolClosed):
            continue
        assert isinstance(reply.version, int)
        assert isinstance(reply.now, float)


@FUZZ
@given(message=st.binary(max_size=30) | st.sampled_from([b"1 2", b"9 9", b"-1 -1", b"1 2 3", b"1e3 5"]))
def test_a_notification_wakes_waiting_callers_whatever_it_contains(message: bytes) -> None:
    async def arm(kind: str, version: int, stirred: int) -> bool:
        raise AssertionError("nobody waits")

    notifications = ChangeNotifications("channel", arm)
    before = notifications.version
    notifications._on_message(message)
    assert notifications.version >= before
