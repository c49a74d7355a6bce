"""Exceptions of remote actors come back as themselves, with their fields, or as a wrapper that names their class."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuelight import (
    Actor,
    ActorCrashed,
    Crashed,
    Interrupted,
    RateLimited,
    Ref,
    ReplyError,
    Request,
    StreamRequest,
    child,
    on,
)
from cuelight.redis import RemoteError
from cuelight.redis._actors._errors import ErrorTypes, path_of, raised_of, restored
from cuelight.redis._actors._frames import FailFrame, Raised, batch_of, frames_of
from helpers.nodes import pair


class Overdrawn(ReplyError):
    """Asks for two arguments and has its own text."""

    currency = "EUR"

    def __init__(self, balance: Decimal, wanted: Decimal) -> None:
        super().__init__(f"{wanted} of {balance}")
        self.balance, self.wanted = balance, wanted


class KeywordOnly(ReplyError):
    code = 0

    def __init__(self, *, code: int) -> None:
        super().__init__()
        self.code = code

    def __str__(self) -> str:
        return f"code {self.code}"


class Slotted(ReplyError):
    __slots__ = ("never", "since")

    def __init__(self, since: datetime) -> None:
        super().__init__("slotted")
        self.since = since


class NotFound(ReplyError, KeyError):
    """Of two families."""


class HoldsAConnection(ReplyError):
    connection: Any = None

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.connection = object()


class Outage(ConnectionError):
    """A crash that is registered."""

    def __init__(self, host: str, attempts: int) -> None:
        super().__init__(7, "gone")
        self.host, self.attempts = host, attempts


class Unlisted(Exception):
    """A crash that is not."""


class Nameless(Exception):
    def __str__(self) -> NoReturn:
        raise RuntimeError("no text")


def chained() -> ReplyError:
    error = Overdrawn(Decimal("1.10"), Decimal(2))
    error.__cause__ = ValueError("in the middle")
    error.__cause__.__cause__ = Unlisted("at the end")
    return error


def noted() -> ReplyError:
    error = ReplyError("noted")
    for number in range(100):
        error.add_note(f"note {number} " + "x" * 100_000)
    return error


def endless() -> ReplyError:
    error = ReplyError("endless")
    error.__cause__ = error
    return error


def nested() -> ReplyError:
    error: Any = ReplyError("outermost")
    inner = error
    for number in range(10_000):
        inner.__cause__ = ValueError(number)
        inner = inner.__cause__
    return error  # type: ignore[no-any-return]


def local_class() -> ReplyError:
    class Local(ReplyError):
        pass

    return Local("of a function")


MAKE: dict[str, Any] = {
    "overdrawn": lambda: Overdrawn(Decimal("1.10"), Decimal(2)),
    "keyword only": lambda: KeywordOnly(code=3),
    "slotted": lambda: Slotted(datetime(2026, 1, 2, tzinfo=UTC)),
    "not found": lambda: NotFound("row 7"),
    "rate limited": lambda: RateLimited(2.5, "openai"),
    "outage": lambda: Outage("db1", 3),
    "no file": lambda: FileNotFoundError(2, "No such file", "/x"),
    "key": lambda: KeyError("x"),
    "undecodable": lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    "attribute": lambda: AttributeError("no x", name="x", obj=object()),
    "import": lambda: ImportError("no m", name="m", path="/m"),
    "unlisted": lambda: Unlisted("who"),
    "nameless": Nameless,
    "group": lambda: ExceptionGroup("several", [ValueError("a")]),
    "connection": lambda: HoldsAConnection("held"),
    "local": local_class,
    "chained": chained,
    "noted": noted,
    "endless": endless,
    "nested": nested,
    "half": lambda: ReplyError("no " + os.fsdecode(b"caf\xe9")),
    "half field": lambda: Overdrawn(os.fsdecode(b"caf\xe9"), {"a": ["\udc80"]}),  # type: ignore[arg-type] # pyright: ignore
    "long": lambda: ValueError("x" * 1_000_000),
}


class Fails(Request[int]):
    how: str


class Chunks(StreamRequest[int]):
    how: str


class Failing(Actor[Fails | Chunks]):
    @on(Fails)
    async def fails(self, message: Fails) -> int:
        if message.how == "well":
            return 1
        raise MAKE[message.how]()

    @on(Chunks)
    async def chunks(self, message: Chunks) -> AsyncIterator[int]:
        yield 1
        raise MAKE[message.how]()


MESSAGES = [Fails, Chunks, Overdrawn, Outage]


async def raised(how: str, kind: type[BaseException], messages: list[Any] | None = None) -> Any:
    """What an asker on another node gets; the node of the actor and its other asks are as well as before."""
    async with pair(messages=messages or MESSAGES) as (here, there):
        await there.expose(await there.spawn(Failing), "bystander")
        await there.expose(await there.spawn(child(Failing).with_options(restart="temporary")), "failing")
        bystander: Ref[Fails] = await here.resolve("bystander")
        with pytest.raises(kind) as error:
            await (await here.resolve("failing")).ask(Fails(how))
        assert await bystander.ask(Fails("well")) == 1
        return error.value


async def test_a_registered_refusal_comes_back_with_its_fields() -> None:
    error = await raised("overdrawn", Overdrawn)
    assert (error.balance, error.wanted, str(error)) == (Decimal("1.10"), Decimal(2), "2 of 1.10")
    assert isinstance(error.balance, Decimal)


@pytest.mark.parametrize(
    ("how", "kind", "fields"),
    [
        ("keyword only", KeywordOnly, {"code": 3}),
        ("slotted", Slotted, {"since": datetime(2026, 1, 2, tzinfo=UTC)}),
        ("not found", NotFound, {"args": ("row 7",)}),
    ],
)
async def test_a_refusal_that_both_nodes_have_loaded_comes_back_as_itself(
    how: str, kind: type[ReplyError], fields: dict[str, object]
) -> None:
    error = await raised(how, kind)
    assert {name: getattr(error, name) for name in fields} == fields
    assert type(error) is kind
    assert not hasattr(error, "never")


@pytest.mark.parametrize(
    ("how", "kind", "fields"),
    [
        ("outage", Outage, {"host": "db1", "attempts": 3, "errno": 7, "args": (7, "gone")}),
        ("rate limited", RateLimited, {"retry_after": 2.5, "key": "openai"}),
        ("no file", FileNotFoundError, {"errno": 2, "filename": "/x", "args": (2, "No such file")}),
        ("key", KeyError, {"args": ("x",)}),
        ("undecodable", UnicodeDecodeError, {"object": b"\xff", "reason": "bad"}),
        ("attribute", AttributeError, {"name": "x", "obj": None}),
        ("import", ImportError, {"name": "m", "path": "/m", "msg": "no m"}),
    ],
)
async def test_a_crash_comes_back_as_itself_if_its_class_is_registered_or_built_in(
    how: str, kind: type[Exception], fields: dict[str, object]
) -> None:
    error = await raised(how, ActorCrashed)
    assert type(error.__cause__) is kind
    assert {name: getattr(error.__cause__, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("how", "kind", "text", "note"),
    [
        ("unlisted", "Unlisted", "who", "test_remote_errors:Unlisted is not registered with its node"),
        ("nameless", "Nameless", "<Nameless: its str() raised RuntimeError>", "Nameless is not registered"),
        ("group", "ExceptionGroup", "several (1 sub-exception)", "is not registered"),
        ("long", "ValueError", "x" * 2000 + "… (1000000 characters)", "more than 65536"),
    ],
)
async def test_a_crash_of_another_class_is_wrapped_and_named(how: str, kind: str, text: str, note: str) -> None:
    error = await raised(how, ActorCrashed)
    cause = error.__cause__
    assert isinstance(cause, RemoteError)
    assert (cause.kind, cause.text) == (kind, text)
    assert note in cause.__notes__[0]


async def test_a_refusal_of_which_a_field_cannot_travel_is_a_plain_one_that_says_so() -> None:
    error = await raised("connection", ReplyError)
    assert type(error) is ReplyError
    assert str(error) == "HoldsAConnection: held"
    assert "['connection'] cannot be stored: it is of type object" in error.__notes__[0]


async def test_a_refusal_whose_class_is_known_to_one_side_only_is_a_plain_one_that_names_it() -> None:
    error = await raised("local", ReplyError)
    assert type(error) is ReplyError
    assert str(error) == "Local: of a function"
    assert "<locals>.Local is not registered with its node" in error.__notes__[0]


async def test_causes_come_along() -> None:
    error = await raised("chained", Overdrawn)
    assert type(error.__cause__) is ValueError
    assert isinstance(error.__cause__.__cause__, RemoteError)
    assert error.__cause__.__cause__.kind == "Unlisted"


@pytest.mark.parametrize("how", ["endless", "nested"])
async def test_causes_are_bounded(how: str) -> None:
    error = await raised(how, ReplyError)
    depth = 0
    while error.__cause__ is not None:
        error, depth = error.__cause__, depth + 1
    assert depth == 8


async def test_notes_come_along_and_are_bounded() -> None:
    error = await raised("noted", ReplyError)
    assert len(error.__notes__) == 10
    assert error.__notes__[9].startswith("note 9 xxx")
    assert all(len(note) < 1100 for note in error.__notes__)


async def test_text_that_cannot_be_encoded_comes_back_with_escapes() -> None:
    error = await raised("half", ReplyError)
    assert error.args == (r"no caf\udce9",)
    error = await raised("half field", Overdrawn)
    assert (error.balance, error.wanted) == (r"caf\udce9", {"a": [r"\udc80"]})


async def test_a_stream_ends_with_the_refusal_of_its_handler() -> None:
    async with pair(messages=MESSAGES) as (here, there):
        await there.expose(await there.spawn(Failing), "failing")
        ref = await here.resolve("failing")
        got: list[int] = []
        with pytest.raises(Overdrawn) as refusal:
            async for chunk in ref.stream(Chunks("overdrawn")):
                got += [chunk]
        assert got == [1]
        assert refusal.value.balance == Decimal("1.10")


async def test_watchers_are_told_the_exception_with_its_fields() -> None:
    async with pair(messages=MESSAGES) as (here, there):
        await there.expose(await there.spawn(child(Failing).with_options(restart="temporary")), "failing")
        ref = await here.resolve("failing")
        with pytest.raises(ActorCrashed):
            await ref.ask(Fails("outage"))
        exit_ = await ref.ended()
        assert isinstance(exit_, Crashed)
        assert isinstance(exit_.error, Outage)
        assert exit_.error.host == "db1"


async def test_the_exceptions_of_a_module_are_registered_with_its_messages() -> None:
    error = await raised("unlisted", ActorCrashed, [sys.modules[__name__]])
    assert isinstance(error.__cause__, Unlisted)


def types() -> ErrorTypes:
    known = ErrorTypes()
    known.add(Overdrawn, "Overdrawn")
    return known


def test_an_exception_of_another_node_keeps_its_name_when_it_is_passed_on() -> None:
    first = restored(raised_of(Unlisted("who"), types()), types())
    again = restored(raised_of(first, types()), types())
    assert isinstance(again, RemoteError)
    assert (again.kind, again.text) == ("Unlisted", "who")
    assert again.__notes__ == first.__notes__
    assert (copy.copy(again).kind, str(copy.copy(again))) == ("Unlisted", "Unlisted: who")


class Hooked(ReplyError):
    """Whatever it has of its own raises."""

    @property
    def __cause__(self) -> Any:  # type: ignore[override]
        raise ValueError("no cause")

    @property
    def args(self) -> Any:  # type: ignore[override]
        raise ValueError("no arguments")

    def __getattribute__(self, name: str) -> Any:
        raise ValueError("no attributes")

    def __setattr__(self, name: str, value: object) -> None:
        raise ValueError("no attributes")


def test_no_code_of_a_class_runs_when_its_exception_travels() -> None:
    error = restored(raised_of(Hooked("x"), types()), types())
    assert type(error) is Hooked
    assert BaseException.args.__get__(error) == ("x",)  # type: ignore[attr-defined]


class Meta(type):
    @property
    def __module__(cls) -> str:  # type: ignore[override]
        raise ValueError("no module")


def test_a_class_that_does_not_say_where_it_is_from_is_wrapped() -> None:
    class Homeless(ReplyError, metaclass=Meta):
        pass

    error = restored(raised_of(Homeless("x"), types()), types())
    assert isinstance(error, RemoteError)
    assert error.kind == "Homeless"


@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_program_is_not_taken_for_a_failure_to_travel(
    ending: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    came = raised_of(Overdrawn(Decimal(1), Decimal(2)), types())

    def end(*_: object) -> NoReturn:
        raise ending

    monkeypatch.setattr("cuelight.redis._actors._errors.encode", end)
    monkeypatch.setattr("cuelight.redis._actors._errors.decode", end)
    with pytest.raises(ending):
        raised_of(Overdrawn(Decimal(1), Decimal(2)), types())
    with pytest.raises(ending):
        restored(came, types())


@pytest.mark.parametrize(
    "name",
    [
        "Nothing",
        "builtins:eval",
        "builtins:KeyboardInterrupt",
        "builtins:ExceptionGroup",
        "subprocess:CalledProcessError",
        "not_loaded_yet:Error",
        "cuelight.errors:anyio.ClosedResourceError",
        f"{__name__}:Unlisted",
        f"{__name__}:MAKE.keys",
        ":",
    ],
)
def test_a_name_that_is_none_of_a_known_exception_makes_a_wrapper(name: str) -> None:
    good = raised_of(Overdrawn(Decimal(1), Decimal(2)), types())
    error = restored(Raised("Odd", "text", name, good.body), types())
    assert isinstance(error, RemoteError)
    assert "is not known to this node" in error.__notes__[0]


BODIES = st.binary(max_size=60) | st.recursive(
    st.none() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.floats(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["args", "fields", "x"]), inner),
    max_leaves=8,
).map(lambda value: batch_of([value])[1:])


@given(st.sampled_from(["Overdrawn", path_of(Slotted), "builtins:OSError", "builtins:UnicodeDecodeError"]), BODIES)
def test_whatever_came_of_an_exception_becomes_one(name: str, body: bytes) -> None:
    error = restored(Raised("Odd", "text", name, body, why="", notes=("a",)), types())
    assert isinstance(error, Exception)
    assert str(error) is not None


def test_what_travels_is_the_same_at_the_other_end() -> None:
    frame = FailFrame(1, "ReplyError", "x", None, raised_of(chained(), types()))
    assert frames_of(batch_of([frame])) == ([frame], [])


async def test_an_exception_that_is_no_exception_interrupts_its_asker() -> None:
    error = await raised("nameless", Interrupted)
    assert isinstance(error, ActorCrashed)
