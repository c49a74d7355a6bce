"""What runs in a worker process, run here in a thread: the conversation, and what is in the shared memory when."""

from __future__ import annotations

import math
import mmap
import pickle
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cuelight.pools._processes import _child as child
from cuelight.pools._processes._worker_process import RemoteTraceback, _decode, encode_call, encode_chunk
from helpers import process_jobs as jobs


class Conversation:
    """The parent's side, without a process."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.ours.settimeout(10)
        self.region = mmap.mmap(-1, child.DATA + child.REGION)
        self.frames = child.Frames()
        self.thread = threading.Thread(target=child.serve, args=(self.theirs, self.region))
        self.thread.start()

    def say(self, frame: bytes) -> None:
        self.ours.sendall(frame)

    def hear(self) -> tuple[bytes, list[tuple[bool, Any]]]:
        while (frame := self.frames.take()) is None:
            self.frames.add(self.ours.recv(65536))
        if frame[0] == child.VALUES:
            return frame[0], [(True, value) for value in pickle.loads(frame[1])]
        return frame[0], _decode(frame[1])

    def numbers(self, form: Any) -> list[Any]:
        """What the region holds as numbers."""
        part: Any = memoryview(self.region)[child.DATA : child.DATA + 8 * self.word(child.WRITTEN)]
        with part, part.cast(form) as numbers:
            return list(numbers)

    def word(self, index: int) -> int:
        with memoryview(self.region)[: child.DATA] as header, header.cast("Q") as words:
            return words[index]

    def close(self) -> None:
        self.ours.close()
        self.thread.join(10)
        assert not self.thread.is_alive()
        self.theirs.close()
        self.region.close()


@pytest.fixture
def conversation() -> Iterator[Conversation]:
    made = Conversation()
    yield made
    made.close()


def test_a_call_is_answered(conversation: Conversation) -> None:
    conversation.say(encode_call((divmod, (7, 2), {})))
    assert conversation.hear() == (child.END, [(True, (3, 1))])
    assert conversation.word(child.BEGUN) == 1
    conversation.say(encode_call((jobs.unpicklable_result, (), {})))
    kind, [(succeeded, error)] = conversation.hear()
    assert (kind, succeeded, type(error)) == (child.END, False, pickle.PicklingError)


@pytest.mark.parametrize("kind", ["plain", "picky", "silent", "carrier", "chained", "exit"])
def test_an_error_is_told_with_its_traceback(conversation: Conversation, kind: str) -> None:
    conversation.say(encode_call((jobs.raise_it, (kind,), {})))
    _, [(succeeded, error)] = conversation.hear()
    assert not succeeded
    assert isinstance(error, RuntimeError) is (kind == "carrier")
    last = error
    while last.__cause__ is not None:
        last = last.__cause__
    assert isinstance(last, RemoteTraceback)
    assert "in raise_it" in str(last)


def test_a_chunk_is_answered_and_its_results_are_in_the_region(conversation: Conversation) -> None:
    conversation.say(encode_chunk((jobs.same, [1, 2, 3])))
    assert conversation.hear() == (child.VALUES, [(True, 1), (True, 2), (True, 3)])
    assert (conversation.word(child.BASE), conversation.word(child.KIND)) == (0, child.INTS)
    assert conversation.numbers("q") == [1, 2, 3]
    conversation.say(encode_chunk((jobs.same, ["a", "b"])))
    assert conversation.hear() == (child.VALUES, [(True, "a"), (True, "b")])
    assert (conversation.word(child.BASE), conversation.word(child.KIND)) == (0, child.RECORDS)
    written = conversation.word(child.WRITTEN)
    assert _decode(conversation.region[child.DATA : child.DATA + written]) == [(True, "a"), (True, "b")]


@pytest.mark.parametrize("after", [True, None, "a", 10**30, -(2**63) - 1, 1.5, b"x"])
def test_numbers_are_kept_as_numbers_until_something_else_comes(conversation: Conversation, after: object) -> None:
    numbers = [0, -(2**63), 2**63 - 1]
    conversation.say(encode_chunk((jobs.same, [*numbers, after, 7])))
    assert conversation.hear() == (child.PART, [(True, number) for number in numbers])
    assert conversation.hear() == (child.VALUES, [(True, value) for value in [*numbers, after, 7]])
    assert (conversation.word(child.BASE), conversation.word(child.KIND)) == (3, child.RECORDS)
    written = conversation.word(child.WRITTEN)
    assert _decode(conversation.region[child.DATA : child.DATA + written]) == [(True, after), (True, 7)]


def test_floats_are_kept_to_the_bit(conversation: Conversation) -> None:
    floats = [0.1, -0.0, math.inf, -math.inf, 5e-324, math.nan]
    conversation.say(encode_chunk((jobs.same, floats)))
    kind, outcomes = conversation.hear()
    assert (kind, repr([value for _, value in outcomes])) == (child.VALUES, repr(floats))
    assert conversation.word(child.KIND) == child.FLOATS
    assert repr(conversation.numbers("d")) == repr(floats)


def test_more_numbers_than_there_is_room_for_go_through_the_socket(
    conversation: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "REGION", 16)
    conversation.say(encode_chunk((jobs.same, [1, 2, 3])))
    assert conversation.hear() == (child.PART, [(True, 1), (True, 2)])
    assert conversation.hear() == (child.VALUES, [(True, 1), (True, 2), (True, 3)])
    assert conversation.word(child.BASE) == 2


def test_values_that_can_change_arrive_as_they_were_when_they_were_returned(conversation: Conversation) -> None:
    conversation.say(encode_chunk((jobs.remember, ["a", "b"])))
    assert conversation.hear() == (child.END, [(True, ["a"]), (True, ["a", "b"])])
    for odd in ([(2,), 1], [True, jobs.Level.HIGH], [jobs.same], [None, bytearray(b"x")]):
        conversation.say(encode_chunk((jobs.same, odd)))
        kind, outcomes = conversation.hear()
        assert (kind, [value for _, value in outcomes]) == (child.END, odd)
    atoms = [None, True, 10**30, -1.5, "\ud800", b"\0", ""]
    conversation.say(encode_chunk((jobs.same, atoms)))
    assert conversation.hear() == (child.VALUES, [(True, value) for value in atoms])


def test_what_has_no_room_in_the_region_is_sent_and_the_region_begins_anew(conversation: Conversation) -> None:
    conversation.say(encode_chunk((jobs.big, [0, 1, 2])))
    assert conversation.hear() == (child.PART, [(True, jobs.big(0)), (True, jobs.big(1))])
    assert conversation.hear() == (child.END, [(True, jobs.big(2))])
    assert conversation.word(child.BASE) == 2


def test_errors_in_a_chunk_are_sent_at_once(conversation: Conversation) -> None:
    conversation.say(encode_chunk((jobs.odd_result, [0, 1, 2])))
    assert conversation.hear() == (child.PART, [(True, 0)])
    kind, [(succeeded, error)] = conversation.hear()
    assert (kind, succeeded, type(error)) == (child.PART, False, pickle.PicklingError)
    assert conversation.hear() == (child.END, [(True, 2)])
    conversation.say(encode_chunk((jobs.raise_it, ["x"])))
    assert [type(error) for _, error in conversation.hear()[1]] == [ZeroDivisionError]
    assert conversation.hear() == (child.END, [])


def test_what_cannot_be_unpickled_is_an_answer_and_was_not_begun(conversation: Conversation) -> None:
    conversation.say(encode_call((jobs.same, (jobs.Sour(),), {})))
    kind, [(succeeded, error)] = conversation.hear()
    assert (kind, succeeded, type(error)) == (child.UNLOADABLE, False, LookupError)
    assert conversation.word(child.BEGUN) == 0
    for unknown in (b"cnowhere\nnothing\n.", b"c__main__\nno_such_function\n."):
        conversation.say(child.FRAME.pack(child.CALL, len(unknown)) + unknown)
        kind, [(_, error)] = conversation.hear()
        assert kind == child.UNLOADABLE
        assert isinstance(error, (AttributeError, ImportError))


def test_the_main_module_is_loaded_once_it_is_needed(
    conversation: Conversation, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    program = tmp_path / "program.py"
    program.write_text("def answer():\n    return 42\n")
    main = type(sys)("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setitem(sys.modules, "__mp_main__", main)
    source = ("init_main_from_path", str(program))
    setup = pickle.dumps((sys.path[:], sys.argv[:], source))
    conversation.say(child.FRAME.pack(child.SETUP, len(setup)) + setup)
    call = b"\x80\x03(c__main__\nanswer\n)}t."
    for _ in range(2):
        conversation.say(child.FRAME.pack(child.CALL, len(call)) + call)
        assert conversation.hear() == (child.END, [(True, 42)])
    assert vars(main)[child.SOURCE] == source
    assert child.LOADING not in vars(main)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The main module of a worker process, which has loaded nothing yet."""
    main = type(sys)("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setitem(sys.modules, "__mp_main__", main)
    return main


@pytest.mark.parametrize("kind", ["package", "folder"])
def test_the_main_file_of_a_package_or_a_folder_is_loaded_under_another_name(
    stand_in: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    package = tmp_path / "child_main_package"
    package.mkdir()
    program = package / "__main__.py"
    program.write_text("name = __name__\nif __name__ == '__main__':\n    raise RuntimeError('run')\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    main = child._Main()
    name = "child_main_package.__main__" if kind == "package" else "__main__"
    main.source = (child.RUN_MODULE, f"{name}\n{program}")
    main.load()
    assert not main.source
    assert child.LOADING not in vars(stand_in)
    loaded = sys.modules["__main__"]
    assert loaded is not stand_in
    assert loaded is sys.modules["__mp_main__"]
    assert vars(loaded)["name"] == "__mp_main__"


def test_a_main_module_that_fails_to_load_is_tried_again(stand_in: Any, tmp_path: Path) -> None:
    main = child._Main()
    main.source = source = (child.RUN_MODULE, f"__main__\n{tmp_path / 'gone.py'}")
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            main.load()
        assert main.source == source
        assert child.LOADING not in vars(stand_in)


def test_what_errors_need_is_loaded_by_its_path_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for label in ("cuelight_sent_errors", "cuelight_text"):
        monkeypatch.setitem(sys.modules, label, type(sys)(label))  # put back afterwards
    loaded: dict[str, Any] = {}
    monkeypatch.setattr(child, "__package__", "")
    monkeypatch.setattr(child, "_siblings", loaded)
    [(succeeded, error)] = _decode(child._failure(ValueError("far away")))
    assert (succeeded, type(error), error.args) == (False, ValueError, ("far away",))
    assert sorted(loaded) == ["../../_text.py", "_sent_errors.py"]
    for name, module in loaded.items():
        assert sys.modules[module.__name__] is module is child._sibling(name)
    assert loaded["../../_text.py"].__name__ == "cuelight_text"


def test_values_of_a_class_that_cannot_be_hashed_are_no_atoms() -> None:
    class Unhashable(type):
        def __hash__(cls) -> int:
            raise TypeError("unhashable")

    class Odd(metaclass=Unhashable):
        pass

    assert child._are_atoms([1, "a", None])
    assert not child._are_atoms([1, Odd()])
