"""Values without an annotation: each comes back as it was, or is refused where it is given."""

# Values of any type are what these tests are about.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false
# pyright: reportUnknownLambdaType=false, reportUnknownParameterType=false, reportMissingParameterType=false

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from math import isnan
from typing import Any, NamedTuple, cast
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuelight.tasks import task
from cuelight.tasks._functions._packing import DEEPEST
from cuelight.tasks._functions._values import decode, encode
from helpers.task_values import BERLIN, values


def shape(value: Any) -> Any:
    """A value with the types of all its parts, and what a comparison does not see."""
    kind: Any = type(value)
    if kind is dict:
        return kind, sorted((repr(shape(key)), repr(shape(part))) for key, part in value.items())
    if kind in {set, frozenset}:
        return kind, sorted(repr(shape(part)) for part in value)
    if kind in {list, tuple}:
        return kind, [shape(part) for part in value]
    if kind in {datetime, time}:
        return kind, repr(value), value.fold, value.tzinfo
    return kind, repr(value)


@given(values)
def test_a_value_without_an_annotation_comes_back_as_it_was(value: Any) -> None:
    back = decode(encode(value))
    assert back == value
    assert shape(back) == shape(value)


def test_numbers_that_are_none_come_back() -> None:
    assert isnan(decode(encode(float("nan"))))
    assert str(decode(encode(Decimal("-sNaN123")))) == "-sNaN123"


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(0, 9), inner, max_size=3),
    max_leaves=10,
)


@given(plain)
def test_what_was_stored_before_there_were_extensions_is_read_as_before(value: Any) -> None:
    before = msgspec.msgpack.encode(value)
    assert decode(before) == value
    assert encode(value) == before, "and older versions read what needs none"


def test_a_moment_in_utc_is_stored_as_before() -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, 6, UTC)
    assert encode(now) == msgspec.msgpack.encode(now)
    assert decode(encode(now)) == now


def test_a_zone_that_this_machine_does_not_know_comes_back_as_its_offset() -> None:
    stored = encode(datetime(2025, 7, 1, 12, tzinfo=BERLIN)).replace(b"Europe/Berlin", b"Europe/Breton")
    moment = decode(stored)
    assert moment == datetime(2025, 7, 1, 12, tzinfo=BERLIN)
    assert moment.tzname() == "Europe/Breton"
    assert decode(encode(time(12, tzinfo=BERLIN)).replace(b"Europe/Berlin", b"Europe/Breton")) == time(12)


class Color(Enum):
    RED = "red"


class Word(StrEnum):
    RED = "red"


class Number(IntEnum):
    ONE = 1


class Point(NamedTuple):
    x: int


@dataclass
class Circle:
    radius: float


class Struct(msgspec.Struct):
    number: int


class Text(str):
    __slots__ = ()


class Zone(tzinfo):
    def dst(self, _: datetime | None, /) -> timedelta | None:
        return None

    def tzname(self, _: datetime | None, /) -> str:
        return "Zone"

    def utcoffset(self, _: datetime | None, /) -> timedelta:
        return timedelta(hours=2)


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        (Color.RED, "of type Color, an enum, and would come back as its value: give `.value`"),
        (Word.RED, "of type Word, an enum"),
        (Number.ONE, "of type Number, an enum"),
        (Circle(1.0), "of type Circle, and would come back as a dict: give `msgspec.to_builtins"),
        (Struct(1), "of type Struct, and would come back as a dict"),
        (Point(1), r"of type Point, and would come back as a tuple: give `tuple\(...\)`"),
        (OrderedDict(a=1), r"of type OrderedDict, and would come back as a dict: give `dict\(...\)`"),
        (defaultdict(list), "of type defaultdict"),
        (Counter("aab"), "of type Counter"),
        (Text("x"), "of type Text, and would come back as a str"),
        (datetime(2026, 1, 1, tzinfo=Zone()), "a datetime in a zone of type Zone: give one in a `datetime.timezone`"),
        (memoryview(b"x"), "of type memoryview: give plain values"),
        (1j, "of type complex"),
        (range(3), "of type range"),
    ],
)
@pytest.mark.parametrize("around", [lambda one: one, lambda one: {"a": [1, (one,)]}, lambda one: [{"a": 1, "b": one}]])
def test_what_would_come_back_as_something_else_is_refused(
    value: Any, advice: str, around: Callable[[Any], Any]
) -> None:
    with pytest.raises(TypeError, match=advice):
        encode(around(value))


def nested(levels: int, kind: Callable[[list[Any]], Any] = list) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = kind([value])
    return value


KINDS: list[Callable[[list[Any]], Any]] = [
    list,
    tuple,
    frozenset,
    lambda one: {"a": one[0]},
    lambda one: {(1, None): one},
]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_nested_too_deep_is_refused_where_it_is_given(kind: Callable[[list[Any]], Any]) -> None:
    levels = DEEPEST // 2 if kind is KINDS[-1] else DEEPEST
    most = nested(levels, kind)
    assert decode(encode(most)) == most
    for levels in (DEEPEST + 1, 2 * DEEPEST, 20 * DEEPEST):
        with pytest.raises(TypeError, match="nested more than 100 levels deep"):
            encode(nested(levels, kind))


def at_depth(frames: int, function: Callable[[], Any]) -> Any:
    """Call a function with so many frames on the stack."""
    return function() if frames == 0 else at_depth(frames - 1, function)


def test_a_reader_that_is_deep_in_the_stack_reads_what_was_taken() -> None:
    for kind in (list, tuple):
        data = encode(nested(DEEPEST, kind))
        assert at_depth(850, lambda: decode(data)) == nested(DEEPEST, kind)  # noqa: B023 - called at once


tokens = st.binary(max_size=60)
deep = st.tuples(st.sampled_from([b"\x91", b"\x81\xa1a", b"\x81\x91"]), st.integers(1, 3000)).map(
    lambda pair: pair[0] * pair[1] + b"\xc0"
)
extensions = st.builds(
    lambda code, data: b"\xc7" + bytes((len(data), code & 0xFF)) + data,
    st.integers(-128, 127),
    st.binary(max_size=20) | values.map(encode).filter(lambda data: len(data) < 256),
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    data = bytearray(encode(draw(values)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data) - 1))
        data[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
        if not data:
            break
    return bytes(data)


@given(tokens | deep | extensions | damaged())
def test_whatever_the_bytes_are_they_are_a_value_or_refused(data: bytes) -> None:
    with suppress(ValueError):
        decode(data)


def test_bytes_that_nest_extensions_without_end_are_refused() -> None:
    data = b"\xc0"
    for _ in range(2000):
        data = b"\xc9" + len(data).to_bytes(4, "big") + b"\x07" + b"\x91" + data if data else data
        data = data[:1] + (len(data) - 6).to_bytes(4, "big") + data[5:]
    with pytest.raises(ValueError, match="is not what a task queue stores"):
        decode(data)


def test_no_memory_is_no_fault_of_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def decode(self, data: bytes) -> Any:
            raise MemoryError

    monkeypatch.setattr("cuelight.tasks._functions._values._DECODER", Full())
    with pytest.raises(MemoryError):
        decode(b"\xc0")


def test_an_identity_is_kept_as_an_identity() -> None:
    back = cast("dict[str, Any]", decode(encode({"id": UUID(int=5), "day": date(2026, 1, 2)})))
    assert back == {"id": UUID(int=5), "day": date(2026, 1, 2)}


@task(name="fuzzed")
def fuzzed(
    numbers: list[int], /, when: datetime | None = None, *more: UUID, **rest: dict[str, Decimal]
) -> list[Decimal]:
    return [Decimal(number) for number in numbers]


@given(tokens | deep | extensions | damaged())
def test_whatever_the_bytes_are_they_are_a_result_or_refused(data: bytes) -> None:
    with suppress(ValueError, TypeError):
        result = fuzzed.read_result(data)
        assert all(isinstance(one, Decimal) for one in result)


@given(st.fixed_dictionaries({"args": values, "kwargs": values}) | values)
def test_whatever_the_payload_is_it_is_a_call_or_refused(payload: Any) -> None:
    with suppress(ValueError, TypeError):
        args, kwargs = fuzzed.call_with(payload)
        assert isinstance(args[0], list)
        assert all(isinstance(value, dict) for name, value in kwargs.items() if name != "when")
