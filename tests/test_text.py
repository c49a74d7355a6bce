"""Text about values of users: it never raises, its length is bounded, and it can be encoded."""

import threading
from typing import Any, NoReturn

import pytest

from cuelight._text import describe_error, error_lines, format_traceback, safe_repr, safe_str, type_name
from cuelight.errors import consists_of, control_error, ends_the_program


class Unprintable(Exception):
    """Raises whatever it was given when somebody wants to read it."""

    def __init__(self, raised: BaseException) -> None:
        self.raised = raised

    def __repr__(self) -> NoReturn:
        raise self.raised

    __str__ = __repr__


class Loud(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise ValueError("a str that is none")

    def __len__(self) -> int:
        raise ValueError("no length")


class Named(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise ValueError("no name")


RAISED = [ValueError("x"), RecursionError(), MemoryError(), SystemExit(3), GeneratorExit(), StopIteration()]


@pytest.mark.parametrize("raised", RAISED, ids=lambda raised: type(raised).__name__)
def test_texts_of_hostile_values_never_raise(raised: BaseException) -> None:
    hostile = Unprintable(raised)
    kind = type(raised).__name__
    assert safe_repr(hostile) == f"<Unprintable: its repr() raised {kind}>"
    assert safe_str(hostile) == f"<Unprintable: its str() raised {kind}>"
    assert describe_error(hostile) == f"Unprintable: <Unprintable: its str() raised {kind}>"
    assert error_lines(ExceptionGroup("several", [hostile, ValueError("y")]))[1:] == [
        f"  Unprintable: <Unprintable: its str() raised {kind}>",
        "  ValueError: y",
    ]
    assert "Unprintable" in format_traceback(hostile)


def test_a_text_of_a_subclass_of_str_is_taken_as_a_plain_one() -> None:
    class Odd:
        def __repr__(self) -> str:
            return Loud("odd")

    assert safe_repr(Odd()) == "odd"
    assert type(safe_repr(Odd())) is str


def test_a_class_without_a_name_is_an_object() -> None:
    class Nameless(metaclass=Named):
        pass

    assert type_name(Nameless()) == "object"


def test_texts_are_cut_with_their_length_and_can_be_encoded() -> None:
    assert safe_str("x" * 10**7, 5) == "xxxxx… (10000000 characters)"
    assert safe_str("caf\udce9") == "caf\\udce9"
    assert describe_error(ValueError()) == "ValueError"
    safe_str("\ud800" * 10).encode()


def test_a_recursive_repr_is_named() -> None:
    class Endless:
        def __repr__(self) -> str:
            return repr(self)

    assert safe_repr(Endless()) == "<Endless: its repr() raised RecursionError>"


def test_groups_of_many_errors_and_of_deep_ones_are_cut() -> None:
    wide = ExceptionGroup("wide", [ValueError(number) for number in range(10_000)])
    assert len(error_lines(wide)) == 21
    assert error_lines(wide)[-1].startswith("... and ")
    deep: Any = ValueError("inside")
    for _ in range(3_000):
        deep = ExceptionGroup("deep", [deep])
    assert error_lines(deep)[-1].strip() == "..."
    assert "deep" in format_traceback(deep)


def test_a_group_whose_members_cannot_be_read_is_one_line() -> None:
    class Closed(ExceptionGroup[Exception]):
        @property
        def exceptions(self) -> tuple[Exception, ...]:
            raise ValueError("closed")

    assert error_lines(Closed("several", [ValueError("x")])) == ["Closed: several (1 sub-exception)"]


def test_an_exception_is_not_asked_for_its_class() -> None:
    def refuse(self: object) -> NoReturn:
        raise ValueError("no class")

    lying: Any = type("Lying", (Exception,), {"__class__": property(refuse)})
    group: Any = ExceptionGroup("two", [lying(), lying()])
    assert error_lines(group) == ["ExceptionGroup: two (2 sub-exceptions)", "  Lying", "  Lying"]
    assert "Lying" in format_traceback(group)
    for error in (lying(), group):
        assert not ends_the_program(error)
        assert not consists_of(error, ValueError)
        assert control_error(error, ValueError) is None
    assert control_error(lying(), lying) is not None


def raised_by_many_frames(depth: int) -> Exception:
    def fall(left: int) -> None:
        if left:
            fall(left - 1)
        raise ValueError("y" * 1_000_000)

    try:
        fall(depth)
    except ValueError as error:
        return error
    raise AssertionError


def test_a_traceback_is_bounded_and_shows_where_the_error_was_raised() -> None:
    text = format_traceback(raised_by_many_frames(500))
    assert len(text) < 21_000
    assert "characters left out" in text
    assert 'raise ValueError("y" * 1_000_000)' in text


@pytest.fixture
def interrupts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    heard: list[str] = []
    monkeypatch.setattr("_thread.interrupt_main", lambda: heard.append(threading.current_thread().name))
    return heard


def test_a_ctrl_c_in_the_middle_of_a_text_is_delivered_again(interrupts: list[str]) -> None:
    assert safe_repr(Unprintable(KeyboardInterrupt())) == "<Unprintable: its repr() raised KeyboardInterrupt>"
    assert len(interrupts) == 1
