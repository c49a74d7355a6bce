"""The sources of the items of a map: an iterator that workers advance, or an async iterator with its own reader.

One actor reads an async source, from its first item to its close, because the source may hold a cancel scope or a
task group, which belong to one task.
"""

# Items are Any in this module; the handles in `_map` are typed.
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable, Iterator, Sized
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Protocol

import anyio

from cuelight._text import safe_repr
from cuelight.actors import Cell, ChildSpec, Inbox, Options
from cuelight.errors import TaskCancelled, ends_the_program
from cuelight.pools._contexts import Abandoned, in_context
from cuelight.pools._failures import is_a, is_cancelled

if TYPE_CHECKING:
    from contextvars import Context

    from cuelight.mailbox import Waiter
    from cuelight.pools._worker_group import WorkerGroup

END = object()
"""Marks the end of an async source."""

CLOSE_LIMIT: Final = 10.0
"""Seconds that an async generator may take to close before it is cancelled."""


class SourceOwner(Protocol):
    """The interface of the map for its source."""

    def refresh(self) -> None:
        """Called when there are items, or there will be no more."""
        ...

    def fail(self, error: BaseException) -> None:
        """Called when the source has failed."""
        ...


_WITHOUT_CODE: Final = frozenset({type(iter([])), type(iter(())), type(iter(range(1))), type(iter(""))})
"""Iterators that run no user code, so they may be advanced in any context."""


class SyncSource:
    """A plain iterable. Idle workers read it in the event loop, in the context of the map."""

    def __init__(self, items: Iterable[Any], context: Context) -> None:
        self._iterator: Iterator[Any] = context.run(iter, items)
        self._context = context
        following: Callable[[], Any] = self._iterator.__next__
        self.next = following if type(self._iterator) in _WITHOUT_CODE else partial(context.run, following)
        self.has_items = True
        self.busy = False

    def next_many(self, most: int) -> list[Any]:
        """Up to `most` items. If there are fewer, this does not mean the end of the source."""
        return self._context.run(list, islice(self._iterator, most))

    def start(self, group: WorkerGroup, owner: SourceOwner) -> None:
        """Do nothing: a plain iterable needs no reader."""

    def close(self, owner: SourceOwner) -> None:
        """Read no more items, and close a generator."""
        self.next = _end
        try:
            if getattr(self._iterator, "gi_running", False):
                return  # the generator is ending its own map, and is closed once it has yielded
            self._context.run(close_generator, self._iterator)
        except BaseException as error:
            owner.fail(error)

    def wanted(self, room: int) -> None:
        """Do nothing: a plain iterable is not read ahead."""


def close_generator(iterator: Any) -> None:
    """Close the source if it is a generator that is not running."""
    if isinstance(iterator, Generator) and not getattr(iterator, "gi_running", False):
        iterator.close()


def count_items(items: Any) -> int | None:
    """Number of items, if the source has a length that can be read; otherwise None."""
    try:
        return len(items) if isinstance(items, Sized) else None
    except BaseException as error:
        if ends_the_program(error):
            raise
        return None


def _end() -> Any:
    raise StopIteration


class AsyncSource:
    """An async iterable. Its own actor reads it, only when workers want items."""

    def __init__(self, items: AsyncIterable[Any], context: Context) -> None:
        self._items, self._context = items, context
        self._ahead: deque[Any] = deque()
        self._cell: Cell | None = None
        self._waiter: Waiter | None = None
        self._room = 0
        self._ended = False
        self.busy = False

    @property
    def has_items(self) -> bool:
        """Whether `next` returns an item now, or there are no more items."""
        return bool(self._ahead) or self._ended

    def next(self) -> Any:
        """Return the next item.

        Raises:
            StopIteration: there are no more items.
        """
        if self._ahead:
            item = self._ahead.popleft()
            self._wake()
            return item
        raise StopIteration

    def next_many(self, most: int) -> list[Any]:
        """Up to `most` of the items that were read ahead."""
        items = [self._ahead.popleft() for _ in range(min(most, len(self._ahead)))]
        self._wake()
        return items

    def start(self, group: WorkerGroup, owner: SourceOwner) -> None:
        """Start the reader, in the context of the map."""
        family = group.cell.ensure_children()
        self.busy = True
        self._cell = family.start_child(ChildSpec(self._read, (group, owner), options=READER))
        self._cell.ensure_extras().call_when_ended(lambda _exit: self._over(owner))

    def wanted(self, room: int) -> None:
        """Set how many items to read ahead."""
        self._room = room
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and len(self._ahead) < self._room:
            self._waiter.wake()

    async def _read(self, _inbox: Inbox[Any], group: WorkerGroup, owner: SourceOwner) -> None:
        await in_context(self._context, self._read_all(group, owner))

    async def _read_all(self, group: WorkerGroup, owner: SourceOwner) -> None:
        iterator: Any = None
        try:
            iterator = aiter(self._items)
            while True:
                while len(self._ahead) >= self._room:
                    self._waiter = group.runtime.backend.waiter()
                    await self._waiter
                    self._waiter = None
                item = await anext(iterator, END)
                if item is END:
                    self._ended = True
                    break
                self._ahead.append(item)
                owner.refresh()
        except BaseException as error:
            self._failed(error, owner)
        finally:
            await self._close(iterator, owner)

    def _failed(self, error: BaseException, owner: SourceOwner) -> None:
        """Report an exception of the source, unless the reader itself was cancelled."""
        if ends_the_program(error):
            owner.fail(error)
            raise error
        if not is_a(error, Exception) and (is_a(error, Abandoned) or is_cancelled()):
            raise error
        owner.fail(error)

    async def _close(self, iterator: Any, owner: SourceOwner) -> None:
        try:
            if not isinstance(iterator, AsyncGenerator):
                return
            with anyio.move_on_after(CLOSE_LIMIT, shield=True) as scope:
                await iterator.aclose()
        except BaseException as error:
            self._failed(error, owner)
        else:
            if scope.cancelled_caught:
                owner.fail(TimeoutError(f"the source of the map took longer than {CLOSE_LIMIT:g} s to close: cut off"))

    def _over(self, owner: SourceOwner) -> None:
        self.busy = False
        if not self._ended:
            self._ended = True
            owner.fail(TaskCancelled("the reader of its items was ended"))
        owner.refresh()

    def close(self, owner: SourceOwner) -> None:
        """Read no more items: cancel the current read, and close an async generator."""
        self._ahead.clear()
        self._ended = True
        if self._cell is not None and self.busy:
            self._cell.kill("nobody wants more items")


READER = Options(restart="temporary")

Source = SyncSource | AsyncSource


def source_of(items: Any, context: Context) -> Source:
    """The source for the `items` argument of `map`.

    Args:
        items: an iterable or async iterable.
        context: the context in which the user code of the source runs.

    Raises:
        TypeError: `items` cannot be iterated.
    """
    if isinstance(items, AsyncIterable):
        return AsyncSource(items, context)
    if not isinstance(items, Iterable) and not hasattr(type(items), "__getitem__"):
        raise TypeError(f"map over {safe_repr(items)}: give an iterable or an async iterable of items")
    return SyncSource(items, context)
