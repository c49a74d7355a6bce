"""Letters in memory that can be returned to their source, such as a pool."""

from __future__ import annotations

import inspect
import os
import threading
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias
from weakref import WeakSet

from cuelight._dead_letters._entry import DeadLetterEntry, failure_of, nowhere, unknown
from cuelight._dead_letters._sources import Kept, Letters

WayBack: TypeAlias = Callable[[DeadLetterEntry], Any]
"""Returns a letter to its source. An awaitable result is awaited."""


class ReturnableLetters(Kept):
    """Letters in memory, each with or without a way back. Usable from any thread."""

    def __init__(self, keep: int) -> None:
        super().__init__(keep)
        self._ways_back: dict[str, WayBack] = {}
        _kept.add(self)

    def unlock(self) -> None:
        """Replace the lock after a fork: the thread that held it may exist only in the parent process."""
        self._lock = threading.RLock()

    @property
    def way_back(self) -> bool:  # type: ignore[override]  # in a view, either all letters have a way back or none
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
        except Exception as error:  # an error of the way back, which is reported
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
    """The methods of a dead letter queue for code that cannot await, such as a pool of threads."""

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
        """Add failed work without waiting. Like `add`, but may be called from any thread. Not a checkpoint.

        Args:
            payload: the work; stored unchanged.
            error: the exception, or a text about it.
            reason: why it was given up.
            task_type: the kind of work.
            source: the place of the failure.
            letter_id: the identifier; a random UUID by default. With a `way_back`, an identifier that is already used
                is replaced.
            way_back: a function that gets the letter and returns it to its source in `replay`.

        Returns:
            The letter that was added.

        Raises:
            ValueError: the identifier is already used by another letter.
            TypeError: these are the dead letters of a store or of actors.
        """
        letter = failure_of(payload, error, (), source=source, task_type=task_type, reason=reason).with_id(letter_id)
        if way_back is None:
            return self._letters.add(letter)
        if not isinstance(self._letters, ReturnableLetters):
            raise TypeError("these dead letters are a view: add others to a DeadLetterQueue() of their own")
        return self._letters.add_with_way_back(letter, way_back)

    @property
    def is_view(self) -> bool:
        """Whether this shows the dead letters of a store or of actors, and stores none itself."""
        return not isinstance(self._letters, ReturnableLetters)
