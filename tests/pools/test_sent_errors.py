"""Exceptions as bytes and back: packed and unpacked in one process."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from cuelight._text import describe_error
from cuelight.pools._processes import _sent_errors as sent
from helpers import process_jobs as jobs


def returned(error: BaseException) -> Any:
    """What this exception is once it was sent."""
    report: list[tuple[Any, ...]] = pickle.loads(pickle.dumps(sent.dump(error, describe_error)))
    return sent.load(report, describe_error)


class Unnamed(type):
    @property
    def __module__(cls) -> str:  # type: ignore[override]  # that is the fault
        raise ZeroDivisionError


class Chainless(Exception):
    """Refuses to be given a cause."""

    def __setattr__(self, name: str, value: object) -> None:
        raise LookupError(name)


class Interrupting(Exception):
    def __reduce__(self) -> tuple[Any, ...]:
        return interrupt, ()


def interrupt() -> None:
    raise KeyboardInterrupt


class OfMain(Exception):
    """Stands for a class of the main program: its module has another name in a worker process."""


def test_an_exception_comes_back_with_its_arguments_and_attributes_without_a_call_of_its_constructor() -> None:
    keyword = jobs.Keyword(code=404)
    keyword.late = "set later"
    keyword.add_note("a note")
    back = returned(keyword)
    assert type(back) is jobs.Keyword
    assert (back.args, vars(back)) == (("code 404",), {"code": 404, "late": "set later", "__notes__": ["a note"]})
    assert returned(jobs.Prefix("x")).args == ("prefix: x",)  # not twice


def test_the_fields_of_builtin_exceptions_come_back() -> None:
    back = returned(FileNotFoundError(2, "not there", "there.txt"))
    assert (type(back), back.errno, back.strerror, back.filename) == (FileNotFoundError, 2, "not there", "there.txt")
    assert back.filename2 is None
    decode = returned(UnicodeDecodeError("utf-8", b"ab\xff", 2, 3, "invalid start byte"))
    assert str(decode) == "'utf-8' codec can't decode byte 0xff in position 2: invalid start byte"


def test_a_field_that_was_never_set_is_left_out() -> None:
    bare = UnicodeDecodeError.__new__(UnicodeDecodeError)
    back = returned(bare)
    assert (type(back), back.args) == (UnicodeDecodeError, ())


def test_filled_slots_come_back_and_empty_ones_stay_empty() -> None:
    slotted = jobs.Slotted("slotted")
    slotted.place = 7
    back = returned(slotted)
    assert (type(back), back.args, back.place, hasattr(back, "empty")) == (jobs.Slotted, ("slotted",), 7, False)


def test_a_class_that_says_how_it_is_pickled_has_the_say() -> None:
    back = returned(jobs.OwnPickling(5))
    assert (type(back), back.code) == (jobs.OwnPickling, 5)


def test_a_group_comes_back_with_its_members_and_attributes() -> None:
    group = jobs.Group("group", [jobs.Picky(3, 4), ExceptionGroup("inner", [jobs.Keyword(code=1)])])
    group.label = "labelled"
    back = returned(group)
    assert (type(back), back.message, back.label) == (jobs.Group, "group", "labelled")
    picky, inner = back.exceptions
    assert (picky.one, picky.two, inner.message, inner.exceptions[0].code) == (3, 4, "inner", 1)


def test_causes_and_contexts_come_back_even_in_a_circle() -> None:
    first, second, third = ValueError("first"), KeyError("second"), OSError("third")
    first.__cause__, second.__cause__, first.__context__ = second, first, third
    first.__suppress_context__ = False
    back = returned(first)
    assert (type(back.__cause__), type(back.__context__)) == (KeyError, OSError)
    assert back.__cause__.__cause__ is back
    assert (back.__suppress_context__, back.__cause__.__suppress_context__) == (False, True)


def test_a_group_of_too_many_is_told_in_words() -> None:
    back = returned(ExceptionGroup("crowd", [ValueError(number) for number in range(sent.MOST)]))
    assert type(back) is RuntimeError
    assert "crowd (1000 sub-exceptions)" in str(back)
    assert str(back).endswith("cannot be restored here: it holds too many exceptions, or is nested too deep)")


def test_causes_are_followed_so_deep_and_no_deeper() -> None:
    deep = ValueError(0)
    last: BaseException = deep
    for number in range(1, sent.DEPTH + 10):
        last.__cause__ = ValueError(number)
        last = last.__cause__
    back, followed = returned(deep), 0
    while (back := back.__cause__) is not None:
        followed += 1
    assert followed == sent.DEPTH


def test_an_exception_is_sent_although_its_cause_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(error: BaseException) -> None:
        raise MemoryError

    monkeypatch.setattr(sent, "_CAUSE", exhausted)
    back = returned(ValueError("itself"))
    assert (type(back), back.args, back.__cause__) == (ValueError, ("itself",), None)


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (jobs.Carrier(), "Can't"),
        (jobs.Liar("liar"), "it comes back as something else, of type ValueError"),
        (jobs.Refuser("refuser"), "LookupError: no"),
    ],
)
def test_what_cannot_be_sent_becomes_an_error_that_names_it_and_says_why(error: Exception, why: str) -> None:
    back = returned(error)
    assert type(back) is RuntimeError
    assert f"the helpers.process_jobs.{type(error).__name__} itself cannot be restored here: " in str(back)
    assert why in str(back)


def test_a_class_without_a_name_is_called_an_exception() -> None:
    cls: Any = Unnamed("Odd", (Exception,), {})
    back = returned(cls("odd"))
    assert type(back) is RuntimeError
    assert "the an exception itself cannot be restored here" in str(back)


def test_an_exception_that_refuses_a_cause_comes_back_with_it_all_the_same() -> None:
    chainless = Chainless("alone")
    for name, value in (("__context__", OSError()), ("__cause__", KeyError("cause"))):
        BaseException.__dict__[name].__set__(chainless, value)
    back = returned(chainless)
    assert (type(back), back.args) == (Chainless, ("alone",))
    assert (type(back.__cause__), type(back.__context__), back.__suppress_context__) == (KeyError, OSError, True)


def test_ctrl_c_while_an_exception_is_unpacked_is_not_swallowed() -> None:
    with pytest.raises(KeyboardInterrupt):
        returned(Interrupting())


def test_a_class_of_the_main_program_comes_back_under_its_name_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OfMain, "__module__", "__main__")
    monkeypatch.setattr("__main__.OfMain", OfMain, raising=False)
    [report] = sent.dump(OfMain("mine"), describe_error)
    there = sent.Sent(*report)._replace(name="__mp_main__.OfMain")
    back = sent.load([tuple(there)], describe_error)
    assert (type(back), back.args) == (OfMain, ("mine",))
