"""Handlers, and what is wrong with a class is said when it is defined."""

# Classes are defined here to see that they cannot be.
# pyright: reportUnusedClass=false, reportIncompatibleMethodOverride=false

from collections.abc import AsyncIterator
from types import FunctionType
from typing import Any, Generic, TypeVar

import pytest

from cuelight import Actor, ActorSystem, Message, NotStarted, Request, StreamRequest, Terminated, child, on
from cuelight.actors import Start
from cuelight.testing import wait_until_idle
from helpers.players import Get, Plain, Put, outcome

T = TypeVar("T")


class Base(Message):
    value: int = 0


class Derived(Base):
    pass


class Ask(Request[str]):
    pass


class AskMore(Ask):
    pass


class Numbers(StreamRequest[int]):
    pass


class MoreNumbers(Numbers):
    pass


class Both(Actor[Base | Ask | Numbers]):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    @on(Base)
    async def base(self, message: Base) -> None:
        self.seen.append(message)

    @on(Ask)
    async def ask(self, message: Ask) -> str:
        return type(message).__name__

    @on(Numbers)
    async def numbers(self, message: Numbers) -> AsyncIterator[int]:
        for number in range(3):
            yield number


class PlainBoth(Actor[Base | Ask]):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    @on(Base)
    def base(self, message: Base) -> None:
        self.seen.append(message)

    @on(Ask)
    def ask(self, message: Ask) -> str:
        return type(message).__name__


@pytest.mark.parametrize("kind", [Both, PlainBoth])
async def test_a_handler_takes_subclasses_of_its_message(kind: Any) -> None:
    async with ActorSystem() as system:
        ref: Any = await system.spawn(kind)
        for message in (Derived(1), Base(2), Derived(3)):
            await ref.tell(message)
        assert await ref.ask(AskMore()) == "AskMore"
        assert await ref.ask(AskMore()) == "AskMore"
        assert ref._cell.actor.seen == [Derived(1), Base(2), Derived(3)]


async def test_a_subclass_of_a_stream_request_is_streamed_and_no_ask_or_tell_of_it_is_handled() -> None:
    async with ActorSystem() as system:
        ref: Any = await system.spawn(Both)
        assert [number async for number in ref.stream(MoreNumbers())] == [0, 1, 2]
        assert isinstance(await outcome(ref.ask(Numbers())), NotStarted)
        await ref.tell(Numbers())
        await wait_until_idle(system)
        assert system.dead_letters.counts == {"unhandled": 1}
        plain: Any = await system.spawn(Plain)
        with pytest.raises(NotStarted, match="no handler"):
            [number async for number in plain.stream(Numbers())]


async def test_unhandled_messages_are_dead_letters_and_fail_asks() -> None:
    async with ActorSystem() as system:
        for kind in (Plain, Both):
            ref: Any = await system.spawn(kind)
            await ref.tell("what?")
            with pytest.raises(NotStarted, match=r"has no handler for 'why\?': add one with @on"):
                await ref.ask("why?")
        assert [(one.message, one.reason) for one in system.dead_letters] == [("what?", "unhandled")] * 2


async def test_handlers_are_inherited_and_overridden() -> None:
    class Louder(Plain):
        def put(self, message: Put) -> None:  # the decorator is inherited
            self.items.append(("loud", message.item))

        @on(Get)
        async def get_later(self, message: Get) -> list[Any]:  # another method for the same message
            return [*self.items, "later"]

    async with ActorSystem() as system:
        ref = await system.spawn(Louder)
        await ref.tell(Put(1))
        assert await ref.ask(Get()) == [("loud", 1), "later"]


def test_a_message_without_a_handler_is_an_error_of_the_class() -> None:
    with pytest.raises(TypeError, match=r"Forgetful takes Put but does not handle it: add a method with @on\(Put\)"):

        class Forgetful(Actor[Put | Get]):
            @on(Get)
            def get(self, message: Get) -> list[Any]:
                return []

    with pytest.raises(TypeError, match="One takes Put"):

        class One(Actor[Put]):
            pass


def test_two_handlers_of_one_message_are_an_error_of_the_class() -> None:
    with pytest.raises(TypeError, match="Twice handles Put twice, in one and two"):

        class Twice(Actor[Put]):
            @on(Put)
            def one(self, message: Put) -> None: ...
            @on(Put)
            def two(self, message: Put) -> None: ...


def test_a_handler_of_a_message_that_is_not_taken_is_an_error_of_the_class() -> None:
    with pytest.raises(TypeError, match=r"Greedy.get handles Get, which is not in Actor\[...\]"):

        class Greedy(Actor[Put]):
            @on(Put)
            def put(self, message: Put) -> None: ...
            @on(Get)
            def get(self, message: Get) -> list[Any]:
                return []


def test_hooks_with_a_wrong_signature_are_an_error_of_the_class() -> None:
    with pytest.raises(TypeError, match=r"NoWhy.started must take one argument, why"):

        class NoWhy(Actor[Any]):
            def started(self) -> None:  # type: ignore[override]
                pass

    with pytest.raises(TypeError, match="is a hook of Actor: name your attribute otherwise"):

        class NotAHook(Actor[Any]):
            stopped = 5  # type: ignore[assignment]

    class Fine(Actor[Any]):
        def started(self, *why: Start) -> None:
            pass

        def stopped(self, why: Any, extra: int = 0) -> None:
            pass

    assert Fine.__table__.hooks == {"started", "stopped"}


def test_on_wants_a_class() -> None:
    def handler(self: Any, message: Any) -> None: ...

    wrong: Any = handler

    with pytest.raises(TypeError, match=r"name the class of the message, as in @on\(Add\)"):
        on(wrong)


def test_classes_that_declare_no_messages_are_not_checked() -> None:
    class Generics(Actor[T], Generic[T]):
        pass

    class Anything(Actor[Any]):
        @on(Put)
        def put(self, message: Put) -> None: ...

    class Sub(Anything):
        @on(Get)
        def get(self, message: Get) -> list[Any]:
            return []

        @on(Terminated)
        def gone(self, message: Terminated) -> None: ...

    class Bare(Actor):  # type: ignore[type-arg]
        pass

    assert not Bare.__table__.calls
    assert set(Sub.__table__.calls) == {Put, Get, Terminated}
    assert not Generics.__table__.calls


def test_a_base_class_may_be_abstract() -> None:
    class Half(Actor[Put | Get], abstract=True):
        @on(Put)
        def put(self, message: Put) -> None: ...

    class Whole(Half):
        @on(Get)
        def get(self, message: Get) -> list[Any]:
            return []

    assert Whole.__table__.plain
    with pytest.raises(TypeError, match="StillHalf takes Get"):

        class StillHalf(Half):
            pass


def test_what_a_class_needs_is_known() -> None:
    table = Both.__table__
    assert table.async_calls.keys() >= {Base, Ask}
    assert Numbers in table.streaming
    assert not table.plain
    assert PlainBoth.__table__.plain


def test_messages_are_frozen_tagged_values() -> None:
    assert Base(1) == Base(1) != Base(2)
    with pytest.raises(AttributeError):
        setattr(Base(1), "value", 2)  # noqa: B010
    assert Base.__struct_config__.tag == "Base"
    for message in (Ask(), Numbers()):
        assert message.__message__() is message
    assert Ask().__reply__() is not None
    assert Numbers().__chunk__() is not None
    assert repr(child(Plain)) == "<child Plain>"
    assert repr(child(Plain).with_options(name="x")) == "<child Plain named 'x'>"


def _none(self: Any) -> None: ...


def _nothing() -> None: ...


def _two(self: Any, message: Any, more: Any) -> None: ...


def _one(self: Any, message: Any, more: int = 1) -> None: ...


def test_a_handler_must_not_hide_what_every_actor_has() -> None:
    for name in ("run", "started", "stopped", "restarting", "watch", "stop", "name", "spawn"):
        with pytest.raises(TypeError, match=rf"Odd.{name} handles Base and hides Actor.{name}"):
            type("Odd", (Actor,), {name: _marked(_one)})


def test_a_handler_must_take_a_message() -> None:
    for function in (_none, _nothing, _two):
        with pytest.raises(TypeError, match="cannot handle a message: it must take one argument besides self"):
            type("Odd", (Actor,), {"handler": _marked(function)})
    for function in (_one, Unsigned()):
        type("Fine", (Actor,), {"handler": _marked(function)})


def _marked(function: Any) -> Any:
    """As `@on(Base)`, on a copy."""
    if isinstance(function, Unsigned):
        return on(Base)(function)
    copy: Any = FunctionType(function.__code__, function.__globals__, argdefs=function.__defaults__)
    return on(Base)(copy)


class Unsigned:
    """A callable that does not say how it is called."""

    @property
    def __signature__(self) -> Any:
        raise ValueError("no signature")

    def __call__(self, *args: Any) -> None: ...


def test_what_every_actor_has_cannot_be_set() -> None:
    class Named(Actor[Base], abstract=True):
        pass

    actor = object.__new__(Named)
    for name in ("name", "path", "ref", "system", "inbox", "children", "remaining", "spent"):
        with pytest.raises(AttributeError, match=rf"Named.{name} is what every actor has and cannot be set"):
            setattr(actor, name, "mine")


async def _takes_no_inbox() -> None: ...


async def _takes_an_inbox(inbox: Any, start: int, *, step: int = 1) -> None: ...


async def test_the_function_of_an_actor_is_checked_when_it_is_spawned() -> None:
    loose: Any = _takes_no_inbox
    wrong: Any = _takes_an_inbox
    async with ActorSystem() as system:
        with pytest.raises(TypeError, match=r"cannot start _takes_no_inbox\(\).* as an actor: it is called with"):
            await system.spawn(loose)
        with pytest.raises(TypeError, match="missing a required argument: 'start'"):
            await system.spawn(wrong)
        with pytest.raises(TypeError, match="got an unexpected keyword argument 'stride'"):
            child(wrong, 1, stride=2)
        ref: Any = await system.spawn(_takes_an_inbox, 1, step=2)
        await ref.ended()
        assert not system.root.children or not list(system.root.children.cells())


async def test_a_message_of_a_class_that_was_defined_twice_is_told_so() -> None:
    twin: Any = type("Put", (Message,), {"__annotations__": {"item": int}, "__module__": "reloaded"})
    async with ActorSystem() as system:
        ref: Any = await system.spawn(Plain)
        with pytest.raises(
            NotStarted, match=r"it handles another class of that name, of the module helpers.players: was its"
        ):
            await ref.ask(twin(1))


async def test_messages_without_a_handler_are_warned_of_a_few_times(caplog: pytest.LogCaptureFixture) -> None:
    class Other(Message):
        pass

    async with ActorSystem() as system:
        ref: Any = await system.spawn(Plain)
        with caplog.at_level("WARNING"):
            for _ in range(20):
                await ref.tell(Other())
            await wait_until_idle(system)
        assert system.dead_letters.counts["unhandled"] == 20
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 5
    assert "has no handler for" in warnings[0].getMessage()
    assert "add one with @on(...)" in warnings[0].getMessage()
