"""Functions as tasks: what can be called, sent and refused."""

from __future__ import annotations

import copy
import functools
import math
import pickle
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypedDict, Unpack, cast

import msgspec
import pytest

from cuelight.tasks import Limit, Task, TaskFunction, TaskPriority, TaskQueue, task

if TYPE_CHECKING:
    from decimal import Decimal as OnlyForCheckers


@dataclass
class User:
    name: str
    age: int = 0


class Point(NamedTuple):
    x: int
    y: int


class Color(Enum):
    RED = "red"


class More(TypedDict, total=False):
    loud: bool


@task
async def greet(name: str, times: int = 1) -> str:
    return f"Hello, {name}" * times


@task(name="add", max_retries=5, priority=1)
def add(a: int, b: int = 2) -> int:
    return a + b


@task
def wide(user: User, /, where: Point, *tags: str, color: Color = Color.RED, **rest: float) -> dict[str, User]:
    return {user.name: user}


# For calls that type checkers refuse too.
GREET: Any = greet
WIDE: Any = wide
OLD: Any = User("a", cast("int", "old"))


async def test_a_task_function_can_still_be_called() -> None:
    assert await greet("Ada") == "Hello, Ada"
    assert add(1) == 3
    assert (greet.__name__, greet.__doc__, greet.is_async, add.is_async) == ("greet", None, True, False)
    assert repr(add) == "<task add>"


def test_its_name_is_that_of_its_module_and_its_own() -> None:
    assert greet.name == f"{__name__}.greet"
    assert add.name == "add"
    assert add.task(1).task_type == "add"


def test_arguments_become_plain_values_by_name() -> None:
    assert greet.task("Ada", 2).payload == greet.task(times=2, name="Ada").payload
    assert greet.task("Ada").payload == {"args": [], "kwargs": {"name": "Ada"}}
    made = wide.task(User("Ada", 36), Point(1, 2), "a", "b", color=Color.RED, weight=1)
    assert made.payload == {
        "args": [{"name": "Ada", "age": 36}, [1, 2], "a", "b"],
        "kwargs": {"color": "red", "weight": 1},
    }


def test_arguments_come_back_with_their_types() -> None:
    args, kwargs = wide.call_with(wide.task(User("Ada"), Point(1, 2), "a", color=Color.RED, weight=1).payload)
    assert args == (User("Ada"), Point(1, 2), "a")
    assert kwargs == {"color": Color.RED, "weight": 1.0}
    assert type(kwargs["weight"]) is float
    assert wide.call_with(wide.task(User("Ada"), Point(1, 2)).payload) == ((User("Ada"),), {"where": Point(1, 2)})
    assert wide(*args, **kwargs) == {"Ada": User("Ada")}


def test_what_was_given_may_change_afterwards() -> None:
    @task(name="total")
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    numbers = [1, 2]
    made = total.task(numbers)
    numbers.append(3)
    assert total.call_with(made.payload) == ((), {"numbers": [1, 2]})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GREET.task(), "missing a required argument: 'name'; it takes (name: 'str'"),
        (lambda: GREET.task("a", 1, 2), "too many positional arguments"),
        (lambda: GREET.task("a", name="b"), "multiple values for argument 'name'"),
        (lambda: GREET.task("a", volume=1), "unexpected keyword argument 'volume'"),
        (lambda: GREET.task(5), "name=5 is not of type str: Expected `str`, got `int`"),
        (lambda: GREET.task("a", "b"), "times='b' is not of type int"),
        (lambda: GREET.task("a" * 500, "b"), "times='b'"),
        (lambda: GREET.task("a", 1.5), "times=1.5 is not of type int"),
        (lambda: GREET.task(greet), "the argument name cannot be stored"),
        (lambda: WIDE.task(OLD, Point(1, 2)), "got `str` - at `$.age`"),
        (lambda: WIDE.task(User("a"), Point(1, 2), "a", 5), "*tags[1]=5 is not of type str"),
        (lambda: WIDE.task(User("a"), Point(1, 2), weight="much"), "weight='much' is not of type float"),
        (lambda: WIDE.task(User("a"), Point(1, 2), color="blue"), "color='blue' is no"),
        (lambda: WIDE.task(user=User("a"), where=Point(1, 2)), "'user'"),
    ],
)
def test_a_wrong_argument_is_refused_where_it_is_given(call: Callable[[], object], message: str) -> None:
    with pytest.raises(TypeError) as raised:
        call()
    assert message in str(raised.value)
    assert str(raised.value).startswith((greet.name, wide.name)), "it says which function"


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (None, "is not a call"),
        ({"args": []}, "is not a call"),
        ({"args": {}, "kwargs": {}}, "is not a call"),
        ({"args": [], "kwargs": {}, "more": 1}, "is not a call"),
        ({"args": [], "kwargs": {}}, "missing a required argument: 'a'"),
        ({"args": [1, 2, 3], "kwargs": {}}, "too many"),
        ({"args": [], "kwargs": {"a": 1, "c": 2}}, "unexpected keyword argument 'c'"),
        ({"args": [], "kwargs": {"a": "one"}}, "Expected `int`, got `str`"),
    ],
)
def test_a_payload_of_another_version_is_refused_with_the_reason(payload: Any, message: str) -> None:
    with pytest.raises(TypeError) as raised:
        add.call_with(payload)
    assert message in str(raised.value)
    assert str(raised.value).startswith("add: ")


def test_a_payload_finds_its_parameters_after_they_were_put_in_another_order() -> None:
    waiting = add.task(1, 5).payload

    @task(name="add")
    def newer(*, b: int, a: int, c: int = 0) -> int:
        return a + b + c

    assert newer.call_with(waiting) == ((), {"a": 1, "b": 5})


def test_a_payload_by_position_will_do() -> None:
    assert add.call_with({"args": [1, 5], "kwargs": {}}) == ((), {"a": 1, "b": 5})


def test_options_are_the_fields_of_its_tasks() -> None:
    made = add.with_options(delay=5.0, task_id="x", deadline=100.0, timeout=9.0).task(1)
    assert (made.task_id, made.delay, made.deadline, made.timeout, made.max_retries) == ("x", 5.0, 100.0, 9.0, 5)
    assert made.priority is TaskPriority.HIGH
    assert add.task(1).delay == 0.0, "with_options makes a copy"


def test_limits_and_unique_may_depend_on_the_arguments() -> None:
    @task(
        name="mail",
        limits=lambda user, _text: (Limit(f"user:{user}", max_concurrent=2), Limit("smtp", rate=5)),
        unique=lambda user, _text: f"mail:{user}",
    )
    def mail(user: str, text: str) -> None:
        raise AssertionError

    made = mail.task("ada", "hi")
    assert [limit.key for limit in made.limits] == ["user:ada", "smtp"]
    assert made.unique == "mail:ada"
    assert mail.with_options(limits=Limit("one")).task("ada", "hi").limits == (Limit("one"),)
    assert mail.with_options(unique=lambda _user, _text: None).task("ada", "hi").unique is None


def test_unique_true_is_one_key_for_each_set_of_arguments() -> None:
    once = add.with_options(unique=True)
    assert once.task(1, 2).unique == once.task(b=2, a=1).unique
    assert once.task(1, 2).unique != once.task(1, 3).unique
    assert once.with_options(unique=False).task(1).unique is None


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"retries": 3}, TypeError, "no such option: retries; the options are deadline"),
        ({"timeout": 0}, ValueError, "timeout=0"),
        ({"priority": 7}, ValueError, "priority=7"),
        ({"unique": ""}, ValueError, "unique=''"),
        ({"limits": ["openai"]}, TypeError, "limits has 'openai'"),
        ({"delay": math.nan}, ValueError, "delay=nan"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_at_once(
    options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        add.with_options(**options)
    decorate: Any = task
    with pytest.raises(kind, match=message):
        decorate(name="x", **options)(greet.function)


async def test_without_a_queue_it_shows_the_ways() -> None:
    with pytest.raises(RuntimeError, match=r"queue\.send\(greet, \.\.\.\).*greet\.bind\(queue\).*@task\(queue=queue\)"):
        await greet.send("Ada")


async def test_send_goes_to_the_queue_that_it_is_bound_to() -> None:
    async with TaskQueue() as queue:
        bound = greet.bind(queue)
        first = await bound.send("Ada")
        second = await bound.delay("Bob", times=2)
        third = await task(queue=queue, name="other")(add.function).send(1, 2)
        assert first.is_new
        found = [await queue.dequeue() for _ in range(3)]
        assert [one and one.task_id for one in found] == [first.task_id, second.task_id, third.task_id]
        assert greet.queue is None


def test_a_blocking_queue_is_not_bound() -> None:
    with TaskQueue() as queue:
        unbound: Any = queue
        with pytest.raises(TypeError, match=r"queue\.send"):
            greet.bind(unbound)


async def test_a_send_whose_identity_is_taken_gives_the_task_that_is_there() -> None:
    async with TaskQueue() as queue:
        first = await queue.send(greet.with_options(unique="hello"), "Ada")
        second = await queue.send(greet.with_options(unique="hello"), "Bob")
        third = await queue.send(greet.with_options(task_id=first.task_id), "Eve")
        assert (first.is_new, second.is_new, third.is_new) == (True, False, False)
        assert second.task_id == third.task_id == first.task_id


def test_results_come_back_with_their_type() -> None:
    stored = msgspec.msgpack.encode({"Ada": User("Ada")})
    assert wide.read_result(stored) == {"Ada": User("Ada")}
    assert add.read_result(msgspec.msgpack.encode(3)) == 3
    with pytest.raises(TypeError, match="add returned 'three', not what its annotation says"):
        add.read_result(msgspec.msgpack.encode("three"))

    @task(name="free")
    def free():  # type: ignore[no-untyped-def]
        return None

    assert free.read_result(None) is None
    assert free.read_result(msgspec.msgpack.encode([1])) == [1]


def test_it_is_pickled_by_its_name() -> None:
    assert pickle.loads(pickle.dumps(add)) is add
    assert pickle.loads(pickle.dumps(add.with_options(delay=5.0)))(1) == 3
    assert copy.copy(add).task(1).task_type == "add"


def not_a_task() -> Iterator[int]:
    yield 1


async def not_one_either() -> AsyncIterator[int]:
    yield 1


class Service:
    def method(self, number: int) -> int:
        return number


def identity(number: int) -> int:
    return number


identity.__qualname__ = "identity.<locals>.<lambda>"


@pytest.mark.parametrize(
    ("function", "kind", "message"),
    [
        (identity, ValueError, "has no name"),
        (functools.partial(add.function, 1), ValueError, "has no name"),
        (not_a_task, TypeError, "is a generator"),
        (not_one_either, TypeError, "is a generator"),
        (Service.method, TypeError, "is a method"),
        (5, TypeError, "decorate a function"),
    ],
)
def test_what_cannot_be_a_task_is_refused(function: Any, kind: type[Exception], message: str) -> None:
    decorate: Any = task
    with pytest.raises(kind, match=message):
        decorate(function)


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(ValueError, match="name=''"):
        task(name="")(add.function)


def test_other_callables_need_a_name() -> None:
    class Adder:
        def __init__(self, start: int) -> None:
            self.start = start

        def __call__(self, number: int) -> int:
            return self.start + number

    adder = task(name="adder")(Adder(10))
    assert adder(5) == 15
    assert adder.call_with(adder.task(5).payload) == ((), {"number": 5})
    with pytest.raises(TypeError, match="number='x' is not of type int"):
        adder.task("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    partial = task(name="partial")(functools.partial(add.function, 1))
    assert partial(5) == 6
    assert partial.call_with(partial.task(b=5).payload) == ((), {"b": 5})


def test_an_annotation_that_cannot_be_read_is_refused_at_once() -> None:
    def unclear(given: list[int] | tuple[int, ...]) -> None:
        raise AssertionError

    with pytest.raises(TypeError, match="its parameter 'given' cannot be read from a store"):
        task(name="unclear")(unclear)

    def unclear_result() -> User | Point | dict[str, int]:
        raise AssertionError

    with pytest.raises(TypeError, match="its result cannot be read from a store"):
        task(name="unclear")(unclear_result)


def test_names_that_come_later_are_found_at_the_first_call() -> None:
    @task(name="early")
    def early(given: Later) -> None:
        raise AssertionError

    assert early.call_with(early.task(Later(5)).payload) == ((), {"given": Later(5)})
    with pytest.raises(TypeError, match="got `str`"):
        early.task("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


class Later(msgspec.Struct):
    number: int


def test_names_that_are_only_for_type_checkers_are_refused_at_the_call() -> None:
    @task(name="never")
    def never(given: OnlyForCheckers) -> None:
        raise AssertionError

    made: Any = never
    with pytest.raises(TypeError, match=r"'OnlyForCheckers' is not defined.*not only under TYPE_CHECKING"):
        made.task(1)
    with pytest.raises(TypeError, match="OnlyForCheckers"):
        made.call_with({"args": [1], "kwargs": {}})


def test_annotations_may_say_more() -> None:
    @task(name="more")
    def more(
        kind: Literal["a", "b"], size: Annotated[int, msgspec.Meta(ge=0)], anything: object, **options: Unpack[More]
    ) -> None:
        raise AssertionError

    assert more.call_with(more.task("a", 1, [1], loud=True).payload)[1]["loud"] is True
    made: Any = more
    with pytest.raises(TypeError, match="kind='c' is no"):
        made.task("c", 1, 1)
    with pytest.raises(TypeError, match="size=-1 is no"):
        made.task("a", -1, 1)


def test_each_function_is_a_task_function() -> None:
    functions: list[TaskFunction[..., Any]] = [greet, add, wide]
    assert [isinstance(function.task, object) for function in functions] == [True] * 3
    assert isinstance(add.task(1), Task)
