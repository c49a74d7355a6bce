"""Dead letters: to look at, edit, replay and purge, the same for tasks, actors and whatever else fails.

The invariants, which the tests of `tests/tasks/dead_letters` assert:

1. A letter leaves only when it was replayed, purged or crowded out: a replay that fails or is cancelled leaves it.
2. One letter is replayed by one caller at a time; a second one is refused while the first is at it.
3. `replay_all` takes each letter once, and only those that were there when it began: what fails again meanwhile waits
   for the next time.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import contextmanager
from math import inf
from typing import TYPE_CHECKING, Any, Self, TypeAlias, Unpack

import anyio
import anyio.lowlevel
import msgspec

from cuelight._checks import check_seconds
from cuelight._text import describe_error, safe_repr
from cuelight.actors import Ref
from cuelight.errors import PoolClosed, TaskNotFound
from cuelight.pools import provide_dead_letters
from cuelight.supervision import ActorSystem, BlockingSystem
from cuelight.tasks._arguments import check_number, check_store
from cuelight.tasks._blocking_dead_letters import BlockingDeadLetterQueue
from cuelight.tasks._dead_letter_entry import (
    Choice,
    DeadLetterEntry,
    ReplayReport,
    Target,
    Which,
    deliver,
    failure_of,
    nowhere,
    unknown,
)
from cuelight.tasks._dead_letter_pages import Each, Pages
from cuelight.tasks._dead_letter_sources import PAGE, ActorLetters, StoreLetters
from cuelight.tasks._dead_letter_ways import AddsLetters, ReturnableLetters
from cuelight.tasks._task import Attempt

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import TracebackType

    from cuelight.tasks._dead_letter_sources import Letters
    from cuelight.tasks._store import Store

__all__ = ["DeadLetterQueue"]

Entries: TypeAlias = list[DeadLetterEntry]
"""Inside of the classes `list` is a method."""


class DeadLetterQueue(AddsLetters):
    """What was given up, with the reason: `dlq = DeadLetterQueue()`.

    There are three kinds, which look the same:

    * `DeadLetterQueue()` keeps in memory what `add` gives it.
    * `DeadLetterQueue(store)` shows the tasks that a task queue gave up.
    * `DeadLetterQueue.of(system)` shows the messages that actors did not handle.

    Its methods are async, each is a checkpoint at its beginning, and no block is needed. In
    `with DeadLetterQueue() as dlq:` they block instead, and may be called from any thread.

    The methods that choose letters take these conditions, all of which must hold: `reason` and `task_type` are
    compared, `error` is text that is in the error, and `since <= dead_at < before` is in seconds since the epoch.
    """

    def __init__(
        self, store: Store | None = None, *, to: Target | None = None, keep: int = 1000, owns_store: bool = True
    ) -> None:
        """Show the dead letters of a store, or keep letters in memory.

        Args:
            store: of a task queue.
            to: where replayed letters go, unless `replay` says otherwise; None for where they came from.
            keep: letters that are kept in memory; then the oldest gives way. A store keeps all.
            owns_store: it opens the store when it is needed, and the end of a block closes it, unless a queue uses it
                still; False if others do both.

        Raises:
            ValueError: `keep` is less than 1.
            TypeError: it is no store.
        """
        if store is not None:
            check_store("DeadLetterQueue(store)", store)
        check_number("keep", keep)
        self._letters: Letters = ReturnableLetters(keep) if store is None else StoreLetters(store)
        self._to = to
        self._owns = owns_store
        self._opened = not owns_store
        self._home: BlockingSystem | None = None
        self._lock = threading.Lock()
        self._replaying: set[str] = set()
        self._face: BlockingDeadLetterQueue | None = None

    @classmethod
    def of(cls, system: ActorSystem | BlockingSystem, *, to: Target | None = None, keep: int = 1000) -> Self:
        """The dead letters of an actor system: those that it has kept, and all from now on.

        It belongs to the loop of the system. A replay tells the message to the actor with the same path, if there is
        one that lives. Letters come in until its block is left, or the system ends.

        Args:
            system: the system, which must be running. With an `ActorSystem.blocking()` use it in a `with` block.
            to: as for `DeadLetterQueue`.
            keep: how many are kept; then the oldest gives way.

        Raises:
            SystemClosed: the system is not running.
        """
        given: Any = system
        if not isinstance(given, ActorSystem | BlockingSystem):
            raise TypeError(f"DeadLetterQueue.of({safe_repr(given)}): give an ActorSystem")
        dead_letters = cls(to=to, keep=keep)
        if isinstance(system, BlockingSystem):
            dead_letters._home = system
            dead_letters._letters = system.call(ActorLetters, system.system, keep)
        else:
            dead_letters._letters = ActorLetters(system, keep)
        return dead_letters

    @property
    def dropped(self) -> int:
        """How many letters were crowded out of memory."""
        return self._letters.dropped

    # Adding.

    async def add(
        self,
        payload: Any = None,
        *,
        error: BaseException | str | None = None,
        reason: str = "failed",
        task_type: str = "",
        source: str = "",
        letter_id: str | None = None,
        history: Sequence[Attempt] = (),
    ) -> DeadLetterEntry:
        """Keep something that failed.

        Args:
            payload: what was to be worked on; kept as it is.
            error: the exception, or a text about it.
            reason: why it was given up.
            task_type: what kind of work it was.
            source: where it failed.
            letter_id: its identity; a random UUID by default.
            history: attempts that failed; by default `error` is the only one.

        Returns:
            The letter as it was kept.

        Raises:
            ValueError: there is a letter with this identity.
            TypeError: these are the dead letters of a store, which come from its tasks alone.
        """
        await self._ready()
        letter = failure_of(payload, error, history, source=source, task_type=task_type, reason=reason)
        return self._letters.add(msgspec.structs.replace(letter, id=letter_id or ""))

    # Looking.

    async def list(self, *, limit: int = PAGE, after: int = 0, **which: Unpack[Which]) -> Entries:
        """Dead letters in the order of their sequence.

        Args:
            limit: at most so many.
            after: those whose sequence is greater: that of the last letter of the page before.
            **which: conditions.

        Raises:
            ValueError: `limit` is less than 1.
        """
        check_number("limit", limit)
        choice = Choice.of(which)
        await self._ready()
        return await self._letters.page(choice, after, limit)

    def __aiter__(self) -> AsyncIterator[DeadLetterEntry]:
        """All dead letters, fetched in pages: what is added meanwhile may or may not be among them."""
        return Each(self._pages(Choice()))

    async def get(self, letter_id: str) -> DeadLetterEntry:
        """One dead letter.

        Raises:
            TaskNotFound: there is none with this identity.
        """
        await self._ready()
        letter = await self._letters.get(letter_id)
        if letter is None:
            raise unknown(letter_id)
        return letter

    async def count(self, **which: Unpack[Which]) -> int:
        """How many there are. With conditions it looks at each of them."""
        choice = Choice.of(which)
        await self._ready()
        if choice.everything:
            return await self._letters.count()
        return sum([len(page) async for page in self._pages(choice)])

    # Doing something about them.

    async def edit(self, letter_id: str, payload: Any) -> DeadLetterEntry:
        """Change the payload, or the message, before it is replayed.

        Returns:
            The letter as it is now.

        Raises:
            TaskNotFound: there is none with this identity.
            TypeError: a store cannot keep such a payload.
        """
        await self._ready()
        if not await self._letters.edit(letter_id, payload):
            raise unknown(letter_id)
        return await self.get(letter_id)

    async def replay(self, letter_id: str, *, to: Target | None = None) -> None:
        """Give a letter back to where it came from: a task is pending again with all budgets anew and its history kept,
        a message is told to its actor again.

        Cancelled while a mailbox is full or a function runs, the letter stays; the function may have run in part.
        Cancelled while a store is at it, the task may have been given back.

        Args:
            letter_id: the letter.
            to: where it goes instead: an actor, which is told the payload, or a function that gets the letter.

        Raises:
            TaskNotFound: there is none with this identity, or somebody is replaying it now.
            ActorNotFound: the actor has ended.
            ValueError: letters of `add` came from nowhere, and no `to` was given.
            Exception: what the function raised. The letter stays; in memory that is added to its history.
        """
        target = self._target(to)
        letter = await self.get(letter_id)
        error = await self._replay_one(letter, target)
        if error is not None:
            raise error

    async def replay_all(
        self,
        *,
        to: Target | None = None,
        dry_run: bool = False,
        rate: float | None = None,
        limit: int | None = None,
        **which: Unpack[Which],
    ) -> ReplayReport:
        """Replay those that are there now. One whose replay fails does not keep the others.

        Args:
            to: as for `replay`.
            dry_run: only count them.
            rate: so many per second; None for as fast as they go.
            limit: at most so many; None for all.
            **which: conditions; without any all letters.

        Raises:
            ValueError: `rate` or `limit` makes no sense, or it is not known where to.
            StoreUnavailable: the store is away. What was replayed stays replayed; call it again for the rest.
        """
        for name, number in {"rate": rate, "limit": limit}.items():
            if number is not None and not 0 < check_seconds(name, number) < inf:
                raise ValueError(f"{name}={number!r}: give more than 0, or None")
        target = self._target(to)
        choice = Choice.of(which)
        await self._ready()
        report, begun = ReplayReport(), anyio.current_time()
        # With a rate, or a target of one's own, one letter after another; else a page in one step.
        size = 1 if rate is not None or target is not None else PAGE
        async for page in self._pages(choice, until=await self._letters.frontier(), limit=limit):
            if dry_run:
                report.would_replay += len(page)
                continue
            for start in range(0, len(page), size):
                if rate is not None:
                    await anyio.sleep_until(begun + (report.replayed + report.failed) / rate)
                await self._replay_some(page[start : start + size], target, report)
        return report

    async def remove(self, letter_id: str) -> bool:
        """Forget one letter for good. False if there was none with this identity."""
        await self._ready()
        return await self._letters.remove([letter_id]) > 0

    async def purge(self, *, everything: bool = False, **which: Unpack[Which]) -> int:
        """Forget letters for good.

        Args:
            everything: needed to forget all of them, that is without conditions.
            **which: conditions.

        Returns:
            How many were forgotten.

        Raises:
            ValueError: neither a condition nor `everything=True` was given.
        """
        choice = Choice.of(which)
        if choice.everything and not everything:
            raise ValueError("purge() would forget every dead letter: give a condition, or everything=True")
        await self._ready()
        forgotten = 0
        async for page in self._pages(choice, until=await self._letters.frontier()):
            forgotten += await self._letters.remove([letter.id for letter in page])
        return forgotten

    # Inside.

    async def _ready(self) -> None:
        await anyio.lowlevel.checkpoint()
        if not self._opened:
            await self._letters.open()
            self._opened = True

    def _pages(self, choice: Choice, *, until: tuple[float, float] = (inf, inf), limit: int | None = None) -> Pages:
        return Pages(self._letters, choice, ready=self._ready, until=until, limit=limit)

    def _target(self, to: Target | None) -> Target | None:
        to = self._to if to is None else to
        if to is None and not self._letters.way_back:
            raise ValueError(nowhere())
        given: Any = to
        if given is not None and not isinstance(given, Ref) and not callable(given):
            raise TypeError(f"to={safe_repr(given)}: give a function, or the ref of an actor")
        return to

    async def _replay_some(self, letters: Entries, target: Target | None, report: ReplayReport) -> None:
        if target is None and self._hold(letters):
            with self._held(letters):
                errors = await self._letters.give_back(letters)
        else:
            errors = [await self._replay_one(letter, target) for letter in letters]
        for letter, error in zip(letters, errors, strict=True):
            if error is None:
                report.replayed += 1
            else:
                report.add_failure(letter.id, describe_error(error))

    async def _replay_one(self, letter: DeadLetterEntry, target: Target | None) -> Exception | None:
        """Replay a letter. Returns why it could not be; what the store raises leaves it."""
        if not self._hold([letter]):
            return TaskNotFound(f"somebody is replaying the dead letter {letter.id} now")
        with self._held([letter]):
            if target is None:
                return (await self._letters.give_back([letter]))[0]
            now = await self._letters.get(letter.id)
            if now is None:
                return unknown(letter.id)
            try:
                await deliver(now, target)
            except Exception as error:  # it is the letter's, and is reported
                self._letters.note(letter.id, error)
                return error
            with anyio.CancelScope(shield=True):  # it was delivered, so it must not stay
                await self._letters.remove([letter.id])
            return None

    def _hold(self, letters: Entries) -> bool:
        """Reserve all of these letters for this replay, or none."""
        with self._lock:
            free = not any(letter.id in self._replaying for letter in letters)
            if free:
                self._replaying.update(letter.id for letter in letters)
            return free

    @contextmanager
    def _held(self, letters: Entries) -> Generator[None]:
        try:
            yield
        finally:
            with self._lock:
                self._replaying.difference_update(letter.id for letter in letters)

    # Blocks.

    async def __aenter__(self) -> Self:
        await anyio.lowlevel.checkpoint()
        if self._owns:
            await self._letters.enter()
            self._opened = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._owns:
            with anyio.CancelScope(shield=True):
                await self._letters.leave()

    def __enter__(self) -> BlockingDeadLetterQueue:
        if self._face is not None:
            raise PoolClosed("these dead letters are in use by another `with` block: leave that first")
        if isinstance(self._letters, ActorLetters) and self._home is None:
            raise self._letters.elsewhere()
        face = BlockingDeadLetterQueue(lambda _system: self, system=self._home, name="dead-letters")
        self._face = face.__enter__()
        return self._face

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        face, self._face = self._face, None
        return None if face is None else face.__exit__(kind, error, trace)


provide_dead_letters(DeadLetterQueue)
