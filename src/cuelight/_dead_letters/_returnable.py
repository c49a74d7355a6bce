"""Letters in memory that can be returned to their source, such as a pool."""

from __future__ import annotations

import inspect
import os
import threading
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias
from weakref import WeakSet

from cuelight._dead_letters._entry import DeadLetterEntry, no_destination, unknown_letter
from cuelight._dead_letters._sources import MemoryLetters

WayBack: TypeAlias = Callable[[DeadLetterEntry], Any]
"""Returns a letter to its source. An awaitable result is awaited."""


class ReturnableLetters(MemoryLetters):
    """Letters in memory, each with or without a way back. Usable from any thread."""

    def __init__(self, keep: int) -> None:
        super().__init__(keep)
        self._ways_back: dict[str, WayBack] = {}
        _instances.add(self)

    def unlock(self) -> None:
        """Replace the lock after a fork: the thread that held it may exist only in the parent process."""
        self._lock = threading.RLock()

    @property
    def replayable(self) -> bool:  # type: ignore[override]  # in a view, either all letters have a way back or none
        """Whether any letter can be sent back to its source."""
        return bool(self._ways_back)

    def add_with_way_back(self, letter: DeadLetterEntry, way_back: WayBack) -> DeadLetterEntry:
        """Add a letter with its way back. If another letter has the same identifier, this one gets a new one."""
        with self._lock:
            if letter.id in self._by_id:
                letter = letter.with_id(str(uuid.uuid4()))
            kept = self.add(letter)
            self._ways_back[kept.id] = way_back
            return kept

    async def replay(self, letters: Sequence[DeadLetterEntry]) -> list[Exception | None]:
        return [await self._replay(letter.id) for letter in letters]

    async def _replay(self, letter_id: str) -> Exception | None:
        letter, way_back = await self.get(letter_id), self._ways_back.get(letter_id)
        if letter is None:
            return unknown_letter(letter_id)
        if way_back is None:
            return ValueError(no_destination())
        try:
            given = way_back(letter)
            if inspect.isawaitable(given):
                await given
        except Exception as error:  # an error of the way back, which is reported
            self.note(letter_id, error)
            return error
        await self.remove([letter_id])
        return None

    def _forget(self, letter_id: str) -> bool:
        self._ways_back.pop(letter_id, None)
        return super()._forget(letter_id)


_instances: Final[WeakSet[ReturnableLetters]] = WeakSet()


def _unlock_all() -> None:
    for letters in list(_instances):
        letters.unlock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock_all)
