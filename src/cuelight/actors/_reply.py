"""The reply slot of an ask. It is not part of a mailbox: an answer that comes too late is counted, not delivered.

Invariants:
1. A slot is first queued, then running, then done. It is completed at most once.
2. A caller that stops waiting (cancelled or overdue) withdraws the request from the callee: a queued request is never
   handled, and the handler of a running one is cancelled.
3. An actor's handler never waits for itself through asks.
4. A request ends with the turn that sent it, unless it was detached.
"""

from __future__ import annotations

import enum
import math
import warnings
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, Self, TypeVar

from cuelight._text import safe_repr
from cuelight.actors._wait_graph import ask_code, find_cycle, format_cycle, name_of, waits_by_node
from cuelight.errors import DeadlockError, Interrupted, ReplyError, consists_of
from cuelight.mailbox import running_task

if TYPE_CHECKING:
    from types import TracebackType

    from cuelight.actors._dispatcher import Dispatcher
    from cuelight.actors._wait_graph import Step
    from cuelight.mailbox import Waiter


R = TypeVar("R")

QUEUED, RUNNING, DONE = range(3)


class SetAside(enum.Enum):
    """Stands for the running message of a handler that has deferred the reply or stashed the message.

    That message no longer ends with the handler.
    """

    SET_ASIDE = "a message that was set aside"


SET_ASIDE: Final = SetAside.SET_ASIDE

current_cell: ContextVar[CurrentCell | None] = ContextVar("cuelight_current_cell", default=None)
"""The cell whose handler the running code belongs to, or None outside of handlers."""


background_work: ContextVar[RequestSender | None] = ContextVar("cuelight_background_work", default=None)
"""The background work of an actor that the running code belongs to, or None elsewhere."""


class RequestSender(Protocol):
    """Code that sends requests and, at its end, withdraws those that are still open: a turn, or background work."""

    sent: dict[PendingAsk, None] | None
    """The open requests."""

    def has_sent(self, asked: PendingAsk) -> None:
        """Remember a request if the running code is the sender's own, not that of a task that the sender started."""
        ...


class CurrentCell(RequestSender, Protocol):
    """The cell whose handler sends a request, and awaits the reply."""

    asks: dict[PendingAsk, None] | None
    """The requests whose replies it awaits."""

    def deadline(self) -> float:
        """Return the deadline of the request that it handles, or 0 if there is none."""
        ...

    def waits_in_asks(self) -> bool:
        """Return whether code of this cell that awaits a reply blocks the cell's mailbox."""
        ...

    def runs(self, task: Any) -> bool:
        """Return whether `task` runs the actor's own code now, rather than code of a task that the actor started."""
        ...

    def note_cancelled(self) -> None:
        """Note that a request in its mailbox is no longer needed."""
        ...


class Callee(Protocol):
    """The cell that handles a request."""

    runtime: Dispatcher

    @property
    def path(self) -> str:
        """The path of the actor in the tree."""
        ...

    @property
    def class_name(self) -> str:
        """The name of the actor's class."""
        ...

    def as_failure(self, error: BaseException) -> BaseException:
        """Return the failure of the actor for an exception of its code."""
        ...

    def cancel_request(self, ask: PendingAsk) -> None:
        """Handle a caller that no longer waits."""
        ...

    def request_timed_out(self, ask: PendingAsk) -> None:
        """Handle a request whose deadline has passed."""
        ...

    def deferred_reply_done(self, ask: PendingAsk) -> None:
        """Forget a deferred reply that was sent, refused or dropped."""
        ...


class Reply(Generic[R]):
    """The result of `ask`. Await it for the answer. The request has already been sent.

    Only one task may await it. Cancelling that task cancels the request.
    """

    __slots__ = ("error", "value")

    value: R
    error: BaseException | None

    @property
    def done(self) -> bool:
        """Whether the answer or an error has arrived. Then awaiting it does not suspend."""
        return True

    def cancel(self) -> None:
        """Withdraw the request: drop a queued one, or cancel the handler of a running one. Do nothing if it is done."""

    def detach(self) -> Self:
        """Keep the request when the handler that sent it ends, with its own timeout. Return the reply itself.

        Without this, a handler, a hook or the work of `pipe_to_self` withdraws its open requests when it ends. A
        detached request is withdrawn only by the task that awaits the reply.
        """
        return self

    def __await__(self) -> Generator[Any, Any, R]:
        """Wait for the answer. A checkpoint only if the answer has not arrived yet.

        Raises:
            NotStarted: the request was never handled. `NotStartedTimeout` if it timed out before that.
            Interrupted: the handler was cancelled. `InterruptedTimeout` if it timed out, `ActorCrashed` if it raised
                (the exception is the cause).
            ReplyError: the handler refused the request.
            DeadlockError: the asked actor waits, through asks, for the asker.
        """
        if self.error is not None:
            raise self.error
        return self.value
        yield


class CompletedReply(Reply[R]):
    """A reply that was available at once."""

    __slots__ = ()

    def __init__(self, value: Any, error: BaseException | None = None) -> None:
        self.value = value
        self.error = error


class CompletedForCancelled(CompletedReply[Any]):
    """A reply that was available at once, but whose asker was cancelled meanwhile.

    Awaiting it delivers the cancellation.
    """

    __slots__ = ()

    def __await__(self) -> Generator[Any, Any, Any]:
        yield
        if self.error is not None:
            raise self.error
        return self.value


class UnawaitedReply:
    """Warns when a request is forgotten that was answered, or failed, before any task awaited it.

    It is made only in that case, because a finalizer for each request would cost as much as the rest of a request.
    """

    __slots__ = ("_message", "_path", "awaited")

    def __init__(self, message: Any, path: str) -> None:
        self._message, self._path = message, path
        self.awaited = False

    def __del__(self) -> None:
        if not self.awaited:
            _warn_unawaited(self._message, self._path, self)


def _warn_unawaited(message: Any, path: str, reply: object) -> None:
    warnings.warn(
        f"the answer to {safe_repr(message)}, which {path} was asked, was never awaited: await the ask, or tell the "
        f"actor instead",
        RuntimeWarning,
        stacklevel=3,
        source=reply,
    )


class PendingAsk(Reply[Any]):
    """A sent request and the slot for its answer. It travels through the mailbox instead of the message."""

    __slots__ = ("cell", "due", "message", "sender", "state", "timed", "timeout", "unawaited", "waiter")

    begun = False
    """Whether its handler was begun inside the ask."""

    def __init__(self, message: Any, cell: Callee, timeout: float) -> None:
        self.message = message
        self.cell = cell
        self.timeout = timeout
        self.due = 0.0  # before the clock starts: the deadline inherited from the asker's request, if any
        self.state = QUEUED
        self.error = None
        self.waiter: Waiter | None = None
        self.timed = False
        self.sender: RequestSender | None = None  # withdraws the request when it ends
        self.unawaited: bool | UnawaitedReply = False  # whether it should be awaited and has not been

    @property
    def done(self) -> bool:
        self.mark_awaited()
        return self.state == DONE

    def mark_awaited(self) -> None:
        """Note that the answer was received or is not wanted, so that there is no warning."""
        unawaited, self.unawaited = self.unawaited, False
        if isinstance(unawaited, UnawaitedReply):
            unawaited.awaited = True

    def succeed(self, value: Any) -> None:
        """Complete the request with the handler's return value."""
        if self.state == DONE:
            self.cell.runtime.late_replies += 1
            return
        self.value = value
        self._complete()

    def fail(self, error: BaseException) -> None:
        """Complete the request with an error."""
        if self.state != DONE:
            self.error = error
            self._complete()

    def _complete(self) -> None:
        self.state = DONE
        if self.unawaited is True:
            self.unawaited = UnawaitedReply(self.message, self.cell.path)
        if self.timed:
            self.timed = False
            self.cell.runtime.timers.remove(self.due, self)
        sender = self.sender
        if sender is not None:
            self.sender = None
            if sender.sent is not None:
                sender.sent.pop(self, None)
        waiter = self.waiter
        if waiter is not None:
            waiter.wake()

    def cancel(self) -> None:
        self.mark_awaited()
        self.withdraw()

    def withdraw(self) -> None:
        """Withdraw the request because its sender has ended. If it was never awaited, that is still reported."""
        if self.state != DONE:
            self.cell.cancel_request(self)

    def detach(self) -> Self:
        self.mark_awaited()
        sender, self.sender = self.sender, None
        if sender is not None and sender.sent is not None:
            sender.sent.pop(self, None)
        if not self.timed:
            self.due = 0.0
        return self

    def fire(self) -> None:
        self.timed = False
        if self.state != DONE:
            self.cell.request_timed_out(self)

    def start_clock(self) -> None:
        """Enforce the deadline from now on."""
        if not self.timed and self.state != DONE:
            runtime = self.cell.runtime
            due = runtime.due_in(self.timeout)
            if not self.due or due < self.due:
                self.due = due
            if self.due != math.inf:
                self.timed = True
                runtime.timers.add(self.due, self)

    def __await__(self) -> Generator[Any, Any, Any]:
        if self.unawaited is True:
            self.unawaited = False
        elif self.unawaited:
            self.mark_awaited()
        if self.state != DONE:
            if self.waiter is not None:
                raise RuntimeError("this reply is awaited already: one task may await it")
            asker = current_cell.get()
            if asker is not None and not asker.waits_in_asks():
                asker = None
            if asker is not None or waits_by_node:
                self._enter_graph(asker)
            if not self.timed:
                self.start_clock()
            waiter = self.waiter = self.cell.runtime.backend.waiter()
            try:
                yield from waiter.__await__()
            except BaseException:
                self.cancel()
                raise
            finally:
                self.waiter = None
                if asker is not None and asker.asks is not None:
                    asker.asks.pop(self, None)
        return self.outcome()

    def outcome(self) -> Any:
        """Return or raise the result of awaiting it."""
        if self.error is not None:
            raise self.error
        return self.value

    def _enter_graph(self, asker: CurrentCell | None) -> None:
        starts: list[Any] = []
        if asker is not None:
            if asker.asks is None:
                asker.asks = {}
            asker.asks[self] = None
            starts.append(asker)
        task = running_task() if waits_by_node else None
        if task is not None:
            starts.append(task)
        while (cycle := find_cycle(starts, [(self.cell, None)])) is not None:
            if self.begun and asker is not None and _fail_last_ask(cycle, asker):
                continue
            if asker is not None and asker.asks is not None:
                asker.asks.pop(self, None)
            self.cancel()
            raise _deadlock(starts[0], self.cell, format_cycle(starts, cycle))


class BegunAsk(PendingAsk):
    """A request whose handler was begun inside the ask and may have sent asks before its asker began to wait."""

    __slots__ = ()

    begun = True

    def __del__(self) -> None:
        if self.unawaited is True and self.state == DONE:  # answered at once
            _warn_unawaited(self.message, self.cell.path, self)


def _fail_last_ask(cycle: list[Step], asker: CurrentCell) -> bool:
    """Fail the ask that leads back to the asker, as if the asker had already been waiting when it was sent.

    Returns:
        Whether there is such an ask that has not begun.
    """
    if len(cycle) < 2 or cycle[-1] != (asker, None):
        return False
    last = cycle[-2][0]
    for ask in list(getattr(last, "asks", None) or ()):
        if ask.cell is asker and ask.state == QUEUED:
            del last.asks[ask]
            shown = format_cycle([last], [(asker, None), *cycle[:-1]])
            ask.fail(_deadlock(last, asker, shown))
            asker.note_cancelled()
            return True
    return False


def _deadlock(asker: Any, asked: Any, cycle: str) -> DeadlockError:
    return DeadlockError(
        f"{name_of(asker)} asks {name_of(asked)} and would wait for ever, because each waits for the next: {cycle}. "
        f"Tell instead of ask, or ask from a background task (pipe_to_self)"
    )


ask_code.add(PendingAsk.__await__.__code__)


# Streaming replies: the chunks of an async generator handler, one by one, with back-pressure in both directions.


WINDOW = 16
"""The number of chunks that a handler may be ahead of its reader."""


class StreamSlot(PendingAsk):
    """The reply slot of a stream. It buffers chunks until `succeed` marks its end or `fail` its failure."""

    __slots__ = ("chunk_timeout", "chunks", "writer")

    def __init__(self, message: Any, cell: Callee, chunk_timeout: float) -> None:
        PendingAsk.__init__(self, message, cell, chunk_timeout)
        self.chunks: deque[Any] = deque()
        self.chunk_timeout = chunk_timeout
        self.writer: Waiter | None = None

    def start_clock(self) -> None:
        """Do nothing: only the waits for chunks have a timeout, see `Stream.__anext__`."""

    def start_chunk_clock(self) -> None:
        """Enforce the deadline of the next chunk from now on."""
        runtime = self.cell.runtime
        self.due = runtime.due_in(self.chunk_timeout)
        self.timed = True
        runtime.timers.add(self.due, self)

    def chunk_arrived(self) -> None:
        """End the wait for a chunk."""
        if self.timed:
            self.timed = False
            self.cell.runtime.timers.remove(self.due, self)
        self.due = 0.0  # the reader does not wait now: the handler's asks have their own timeouts

    def _complete(self) -> None:
        PendingAsk._complete(self)
        if self.writer is not None:
            self.writer.wake()

    def outcome(self) -> None:
        """Return nothing, so that awaiting the slot only waits: chunks before an error must still be read."""

    @property
    def ahead(self) -> int:
        """The number of chunks that the reader has not taken yet."""
        return len(self.chunks)

    def add_chunk(self, chunk: Any) -> None:
        self.chunks.append(chunk)
        if self.waiter is not None:
            self.waiter.wake()

    async def feed(self, chunks: AsyncGenerator[Any, None]) -> None:
        """Run the handler's generator to its end, no more than `WINDOW` chunks ahead of the reader."""
        try:
            async for chunk in chunks:
                if self.state == DONE:
                    return
                self.add_chunk(chunk)
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
            self.cell.runtime.stream_failed(
                self.cell.path, self.cell.class_name, self.message, self.cell.as_failure(error)
            )


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
            slot.start_chunk_clock()
            try:
                await slot
            finally:
                slot.chunk_arrived()
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
        self._close_by_reader()

    def _close_by_reader(self) -> None:
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
        self._close_by_reader()

    def __del__(self) -> None:
        slot = self._slot
        if slot.state != DONE:
            try:
                slot.cell.runtime.call_threadsafe(slot.cancel)
            except RuntimeError:
                pass  # the loop has ended, and with it the handler


class ReplyPort:
    """The answering end of a deferred reply. The ask fails when the port is dropped unused or its actor ends."""

    __slots__ = ("_asked",)

    def __init__(self, asked: PendingAsk) -> None:
        self._asked = asked

    @property
    def abandoned(self) -> bool:
        """Whether the caller no longer waits for the answer, or the answer was already given."""
        return self._asked.state == DONE

    def send(self, value: Any) -> None:
        """Send the answer. A late answer is counted in `system.late_replies` and dropped."""
        self._asked.cell.deferred_reply_done(self._asked)
        self._asked.succeed(value)

    def refuse(self, error: ReplyError) -> None:
        """Answer with an error, which the caller gets as a refusal."""
        self._asked.cell.deferred_reply_done(self._asked)
        self._asked.fail(error)

    def __del__(self) -> None:
        asked = self._asked
        asked.cell.deferred_reply_done(asked)
        if asked.state != DONE:
            error = Interrupted(f"{asked.cell.path} deferred the reply to {safe_repr(asked.message)} and dropped it")
            try:
                asked.cell.runtime.call_threadsafe(asked.fail, error)
            except RuntimeError:
                pass  # the loop has ended, and with it the caller
