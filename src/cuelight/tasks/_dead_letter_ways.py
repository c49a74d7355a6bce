"""Letters in memory that know the way back to where they came from, such as a pool."""

from __future__ import annotations

import inspect
import os
import threading
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias
from weakref import WeakSet

from cuelight.tasks._dead_letter_entry import DeadLetterEntry, failure_of, nowhere, unknown
from cuelight.tasks._dead_letter_sources import Kept, Letters

__all__ = ["AddsLetters", "ReturnableLetters", "WayBack"]

WayBack: TypeAlias = Callable[[DeadLetterEntry], Any]
"""Gives a letter back to where it came from; what it returns is awaited if it can be."""


class ReturnableLetters(Kept):
    """Letters in memory, each of them with or without a way back. Usable from any thread."""

    def __init__(self, keep: int) -> None:
        super().__init__(keep)
        self._ways_back: dict[str, WayBack] = {}
        _kept.add(self)

    def unlock(self) -> None:
        """In a forked process: the thread that had the lock is in the other one."""
        self._lock = threading.RLock()

    @property
    def way_back(self) -> bool:  # type: ignore[override]  # of a view all letters have one, or none
        """Whether some letter can go back to where it came from."""
        return bool(self._ways_back)

    def add_with_way_back(self, letter: DeadLetterEntry, way_back: WayBack) -> DeadLetterEntry:
        """Keep a letter, and how it goes back. It gets another identity if there is a letter with the same."""
        with self._lock:
            if letter.id in self._by_id:
                letter = letter.with_id(str(uuid.uuid4()))
            kept = self.add(letter)
            self._ways_back[kept.id] = way_back
            return kept

    async def give_back(self, letters: Sequence[DeadLetterEntry]) -> list[Exception | None]:
        return [await self._give_back(letter.id) for letter in letters]

    async def _give_back(self, letter_id: str) -> Exception | None:
        letter, way_back = await self.get(letter_id), self._ways_back.get(letter_id)
        if letter is None:
            return unknown(letter_id)
        if way_back is None:
            return ValueError(nowhere())
        try:
            given = way_back(letter)
            if inspect.isawaitable(given):
                await given
        except Exception as error:  # it is the letter's, and is reported
            self.note(letter_id, error)
            return error
        await self.remove([letter_id])
        return None

    def _forget(self, letter_id: str) -> bool:
        self._ways_back.pop(letter_id, None)
        return super()._forget(letter_id)


_kept: Final[WeakSet[ReturnableLetters]] = WeakSet()


def _unlock_all() -> None:
    for letters in list(_kept):
        letters.unlock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock_all)


class AddsLetters:
    """What a queue of dead letters offers to code that cannot await, such as a pool of threads."""

    _letters: Letters

    def add_nowait(
        self,
        payload: Any = None,
        *,
        error: BaseException | str | None = None,
        reason: str = "failed",
        task_type: str = "",
        source: str = "",
        letter_id: str = "",
        way_back: WayBack | None = None,
    ) -> DeadLetterEntry:
        """As `add`, from any thread, and without waiting. Not a checkpoint.

        With a `way_back`, a function that gets the letter, `replay` knows where it goes; and its identity is replaced
        if there is a letter that has it.

        Raises:
            ValueError: there is a letter with this identity.
            TypeError: these are the dead letters of a store, or of actors.
        """
        letter = failure_of(payload, error, (), source=source, task_type=task_type, reason=reason).with_id(letter_id)
        if way_back is None:
            return self._letters.add(letter)
        if not isinstance(self._letters, ReturnableLetters):
            raise TypeError("these dead letters are a view: add others to a DeadLetterQueue() of their own")
        return self._letters.add_with_way_back(letter, way_back)

    @property
    def is_view(self) -> bool:
        """Whether it shows the dead letters of a store or of actors, and keeps none itself."""
        return not isinstance(self._letters, ReturnableLetters)
