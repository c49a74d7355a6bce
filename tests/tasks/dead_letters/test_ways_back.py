"""Letters in memory with a way back: those that are unknown or have none, views, and locks after a fork."""

from __future__ import annotations

import threading

import pytest

from cuelight._dead_letters import _returnable as ways
from cuelight._dead_letters._entry import DeadLetterEntry
from cuelight._dead_letters._returnable import ReturnableLetters
from cuelight.tasks import DeadLetterQueue, MemoryStore


def way_back(letter: DeadLetterEntry) -> None:
    """Take it back."""


async def test_a_letter_that_is_unknown_or_has_no_way_back_is_not_given_back() -> None:
    letters = ReturnableLetters(5)
    without = letters.add(DeadLetterEntry(id="without", payload=1))
    gone = DeadLetterEntry(id="gone", payload=2)
    unknown, nowhere = await letters.replay([gone, without])
    assert isinstance(unknown, Exception)
    assert "gone" in str(unknown)
    assert isinstance(nowhere, ValueError)
    assert await letters.get("without") is not None


async def test_a_letter_that_goes_back_is_kept_no_longer() -> None:
    letters = ReturnableLetters(5)
    kept = letters.add_with_way_back(DeadLetterEntry(id="a", payload=1), way_back)
    again = letters.add_with_way_back(DeadLetterEntry(id="a", payload=2), way_back)
    assert kept.id == "a"
    assert again.id != "a"
    assert letters.replayable
    assert await letters.replay([kept, again]) == [None, None]
    assert not letters.replayable
    assert await letters.get("a") is None


async def test_a_letter_is_added_without_waiting_and_without_a_way_back() -> None:
    dead = DeadLetterQueue()
    letter = dead.add_nowait("payload", error="it failed", letter_id="a")
    assert (letter.id, letter.payload) == ("a", "payload")
    with pytest.raises(ValueError, match="a"):
        dead.add_nowait("other", letter_id="a")
    assert not dead.is_view


def test_a_view_takes_no_letters_with_a_way_back() -> None:
    view = DeadLetterQueue(MemoryStore())
    assert view.is_view
    with pytest.raises(TypeError, match=r"these dead letters are a view: add others to a DeadLetterQueue\(\) of their"):
        view.add_nowait("payload", way_back=way_back)


def test_letters_can_be_used_in_a_fork_while_another_thread_had_their_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    letters = ReturnableLetters(5)
    monkeypatch.setattr(ways, "_instances", {letters})
    thread = threading.Thread(target=letters._lock.acquire)
    thread.start()
    thread.join()
    assert not letters._lock.acquire(blocking=False)
    ways._unlock_all()
    assert letters.add(DeadLetterEntry(id="a", payload=1)).id == "a"
