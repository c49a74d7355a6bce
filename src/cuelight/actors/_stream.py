"""Streaming replies: the chunks of an async generator handler, one by one, with back-pressure in both directions."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from cuelight._text import safe_repr
from cuelight.actors._reply import DONE, Asked
from cuelight.errors import Interrupted, consists_of

if TYPE_CHECKING:
    from types import TracebackType

    from cuelight.actors._cell import Cell
    from cuelight.mailbox import Waiter

R = TypeVar("R")

WINDOW = 16
"""The number of chunks that a handler may be ahead of its reader."""


class StreamSlot(Asked):
    """The reply slot of a stream. It buffers chunks until `succeed` marks its end or `fail` its failure."""

    __slots__ = ("chunks", "patience", "writer")

    def __init__(self, message: Any, cell: Cell, patience: float) -> None:
        Asked.__init__(self, message, cell, patience)
        self.chunks: deque[Any] = deque()
        self.patience = patience
        self.writer: Waiter | None = None

    def start_clock(self) -> None:
        """Do nothing: only the waits for chunks have a timeout, see `Stream.__anext__`."""

    def wait_for_chunk(self) -> None:
        """Enforce the deadline of the next chunk from now on."""
        runtime = self.cell.runtime
        self.due = runtime.due_in(self.patience)
        self.timed = True
        runtime.alarms.add(self.due, self)

    def chunk_came(self) -> None:
        """End the wait for a chunk."""
        if self.timed:
            self.timed = False
            self.cell.runtime.alarms.remove(self.due, self)
        self.due = 0.0  # the reader does not wait now: the handler's asks have their own timeouts

    def _complete(self) -> None:
        Asked._complete(self)
        if self.writer is not None:
            self.writer.wake()

    def outcome(self) -> None:
        """Return nothing, so that awaiting the slot only waits: chunks before an error must still be read."""

    @property
    def ahead(self) -> int:
        """The number of chunks that the reader has not taken yet."""
        return len(self.chunks)

    def give(self, chunk: Any) -> None:
        self.chunks.append(chunk)
        if self.waiter is not None:
            self.waiter.wake()

    async def feed(self, chunks: AsyncGenerator[Any, None]) -> None:
        """Run the handler's generator to its end, no more than `WINDOW` chunks ahead of the reader."""
        try:
            async for chunk in chunks:
                if self.state == DONE:
                    return
                self.give(chunk)
                while self.ahead >= WINDOW and self.state != DONE:
                    self.writer = self.cell.runtime.backend.waiter()
                    await self.writer
                    self.writer = None
            self.succeed(None)
        finally:
            await self._close(chunks)

    async def _close(self, chunks: AsyncGenerator[Any, None]) -> None:
        """Close a generator whose reader has left, or that is being cancelled. Do nothing at its end.

        Closing raises `GeneratorExit` at the generator's `yield`, where a task group may wrap it. Any other exception
        of its cleanup is logged, because the stream has already ended and no caller waits for it.
        """
        backend = self.cell.runtime.backend
        try:
            await chunks.aclose()
        except backend.cancelled:
            raise
        except BaseException as error:
            if consists_of(error, GeneratorExit, backend.cancelled):
                return
            self.cell.runtime.stream_failed(self.cell, self.message, self.cell.as_failure(error))


class Stream(AsyncIterator[R], Generic[R]):
    """The result of `ref.stream`: iterate over it with `async for`.

    The handler is cancelled when the loop is left early, when `aclose()` is called, or when the stream's `async with`
    block ends.
    """

    __slots__ = ("_slot",)

    def __init__(self, slot: StreamSlot) -> None:
        self._slot = slot

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> R:
        """Return the next chunk. A checkpoint only if the chunk has not arrived yet.

        Raises:
            StopAsyncIteration: the handler's generator has ended.
            NotStarted, Interrupted, ReplyError, DeadlockError: as for an ask. `InterruptedTimeout` if no chunk came in
                time.
        """
        slot = self._slot
        while not slot.chunks:
            if slot.state == DONE:
                if slot.error is not None:
                    raise slot.error
                raise StopAsyncIteration
            slot.wait_for_chunk()
            try:
                await slot
            finally:
                slot.chunk_came()
        chunk: R = slot.chunks.popleft()
        if slot.writer is not None and len(slot.chunks) <= WINDOW // 2:
            slot.writer.wake()
        return chunk

    def detach(self) -> Self:
        """Keep the stream when the handler that opened it ends. Return the stream itself.

        Without this, a handler, a hook or the work of `pipe_to_self` closes the streams that it has opened when it
        ends.
        """
        _ = self._slot.detach()
        return self

    async def aclose(self) -> None:
        """Close the stream: its handler is cancelled. Do nothing at its end. Not a checkpoint."""
        self._give_up()

    def _give_up(self) -> None:
        slot = self._slot
        slot.chunks.clear()
        if slot.state != DONE:
            slot.cancel()
            slot.error = Interrupted(f"the stream of {safe_repr(slot.message)} was closed by its reader")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_up()

    def __del__(self) -> None:
        slot = self._slot
        if slot.state != DONE:
            try:
                slot.cell.runtime.call_threadsafe(slot.cancel)
            except RuntimeError:
                pass  # the loop has ended, and with it the handler
