"""Sources of dead letters: memory, or an actor system. That of a task store is in `cuelight.tasks`.

Invariants of `MemoryLetters`, tested in `tests/tasks/dead_letters/test_letters_model.py`:

1. An added letter is kept until it is removed or dropped because of `keep`. Dropped letters are counted.
2. There are never more than `keep` letters; the oldest ones are dropped.
3. Letters are listed in the order of their sequence, which no other letter ever gets.
"""

from __future__ import annotations

import threading
import time
import uuid
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from math import inf
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from cuelight._dead_letters._attempt import Counts, attempt_of, last_failure
from cuelight._dead_letters._entry import DeadLetterEntry, LetterFilter, tell_once, unknown_letter
from cuelight.actors import Ref
from cuelight.errors import ActorNotFound, MailboxFull, SystemClosed

if TYPE_CHECKING:
    from cuelight.actors import Cell, DeadLetter
    from cuelight.supervision import ActorSystem

HISTORY: Final = 20
PAGE: Final = 100


class LetterSource(Protocol):
    """A source of dead letters."""

    @property
    def replayable(self) -> bool:
        """Whether letters can be sent back to their source."""
        ...

    @property
    def dropped(self) -> int:
        """The number of letters that were dropped because of `keep`."""
        ...

    async def open(self) -> None:
        """Open the source for use without a block. May be called repeatedly."""
        ...

    async def enter(self) -> None:
        """Acquire resources at the beginning of a block."""
        ...

    async def leave(self) -> None:
        """Release the resources at the end of a block."""
        ...

    def add(self, letter: DeadLetterEntry) -> DeadLetterEntry:
        """Add a letter with a new sequence."""
        ...

    async def page(self, selected: LetterFilter, after: int, limit: int) -> list[DeadLetterEntry]:
        """Return up to `limit` selected letters with a sequence greater than `after`, in order."""
        ...

    async def snapshot_limit(self) -> tuple[float, float]:
        """Upper bounds for `sequence` and `dead_at` of all current letters."""
        ...

    async def get(self, letter_id: str) -> DeadLetterEntry | None: ...

    async def count(self) -> int: ...

    async def edit(self, letter_id: str, payload: Any) -> bool:
        """Change a payload. Return False if there is no such letter."""
        ...

    async def remove(self, letter_ids: Sequence[str]) -> int:
        """Delete letters. Return how many existed."""
        ...

    async def replay(self, letters: Sequence[DeadLetterEntry]) -> list[Exception | None]:
        """Send letters back to their source and delete them. Return None or the reason of the failure, for each."""
        ...

    def note(self, letter_id: str, error: Exception) -> None:
        """Add a failed replay to the history, if the source stores that."""
        ...


class MemoryLetters:
    """The latest `keep` letters in memory. Usable from any thread."""

    replayable = False

    def __init__(self, keep: int) -> None:
        if keep < 1:
            raise ValueError(f"keep={keep!r}: give the number of dead letters to keep, 1 or more")
        self._keep = keep
        self._dropped = 0
        self._lock = threading.RLock()  # reentrant, because the finalizer of a dropped payload may add letters
        self._letters: dict[int, DeadLetterEntry] = {}
        self._order: list[int] = []  # the sequences, sorted
        self._by_id: dict[str, int] = {}
        self._last = 0

    @property
    def dropped(self) -> int:
        return self._dropped

    async def open(self) -> None:
        """Nothing to open."""

    async def enter(self) -> None:
        """Nothing to open."""

    async def leave(self) -> None:
        """Nothing to release."""

    def add(self, letter: DeadLetterEntry) -> DeadLetterEntry:
        letter_id = letter.id or str(uuid.uuid4())
        with self._lock:
            if letter_id in self._by_id:
                raise ValueError(f"id={letter_id!r}: another dead letter has this identifier, so give a different one")
            self._last += 1
            letter = msgspec.structs.replace(letter, id=letter_id, sequence=self._last)
            self._letters[self._last] = letter
            self._order.append(self._last)
            self._by_id[letter_id] = self._last
            if len(self._order) > self._keep:
                self._forget(self._letters[self._order[0]].id)
                self._dropped += 1
        return letter

    async def page(self, selected: LetterFilter, after: int, limit: int) -> list[DeadLetterEntry]:
        found: list[DeadLetterEntry] = []
        with self._lock:
            for position in range(bisect_right(self._order, after), len(self._order)):
                letter = self._letters[self._order[position]]
                if selected.matches(letter):
                    found.append(letter)
                    if len(found) == limit:
                        break
        return found

    async def snapshot_limit(self) -> tuple[float, float]:
        return self._last, inf

    async def get(self, letter_id: str) -> DeadLetterEntry | None:
        with self._lock:
            return self._letters.get(self._by_id.get(letter_id, 0))

    async def count(self) -> int:
        return len(self._order)

    async def edit(self, letter_id: str, payload: Any) -> bool:
        with self._lock:
            return self._replace(letter_id, payload=payload)

    async def remove(self, letter_ids: Sequence[str]) -> int:
        with self._lock:
            return sum(self._forget(letter_id) for letter_id in letter_ids)

    async def replay(self, letters: Sequence[DeadLetterEntry]) -> list[Exception | None]:
        raise NotImplementedError("these letters have no source to return to")

    def note(self, letter_id: str, error: Exception) -> None:
        with self._lock:
            letter = self._letters.get(self._by_id.get(letter_id, 0))
            if letter is not None:
                attempt = attempt_of(error, worker="replay", at=time.time())
                counts = msgspec.structs.replace(letter.counts, errors=letter.counts.errors + 1)
                history = (*letter.history, attempt)[-HISTORY:]
                last = {"error": attempt.error, "traceback": attempt.traceback}
                self._replace(letter_id, history=history, counts=counts, **last)

    def _replace(self, letter_id: str, **changes: Any) -> bool:
        sequence = self._by_id.get(letter_id)
        if sequence is None:
            return False
        self._letters[sequence] = msgspec.structs.replace(self._letters[sequence], **changes)
        return True

    def _forget(self, letter_id: str) -> bool:
        sequence = self._by_id.pop(letter_id, None)
        if sequence is None:
            return False
        del self._letters[sequence]
        del self._order[bisect_left(self._order, sequence)]
        return True


class ActorLetters(MemoryLetters):
    """The kept and the future dead letters of an actor system. They belong to its event loop.

    They are read from a subscription on each access, so no task has to wait for them.
    """

    replayable = True

    def __init__(self, system: ActorSystem, keep: int) -> None:
        super().__init__(keep)
        letters = getattr(system, "dead_letters", None)
        if letters is None:
            raise SystemClosed(f"the system {system.name!r} is not running: enter its block first")
        self._system, self._thread = system, get_ident()
        for letter in letters:
            self.add(self._entry(letter))
        self._subscription = letters.subscribe(keep)

    @property
    def dropped(self) -> int:
        self._pull()
        crowded_out: int = self._subscription.statistics().dropped
        return self._dropped + crowded_out

    async def leave(self) -> None:
        self._pull()
        self._subscription.close()

    async def page(self, selected: LetterFilter, after: int, limit: int) -> list[DeadLetterEntry]:
        self._pull()
        return await super().page(selected, after, limit)

    async def snapshot_limit(self) -> tuple[float, float]:
        self._pull()
        return await super().snapshot_limit()

    async def get(self, letter_id: str) -> DeadLetterEntry | None:
        self._pull()
        return await super().get(letter_id)

    async def count(self) -> int:
        self._pull()
        return await super().count()

    async def replay(self, letters: Sequence[DeadLetterEntry]) -> list[Exception | None]:
        return [await self._replay(letter) for letter in letters]

    async def _replay(self, chosen: DeadLetterEntry) -> Exception | None:
        letter = await self.get(chosen.id)
        if letter is None:
            return unknown_letter(chosen.id)
        cell = _find(self._system.root, letter.source)
        if cell is None:
            where = f"no actor {letter.source!r} is alive" if letter.source else "it came from no actor"
            return ActorNotFound(
                f"{where}: name a destination for the dead letter, as in replay({letter.id!r}, to=ref)"
            )
        try:
            await tell_once(Ref(cell), letter.payload)
        except MailboxFull as error:
            return error
        await self.remove([letter.id])
        return None

    def elsewhere(self) -> RuntimeError:
        """The error for a use outside the system's event loop."""
        return RuntimeError(
            f"the dead letters of {self._system.name!r} belong to the loop of their system: use them there, or, in "
            "blocking code, `with DeadLetterQueue.of(system)` over an ActorSystem.blocking()"
        )

    def _pull(self) -> None:
        if get_ident() != self._thread:
            raise self.elsewhere()
        while len(self._subscription):
            self.add(self._entry(self._subscription.receive_nowait()))

    def _entry(self, letter: DeadLetter) -> DeadLetterEntry:
        """Convert a dead letter of an actor, including its time from the loop's clock to wall-clock time."""
        at = time.time() - (self._system.backend.time() - letter.time)
        errors = letter.history or (() if letter.error is None else (letter.error,))
        history = tuple(attempt_of(error, worker=letter.actor, at=at) for error in errors)
        error, trace = last_failure(history)
        return DeadLetterEntry(
            id="",
            source=letter.actor,
            task_type=type(letter.message).__name__,
            payload=letter.message,
            reason=letter.reason,
            error=error,
            traceback=trace,
            history=history,
            dead_at=at,
            counts=Counts(errors=len(history)),
        )


def _find(cell: Cell, path: str) -> Cell | None:
    """The live actor with this path at or below `cell`."""
    while cell.path != path:
        below = () if cell.children is None else cell.children.cells()
        way = (child for child in below if path == child.path or path.startswith(child.path + "/"))
        following = next(way, None)
        if following is None:
            return None
        cell = following
    return None if cell.dead else cell
