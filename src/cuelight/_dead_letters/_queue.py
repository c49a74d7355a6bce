"""Dead letters of tasks, actors and other code: listing, editing, replaying and purging.

Invariants, tested in `tests/tasks/dead_letters`:

1. A letter is only removed by a replay, a purge or an overflow. A replay that fails or is cancelled does not remove it.
2. Only one caller at a time replays a letter. A second caller is rejected while the first one is active.
3. `replay_all` takes each letter once, and only letters that existed when it began. A letter that fails again in the
   meantime is left for the next call.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from math import inf
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias, Unpack

import anyio
import anyio.lowlevel
import msgspec

from cuelight._blocking_proxy import BlockingProxy
from cuelight._checks import check_seconds
from cuelight._dead_letters._attempt import Attempt
from cuelight._dead_letters._entry import (
    DeadLetterEntry,
    LetterFilter,
    LetterFilterArgs,
    ReplayReport,
    Target,
    deliver,
    failure_of,
    no_destination,
    unknown_letter,
)
from cuelight._dead_letters._iteration import LetterIterator, PageIterator
from cuelight._dead_letters._returnable import ReturnableLetters, WayBack
from cuelight._dead_letters._sources import PAGE, ActorLetters, LetterSource
from cuelight._text import describe_error, safe_repr
from cuelight.actors import Ref
from cuelight.errors import PoolClosed, TaskNotFound
from cuelight.supervision import ActorSystem, BlockingSystem

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import TracebackType


class DeadLetterStore(Protocol):
    """What type checkers require of the store of a `DeadLetterQueue`; a `cuelight.tasks.Store` at run time."""

    async def open(self) -> None: ...

    async def replay(self, ids: Sequence[str]) -> list[bool]: ...

    async def purge(self, ids: Sequence[str]) -> int: ...


_store_letters: list[Callable[[Any], LetterSource]] = []


def provide_store_letters(make: Callable[[Any], LetterSource]) -> None:
    """Register the function that returns the dead letters of a store, or raises `TypeError` if it is not one.

    `cuelight.tasks`, which defines what a store is, calls this.
    """
    _store_letters[:] = [make]


Entries: TypeAlias = list[DeadLetterEntry]
"""Needed because `list` is a method inside the class."""


class DeadLetterQueue:
    """Work that was given up, with the reasons: `dlq = DeadLetterQueue()`.

    There are three kinds with the same interface:

    * `DeadLetterQueue()` stores the items passed to `add`, in memory.
    * `DeadLetterQueue(store)` shows the tasks that a task queue gave up.
    * `DeadLetterQueue.of(system)` shows the messages that actors did not handle.

    The methods are async, each begins with a checkpoint, and they need no block. In `with DeadLetterQueue() as dlq:`,
    the methods block instead, and may be called from any thread.

    The methods that select letters accept these conditions, all of which must be true: `reason` and `task_type` are
    compared, `error` is a part of the letter's error, and `since <= dead_at < before` is in seconds since the epoch.
    """

    def __init__(
        self,
        store: DeadLetterStore | None = None,
        *,
        to: Target | None = None,
        keep: int = 1000,
        owns_store: bool = True,
    ) -> None:
        """Show the dead letters of a store, or keep letters in memory.

        Args:
            store: the store of a task queue; None to keep letters in memory.
            to: the default destination of replayed letters; None for their source.
            keep: the maximum number of letters in memory; after that, the oldest ones are dropped. A store keeps all
                letters.
            owns_store: whether to open the store when it is needed, and to close it at the end of a block unless a
                queue still uses it. False if other code does both.

        Raises:
            ValueError: `keep` is less than 1.
            TypeError: `store` is not a store.
        """
        letters = None if store is None else _store_letters[0](store)
        _check_number("keep", keep)
        self._letters: LetterSource = ReturnableLetters(keep) if letters is None else letters
        self._to = to
        self._owns_store = owns_store
        self._opened = not owns_store
        self._blocking_system: BlockingSystem | None = None
        self._lock = threading.Lock()
        self._replaying: set[str] = set()
        self._proxy: BlockingDeadLetterQueue | None = None

    @classmethod
    def of(cls, system: ActorSystem | BlockingSystem, *, to: Target | None = None, keep: int = 1000) -> Self:
        """Return the dead letters of an actor system: those that it has kept, and all later ones.

        The object belongs to the system's event loop. A replay tells the message to the live actor with the same path.
        Letters are collected until the block is left or the system ends.

        Args:
            system: the system, which must be running. For an `ActorSystem.blocking()`, use the object in a `with`
                block.
            to: see `DeadLetterQueue`.
            keep: the maximum number of letters; after that, the oldest ones are dropped.

        Raises:
            SystemClosed: the system is not running.
            TypeError: `system` is not an actor system.
        """
        given: Any = system
        if not isinstance(given, ActorSystem | BlockingSystem):
            raise TypeError(f"DeadLetterQueue.of({safe_repr(given)}): give an ActorSystem")
        dead_letters = cls(to=to, keep=keep)
        if isinstance(system, BlockingSystem):
            dead_letters._blocking_system = system
            dead_letters._letters = system.call(ActorLetters, system.system, keep)
        else:
            dead_letters._letters = ActorLetters(system, keep)
        return dead_letters

    @property
    def dropped(self) -> int:
        """The number of letters that were dropped from memory because of `keep`."""
        return self._letters.dropped

    @property
    def is_view(self) -> bool:
        """Whether this shows the dead letters of a store or of actors, and stores none itself."""
        return not isinstance(self._letters, ReturnableLetters)

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
        """Add failed work.

        Args:
            payload: the work; stored unchanged.
            error: the exception, or a text about it.
            reason: why it was given up.
            task_type: the kind of work.
            source: the place of the failure.
            letter_id: the identifier; a random UUID by default.
            history: the failed attempts; by default, `error` is the only one.

        Returns:
            The letter that was added.

        Raises:
            ValueError: the identifier is already used by another letter.
            TypeError: these are the dead letters of a store, which can only come from its tasks.
        """
        await self._ready()
        letter = failure_of(payload, error, history, source=source, task_type=task_type, reason=reason)
        return self._letters.add(msgspec.structs.replace(letter, id=letter_id or ""))

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

    # Reading.

    async def list(self, *, limit: int = PAGE, after: int = 0, **conditions: Unpack[LetterFilterArgs]) -> Entries:
        """Return dead letters in the order of `sequence`.

        Args:
            limit: the maximum number of letters.
            after: only return letters with a greater `sequence`; pass that of the last letter of the previous page.
            **conditions: the conditions.

        Raises:
            ValueError: `limit` is less than 1.
        """
        _check_number("limit", limit)
        selected = LetterFilter.of(conditions)
        await self._ready()
        return await self._letters.page(selected, after, limit)

    def __aiter__(self) -> AsyncIterator[DeadLetterEntry]:
        """Iterate over all dead letters, which are fetched in pages.

        Letters that are added in the meantime may or may not be included.
        """
        return LetterIterator(self._pages(LetterFilter()))

    async def get(self, letter_id: str) -> DeadLetterEntry:
        """Return one dead letter.

        Raises:
            TaskNotFound: no dead letter has this identifier.
        """
        await self._ready()
        letter = await self._letters.get(letter_id)
        if letter is None:
            raise unknown_letter(letter_id)
        return letter

    async def count(self, **conditions: Unpack[LetterFilterArgs]) -> int:
        """Return the number of dead letters. With conditions, this reads every letter."""
        selected = LetterFilter.of(conditions)
        await self._ready()
        if selected.everything:
            return await self._letters.count()
        return sum([len(page) async for page in self._pages(selected)])

    # Changing.

    async def edit(self, letter_id: str, payload: Any) -> DeadLetterEntry:
        """Change the payload of a letter before its replay.

        Returns:
            The changed letter.

        Raises:
            TaskNotFound: no dead letter has this identifier.
            TypeError: the store cannot keep such a payload.
        """
        await self._ready()
        if not await self._letters.edit(letter_id, payload):
            raise unknown_letter(letter_id)
        return await self.get(letter_id)

    async def replay(self, letter_id: str, *, to: Target | None = None) -> None:
        """Send a letter back to its source: a task becomes pending again, a message is told to its actor again.

        The task keeps its history; its budgets are reset.

        If the call is cancelled while a mailbox is full or a function runs, the letter is kept; the function may have
        run in part. If it is cancelled during a call of the store, the task may be pending again.

        Args:
            letter_id: the identifier of the letter.
            to: another destination: an actor, which is told the payload, or a function, which gets the letter.

        Raises:
            TaskNotFound: no dead letter has this identifier, or another caller is replaying it.
            ActorNotFound: the actor has ended.
            ValueError: the letter comes from `add` and has no source, and no `to` was given.
            Exception: any exception that the function raised. The letter is kept; in memory, the failure is added to
                its history.
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
        **conditions: Unpack[LetterFilterArgs],
    ) -> ReplayReport:
        """Replay all selected letters that exist now. A failed replay does not stop the others.

        Args:
            to: see `replay`.
            dry_run: only count the letters.
            rate: the maximum number of replays per second; None for no limit.
            limit: the maximum number of letters; None for all.
            **conditions: the conditions; without any, all letters are selected.

        Raises:
            ValueError: `rate` or `limit` is invalid, or the letters have no source and no `to` was given.
            StoreUnavailable: the store is unavailable. Completed replays remain; call the method again for the rest.
        """
        for name, number in {"rate": rate, "limit": limit}.items():
            if number is not None and not 0 < check_seconds(name, number) < inf:
                raise ValueError(f"{name}={number!r}: give more than 0, or None")
        target = self._target(to)
        selected = LetterFilter.of(conditions)
        await self._ready()
        report, begun = ReplayReport(), anyio.current_time()
        # With a rate or a target, letters are replayed one at a time; otherwise a page is one step.
        size = 1 if rate is not None or target is not None else PAGE
        async for page in self._pages(selected, until=await self._letters.snapshot_limit(), limit=limit):
            if dry_run:
                report.would_replay += len(page)
                continue
            for start in range(0, len(page), size):
                if rate is not None:
                    await anyio.sleep_until(begun + (report.replayed + report.failed) / rate)
                await self._replay_some(page[start : start + size], target, report)
        return report

    async def remove(self, letter_id: str) -> bool:
        """Delete one letter permanently. Return False if no dead letter has this identifier."""
        await self._ready()
        return await self._letters.remove([letter_id]) > 0

    async def purge(self, *, everything: bool = False, **conditions: Unpack[LetterFilterArgs]) -> int:
        """Delete letters permanently.

        Args:
            everything: must be True to delete all letters, that is, without conditions.
            **conditions: the conditions.

        Returns:
            The number of deleted letters.

        Raises:
            ValueError: neither a condition nor `everything=True` was given.
        """
        selected = LetterFilter.of(conditions)
        if selected.everything and not everything:
            raise ValueError("purge() would delete every dead letter: give a condition, or everything=True")
        await self._ready()
        forgotten = 0
        async for page in self._pages(selected, until=await self._letters.snapshot_limit()):
            forgotten += await self._letters.remove([letter.id for letter in page])
        return forgotten

    # Internals.

    async def _ready(self) -> None:
        await anyio.lowlevel.checkpoint()
        if not self._opened:
            await self._letters.open()
            self._opened = True

    def _pages(
        self, selected: LetterFilter, *, until: tuple[float, float] = (inf, inf), limit: int | None = None
    ) -> PageIterator:
        return PageIterator(self._letters, selected, ready=self._ready, until=until, limit=limit)

    def _target(self, to: Target | None) -> Target | None:
        to = self._to if to is None else to
        if to is None and not self._letters.replayable:
            raise ValueError(no_destination())
        given: Any = to
        if given is not None and not isinstance(given, Ref) and not callable(given):
            raise TypeError(f"to={safe_repr(given)}: give a function, or the ref of an actor")
        return to

    async def _replay_some(self, letters: Entries, target: Target | None, report: ReplayReport) -> None:
        if target is None and self._hold(letters):
            with self._held(letters):
                errors = await self._letters.replay(letters)
        else:
            errors = [await self._replay_one(letter, target) for letter in letters]
        for letter, error in zip(letters, errors, strict=True):
            if error is None:
                report.replayed += 1
            else:
                report.add_failure(letter.id, describe_error(error))

    async def _replay_one(self, letter: DeadLetterEntry, target: Target | None) -> Exception | None:
        """Replay a letter. Return the reason if that failed. Errors of the store are raised."""
        if not self._hold([letter]):
            return TaskNotFound(f"another caller is replaying the dead letter {letter.id} now")
        with self._held([letter]):
            if target is None:
                return (await self._letters.replay([letter]))[0]
            now = await self._letters.get(letter.id)
            if now is None:
                return unknown_letter(letter.id)
            try:
                await deliver(now, target)
            except Exception as error:  # an error of the target, which is reported
                self._letters.note(letter.id, error)
                return error
            with anyio.CancelScope(shield=True):  # it was delivered, so it must be removed
                await self._letters.remove([letter.id])
            return None

    def _hold(self, letters: Entries) -> bool:
        """Reserve all of these letters for this replay, or none of them."""
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
        if self._owns_store:
            await self._letters.enter()
            self._opened = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._owns_store:
            with anyio.CancelScope(shield=True):
                await self._letters.leave()

    def __enter__(self) -> BlockingDeadLetterQueue:
        if self._proxy is not None:
            raise PoolClosed("these dead letters are in use by another `with` block: leave that first")
        if isinstance(self._letters, ActorLetters) and self._blocking_system is None:
            raise self._letters.elsewhere()
        proxy = BlockingDeadLetterQueue(lambda _system: self, system=self._blocking_system, name="dead-letters")
        self._proxy = proxy.__enter__()
        return self._proxy

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        proxy, self._proxy = self._proxy, None
        return None if proxy is None else proxy.__exit__(kind, error, trace)


class BlockingDeadLetterQueue(BlockingProxy[DeadLetterQueue]):
    """Dead letters for blocking code, made by `with DeadLetterQueue() as dlq:`.

    Its methods may be called from any thread. Functions to which letters are replayed run in the event loop of the
    block, so they may be async.
    """

    async def _begin(self) -> None:
        await self._handles[0].__aenter__()

    async def _end(self) -> None:
        await self._handles[0].__aexit__(None, None, None)

    @property
    def dropped(self) -> int:
        """Blocking version of `DeadLetterQueue.dropped`."""
        handle = self._handle
        return self._call_sync(lambda: handle.dropped)

    def add(
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
        """Blocking version of `DeadLetterQueue.add`."""
        return self._call(
            self._handle.add,
            payload,
            error=error,
            reason=reason,
            task_type=task_type,
            source=source,
            letter_id=letter_id,
            history=history,
        )

    def list(self, *, limit: int = PAGE, after: int = 0, **conditions: Unpack[LetterFilterArgs]) -> Entries:
        """Blocking version of `DeadLetterQueue.list`."""
        handle = self._handle
        return self._call(lambda: handle.list(limit=limit, after=after, **conditions))

    def __iter__(self) -> Iterator[DeadLetterEntry]:
        """Iterate over all dead letters, which are fetched in pages."""
        after = 0
        while page := self.list(after=after):
            yield from page
            after = page[-1].sequence

    def get(self, letter_id: str) -> DeadLetterEntry:
        """Blocking version of `DeadLetterQueue.get`."""
        return self._call(self._handle.get, letter_id)

    def count(self, **conditions: Unpack[LetterFilterArgs]) -> int:
        """Blocking version of `DeadLetterQueue.count`."""
        handle = self._handle
        return self._call(lambda: handle.count(**conditions))

    def edit(self, letter_id: str, payload: Any) -> DeadLetterEntry:
        """Blocking version of `DeadLetterQueue.edit`."""
        return self._call(self._handle.edit, letter_id, payload)

    def replay(self, letter_id: str, *, to: Target | None = None) -> None:
        """Blocking version of `DeadLetterQueue.replay`."""
        self._call(self._handle.replay, letter_id, to=to)

    def replay_all(
        self,
        *,
        to: Target | None = None,
        dry_run: bool = False,
        rate: float | None = None,
        limit: int | None = None,
        **conditions: Unpack[LetterFilterArgs],
    ) -> ReplayReport:
        """As `DeadLetterQueue.replay_all`."""
        handle = self._handle
        return self._call(lambda: handle.replay_all(to=to, dry_run=dry_run, rate=rate, limit=limit, **conditions))

    def remove(self, letter_id: str) -> bool:
        """Blocking version of `DeadLetterQueue.remove`."""
        return self._call(self._handle.remove, letter_id)

    def purge(self, *, everything: bool = False, **conditions: Unpack[LetterFilterArgs]) -> int:
        """Blocking version of `DeadLetterQueue.purge`."""
        handle = self._handle
        return self._call(lambda: handle.purge(everything=everything, **conditions))


def _check_number(call: str, number: object) -> None:
    """Raise `TypeError` if `number` is not an `int`, and `ValueError` if it is less than 1."""
    if not isinstance(number, int) or isinstance(number, bool):
        raise TypeError(f"{call}={safe_repr(number)}: give a whole number")
    if number < 1:
        raise ValueError(f"{call}={number!r}: give 1 or more")
