"""The packers of annotations by themselves: what they leave to msgspec, and what they refuse."""

# Values of any type are what these tests are about.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from enum import Enum
from typing import Annotated, Any, TypedDict, Unpack
from uuid import UUID

import msgspec
import pytest

from cuelight.tasks._functions._packing import Unstorable, pack
from cuelight.tasks._functions._typed import packer_of

ID = UUID(int=1)


@dataclass
class Point:
    x: int


class Keys(TypedDict):
    x: int


class Color(Enum):
    RED = "red"


class OddZone(tzinfo):
    """A zone of a type that cannot be kept."""

    def utcoffset(self, dt: datetime | None, /) -> None: ...
    def dst(self, dt: datetime | None, /) -> None: ...
    def tzname(self, dt: datetime | None, /) -> None: ...


@pytest.mark.parametrize("annotation", [Unpack[Keys], Any])
def test_an_annotation_that_cannot_be_described_leaves_everything_open(annotation: Any) -> None:
    assert packer_of(annotation) is pack


def test_an_annotation_with_extra_data_is_packed_as_the_type_in_it() -> None:
    packer = packer_of(Annotated[int, msgspec.Meta(extra={"unit": "s"})])
    assert packer(3, 100) == 3
    with pytest.raises(Unstorable, match="it is of type UUID, not int"):
        packer(ID, 100)


def test_a_member_of_a_union_with_extra_data_is_found_by_its_type() -> None:
    packer = packer_of(Annotated[int, msgspec.Meta(extra={"unit": "s"})] | Point)
    point = Point(1)
    assert packer(3, 100) == 3
    assert packer(point, 100) is point


def test_a_union_leaves_to_msgspec_what_is_of_no_member() -> None:
    value = object()
    assert packer_of(int | str)(value, 100) is value
    with pytest.raises(Unstorable, match="it is of type UUID, not int or str"):
        packer_of(int | str)(ID, 100)


def test_a_union_takes_a_member_of_an_enumeration() -> None:
    packer = packer_of(Color | None)
    assert packer(Color.RED, 100) is Color.RED
    assert packer(None, 100) is None


def test_a_union_with_a_type_that_msgspec_does_not_know_takes_any_value() -> None:
    packed = packer_of(complex | None)((1, 2), 100)
    assert packed == pack((1, 2))


@pytest.mark.parametrize("annotation", [Point, dict[str, int], list[int], tuple[int, str]])
def test_what_has_another_shape_is_left_to_msgspec(annotation: Any) -> None:
    assert packer_of(annotation)(7, 100) == 7


@pytest.mark.parametrize("annotation", [dict[str, int], list[int], tuple[int, str]])
def test_what_would_be_written_as_text_is_refused_for_a_collection(annotation: Any) -> None:
    with pytest.raises(Unstorable, match="it is of type UUID, not what the annotation says: convert it first"):
        packer_of(annotation)(ID, 100)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Point, Point(1)),
        (Point, {"x": 1}),
        (Keys, {"x": 1}),
        (dict[str, list[int]], {"a": [1]}),
        (list[list[int]], [[1]]),
    ],
)
def test_a_value_without_room_for_what_is_in_it_is_refused(annotation: Any, value: Any) -> None:
    with pytest.raises(Unstorable, match="nested more than 100 levels deep"):
        packer_of(annotation)(value, 0)
    assert packer_of(annotation)(value, 1) == value


def test_items_of_a_set_that_cannot_be_stored_are_refused_by_name() -> None:
    with pytest.raises(Unstorable, match="it is of type Color, not int"):
        packer_of(set[int])({Color.RED}, 100)
    with pytest.raises(Unstorable, match="complex"):
        packer_of(set[Any])({1j, 2j}, 100)


def test_a_time_in_a_zone_that_cannot_be_kept_is_left_to_msgspec() -> None:
    odd, utc = datetime(2026, 1, 1, tzinfo=OddZone()), datetime(2026, 1, 1, tzinfo=UTC)
    assert packer_of(datetime)(odd, 100) is odd
    assert packer_of(datetime)(utc, 100) is utc
