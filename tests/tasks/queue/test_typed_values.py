"""Arguments and results with annotations: what would lose something on its way is refused, with both types named."""

# Values of any type are what these tests are about.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false
# pyright: reportUnknownLambdaType=false, reportUnknownParameterType=false, reportMissingParameterType=false

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypedDict, TypeVar
from uuid import UUID

import msgspec
import pytest

from cuelight.errors import TaskFailed
from cuelight.tasks import TaskQueue, TaskWorker, task
from helpers.task_values import AN_HOUR, BERLIN

T = TypeVar("T")


@dataclass
class Shape:
    name: str


@dataclass
class Circle(Shape):
    radius: float = 0.0


@dataclass
class Square:
    name: str


@dataclass
class Tree:
    value: Any = None
    below: list[Tree] = field(default_factory=list["Tree"])


@dataclass(frozen=True)
class Page(Generic[T]):
    items: list[T]


class Base(msgspec.Struct):
    a: int


class Derived(Base):
    b: int = 5


class Cat(msgspec.Struct, tag=True):
    name: Any


class Dog(msgspec.Struct, tag=True):
    name: Any
    age: int = 0


class Up(msgspec.Struct, tag=True, array_like=True):
    meters: Any


class Down(msgspec.Struct, tag=True, array_like=True):
    meters: Any


class Far(msgspec.Struct, array_like=True):
    meters: Any


class Point(NamedTuple):
    x: Any
    y: int = 0


class NamedPoint(Point):
    label = ""


class Options(TypedDict, total=False):
    loud: bool
    at: datetime


class Color(Enum):
    RED = "red"


class Paint(Enum):
    RED = "red"


class Word(StrEnum):
    RED = "red"


class Number(IntEnum):
    ONE = 1


NOON = datetime(2025, 7, 1, 12, tzinfo=BERLIN)


def echo(annotation: Any) -> Any:
    """A task function that takes and returns what has this annotation."""

    def function(given: Any) -> Any:
        return given

    function.__annotations__ = {"given": annotation, "return": annotation}
    return task(name="echo")(function)


def through(annotation: Any, value: Any) -> Any:
    """What a worker gets, after it was held to be what a result comes back as."""
    function = echo(annotation)
    _, kwargs = function.call_with(function.task(value).payload)
    assert repr(function.read_result(function.encode_result(value))) == repr(kwargs["given"])
    return kwargs["given"]


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Shape, Shape("s")),
        (Circle, Circle("c", 2.0)),
        (Shape | None, Shape("s")),
        (list[Shape], [Shape("s"), Shape("t")]),
        (dict[str, list[Shape]], {"a": [Shape("s")]}),
        (Tree, Tree((1, Decimal("1.10")), [Tree({UUID(int=1)}), Tree()])),
        (Page[int], Page([1, 2])),
        (Page[Decimal], Page([Decimal("1.10")])),
        (Page[Any], Page([(1,), {"a": {2}}])),
        (Cat | Dog, Cat((1,))),
        (Cat | Dog, Dog(Decimal(1), 3)),
        (list[Cat | Dog], [Dog("d"), Cat("c")]),
        (Up | Down, Down(Decimal("1.10"))),
        (Far, Far((1, 2))),
        (Point, Point(1, 2)),
        (Point, Point((1,), 2)),
        (dict[Point, int], {Point(1, 2): 3}),
        (dict[tuple[int, Any], int], {(1, Decimal(1)): 3}),
        (Options, {"loud": True, "at": NOON}),
        (datetime, NOON),
        (datetime, datetime(2025, 7, 1, 12, tzinfo=AN_HOUR)),
        (datetime, datetime(2025, 7, 1, 12)),
        (datetime | None, datetime(2025, 7, 1, 12, tzinfo=UTC)),
        (Annotated[datetime, msgspec.Meta(tz=True)], NOON),
        (time, time(1, 2, fold=1, tzinfo=BERLIN)),
        (timedelta, timedelta(days=-1, microseconds=7)),
        (date, date(2025, 7, 1)),
        (Color, Color.RED),
        (Color | None, Color.RED),
        (Word, Word.RED),
        (Number, Number.ONE),
        (dict[Color, int], {Color.RED: 1}),
        (dict[UUID, date], {UUID(int=1): date(2025, 7, 1)}),
        (dict[date, Any], {date(2025, 7, 1): (1,)}),
        (Decimal | int, Decimal("1.10")),
        (float | Decimal, Decimal("1.10")),
        (int | list[int], [1]),
        (int | float, 5),
        (int | float, 5.0),
        (bytes, b"\xff"),
        (bytearray, bytearray(b"x")),
        (tuple[int, Any], (1, {2})),
        (tuple[Any, ...], ((1,), [2])),
        (set[tuple[int, int]], {(1, 2)}),
        (frozenset[str], frozenset({"a"})),
        (Mapping[str, Any], {"a": (1,)}),
        (Sequence[Any], [(1,)]),
        (dict, {"a": NOON, (1, 2): Decimal(1)}),
        (list, [(1,), {2}]),
        (object, (1, 2)),
        (T, (1, 2)),
        (Literal["a", 1], 1),
    ],
)
def test_what_an_annotation_names_comes_back_as_it_was(annotation: Any, value: Any) -> None:
    back = through(annotation, value)
    assert back == value
    assert repr(back) == repr(value)


@pytest.mark.parametrize(
    ("annotation", "value", "back"),
    [
        (list[int], (1, 2), [1, 2]),
        (tuple[int, ...], [1, 2], (1, 2)),
        (float, 3, 3.0),
        (Decimal, 1.1, Decimal("1.1")),
        (UUID, str(UUID(int=1)), UUID(int=1)),
        (str, Word.RED, "red"),
        (int, Number.ONE, 1),
        (Literal["red"], Word.RED, "red"),
        (Shape, {"name": "s"}, Shape("s")),
        (Cat | Dog, {"type": "Cat", "name": (1,)}, Cat((1,))),
        (Point, [1, 2], Point(1, 2)),
        (dict[str, int], OrderedDict(a=1), {"a": 1}),
        (dict, defaultdict(int, a=1), {"a": 1}),
        (bytes, bytearray(b"x"), b"x"),
    ],
)
def test_an_argument_may_be_given_as_what_its_annotation_is_made_of(annotation: Any, value: Any, back: Any) -> None:
    function = echo(annotation)
    got = function.call_with(function.task(value).payload)[1]["given"]
    assert (got, type(got)) == (back, type(back))


class Late(datetime):
    pass


@pytest.mark.parametrize(
    ("annotation", "value", "reason"),
    [
        (Shape, Circle("c", 2.0), "of type Circle, and would come back as a Shape, the type in the annotation"),
        (Shape | None, Circle("c", 2.0), "of type Circle, and would come back as a Shape"),
        (list[Shape], [Shape("s"), Circle("c")], r"given\[1\] cannot be stored: it is of type Circle"),
        (dict[str, Page[Shape]], {"a": Page([Circle("c")])}, r"given\['a'\].items\[0\] cannot be stored"),
        (Base, Derived(1), "of type Derived, and would come back as a Base"),
        (Tree, Tree(below=[Tree(Circle("c"))]), r"given.below\[0\].value cannot be stored: it is of type Circle"),
        (Point, NamedPoint(1, 2), "of type NamedPoint, and would come back as a Point"),
        (Shape, Square("s"), "of type Square, not Shape"),
        (Point, Square("s"), "of type Square, not Point"),
        (Shape, Point(1), "of type Point, not Shape"),
        (Options, {"loud": True, "size": 1, 5: 2}, r"Options has no 'size', 5, which would be lost"),
        (Shape, {"name": "s", "radius": 1}, r"Shape has no 'radius', which would be lost"),
        (Options, {"at": Color.RED}, r"given\['at'\] cannot be stored: it is of type Color, not datetime"),
        (str, UUID(int=1), "of type UUID, not str: convert it"),
        (str, Decimal(1), "of type Decimal, not str"),
        (str, datetime(2026, 1, 1), "of type datetime, not str"),
        (str, Color.RED, "of type Color, not str"),
        (str | int, date(2026, 1, 1), "of type date, not str or int"),
        (int | bool, Color.RED, "of type Color, not int"),
        (list[str], [UUID(int=1)], r"given\[0\] cannot be stored: it is of type UUID"),
        (dict[str, int], {UUID(int=1): 1}, r"\(key UUID.*\) cannot be stored: it is of type UUID"),
        (Color, Paint.RED, "of type Paint, not Color"),
        (Literal["red"], Color.RED, "of type Color, not str"),
        (Any, Circle("c"), "of type Circle, and would come back as a dict"),
        (dict, {"a": Color.RED}, r"given\['a'\] cannot be stored: it is of type Color, an enum"),
        (Page[Any], Page([Color.RED]), r"given.items\[0\] cannot be stored: it is of type Color, an enum"),
        (tuple[int, Any], (1, Color.RED), r"given\[1\] cannot be stored"),
        (datetime, Late(2026, 1, 1), "cannot be stored: of type Late"),
    ],
)
def test_what_an_annotation_would_cut_or_disguise_is_refused(annotation: Any, value: Any, reason: str) -> None:
    function = echo(annotation)
    with pytest.raises(TypeError, match=reason):
        function.task(value)
    with pytest.raises(TypeError, match=r"the result of echo.*cannot be stored"):
        function.encode_result(value)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (int, "x"),
        (list[int], 5),
        (dict[str, int], [1]),
        (Shape, 5),
        (Point, "x"),
        (tuple[int, int], (1, 2, Decimal(3))),
    ],
)
def test_what_fits_no_annotation_is_refused_in_the_words_of_its_argument(annotation: Any, value: Any) -> None:
    with pytest.raises(TypeError, match=r"echo: given=.* is not of type "):
        echo(annotation).task(value)


def test_objects_that_are_nested_too_deep_are_refused() -> None:
    tree = Tree()
    for _ in range(60):
        tree = Tree(below=[tree])
    for refusing in (echo(Tree).task, echo(Tree).encode_result):
        with pytest.raises(TypeError, match="nested more than 100 levels deep"):
            refusing(tree)


def test_a_key_that_cannot_be_read_again_is_refused() -> None:
    @dataclass(frozen=True)
    class Key:
        name: str

    with pytest.raises(TypeError, match="the argument given cannot be stored"):
        echo(dict[Key, int]).task({Key("a"): 1})


def test_text_that_is_none_is_named_with_its_argument() -> None:
    for value in ("\ud800", Shape("\ud800"), [Shape("\ud800")]):
        with pytest.raises(TypeError, match=r"echo: the argument given.* cannot be stored: of type str"):
            echo(Any if isinstance(value, str) else Shape | list[Shape]).task(value)


@pytest.mark.parametrize("annotation", [Shape | Square, list[Shape | Square], dict[str, Base | Shape | None]])
def test_a_union_of_classes_without_tags_is_refused_with_the_way_to_tag_them(annotation: Any) -> None:
    with pytest.raises(TypeError, match=r"to distinguish .* as in `class \w+\(msgspec.Struct, tag=True\)`"):
        echo(annotation)


def test_a_union_that_no_tag_would_help_is_refused_in_the_words_of_msgspec() -> None:
    with pytest.raises(TypeError, match="cannot be read from a store") as raised:
        echo(Cat | Up)
    assert "to distinguish" not in str(raised.value)


@task(name="shape", max_retries=1)
async def give_shape(kind: str) -> Shape:
    return Shape("s") if kind == "shape" else Circle("c", 2.0)


async def test_a_subclass_under_an_annotation_is_refused_at_the_call_and_as_a_result(queue: TaskQueue) -> None:
    function = echo(Shape)
    with pytest.raises(TypeError, match=r"of type Circle, and would come back as a Shape"):
        await queue.send(function, Circle("c", 2.0))
    assert (await queue.size()).pending == 0
    async with TaskWorker(queue, [give_shape]):
        assert await (await queue.send(give_shape, "shape")).result() == Shape("s")
        handle = await queue.send(give_shape, "circle")
        with pytest.raises(TaskFailed, match="the result of shape cannot be stored: it is of type Circle, and would"):
            await handle.result()
