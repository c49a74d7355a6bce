"""Where a map has its items from: an iterator that workers advance, or an async one with a reader of its own.

An async source is read by one actor, from its first item to its close, because it may hold a cancel scope or a task
group, which belong to one task.
"""

# Items are Any here: the handles in `_map` are typed.
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from cuelight.actors import Cell, ChildSpec, Inbox, Options
from cuelight.errors import TaskCancelled

if TYPE_CHECKING:
    from cuelight.mailbox import Waiter
    from cuelight.pools._crew import Crew

__all__ = ["END", "AsyncSource", "Sink", "Source", "SyncSource", "source_of"]

END = object()
"""There are no more items."""


class Sink(Protocol):
    """The map that a source feeds."""

    def refresh(self) -> None:
        """Something has changed: there are items, or there will be no more."""
        ...

    def fail(self, error: BaseException) -> None:
        """The source is broken."""
        ...


class SyncSource:
    """A plain iterable. It is read in the loop, by whichever worker is idle."""

    def __init__(self, items: Iterable[Any]) -> None:
        self._iterator: Iterator[Any] = iter(items)
        self.next: Callable[[], Any] = self._iterator.__next__
        self.has_items = True
        self.busy = False

    def next_many(self, most: int) -> list[Any]:
        """Up to so many items. Fewer does not mean that there are no more."""
        return list(islice(self._iterator, most))

    def start(self, crew: Crew, sink: Sink) -> None:
        """Nothing needs to be started."""

    def close(self, sink: Sink) -> None:
        """Read no more; a generator is closed."""
        iterator: Any = self._iterator
        self.next = _end
        # One that runs is ending its own map; it is closed once it has yielded.
        if isinstance(iterator, Generator) and not getattr(iterator, "gi_running", False):
            try:
                iterator.close()
            except Exception as error:
                sink.fail(error)

    def wanted(self, room: int) -> None:
        """Nothing is read ahead."""


def _end() -> Any:
    raise StopIteration


class AsyncSource:
    """An async iterable, read by an actor of its own, only when workers want items."""

    def __init__(self, items: AsyncIterable[Any]) -> None:
        self._items = items
        self._ahead: deque[Any] = deque()
        self._cell: Cell | None = None
        self._waiter: Waiter | None = None
        self._room = 0
        self._ended = False
        self.busy = False

    @property
    def has_items(self) -> bool:
        """Whether `next` returns an item now, or says that there are no more."""
        return bool(self._ahead) or self._ended

    def next(self) -> Any:
        """The next item.

        Raises:
            StopIteration: there are no more.
        """
        if self._ahead:
            item = self._ahead.popleft()
            self._wake()
            return item
        raise StopIteration

    def next_many(self, most: int) -> list[Any]:
        """Up to so many items, of those that were read ahead."""
        items = [self._ahead.popleft() for _ in range(min(most, len(self._ahead)))]
        self._wake()
        return items

    def start(self, crew: Crew, sink: Sink) -> None:
        """Begin to read."""
        self.busy = True
        family = crew.runtime.family_made(crew.cell)
        self._cell = family.adopt(ChildSpec(self._read, (crew, sink), options=READER))
        self._cell.bonds_made().call_when_ended(lambda _exit: self._over(sink))

    def wanted(self, room: int) -> None:
        """Read so far ahead."""
        self._room = room
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and len(self._ahead) < self._room:
            self._waiter.wake()

    async def _read(self, _inbox: Inbox[Any], crew: Crew, sink: Sink) -> None:
        iterator = aiter(self._items)
        try:
            while True:
                while len(self._ahead) >= self._room:
                    self._waiter = crew.runtime.backend.waiter()
                    await self._waiter
                    self._waiter = None
                item = await anext(iterator, END)
                if item is END:
                    self._ended = True
                    break
                self._ahead.append(item)
                sink.refresh()
        except Exception as error:
            sink.fail(error)
        finally:
            if isinstance(iterator, AsyncGenerator):
                try:
                    with anyio.CancelScope(shield=True):
                        await iterator.aclose()
                except Exception as error:
                    sink.fail(error)

    def _over(self, sink: Sink) -> None:
        self.busy = False
        if not self._ended:
            self._ended = True
            sink.fail(TaskCancelled("the reader of its items was ended"))
        sink.refresh()

    def close(self, sink: Sink) -> None:
        """Read no more: what is being read is cancelled, and an async generator closed."""
        self._ahead.clear()
        self._ended = True
        if self._cell is not None and self.busy:
            self._cell.kill("nobody wants more items")


READER = Options(restart="temporary")

Source = SyncSource | AsyncSource


def source_of(items: Any) -> Source:
    """The source for what was given to `map`.

    Raises:
        TypeError: it cannot be iterated.
    """
    if isinstance(items, AsyncIterable):
        return AsyncSource(items)
    try:
        return SyncSource(items)
    except TypeError:
        raise TypeError(f"map over {items!r}: give an iterable or an async iterable of items") from None
