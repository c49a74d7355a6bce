"""The mailbox as an actor with a loop of its own sees it: receive, iterate, select."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import anyio

from cuelight.actors._cell import DRAINING, FAIL, KILL, LIVE, RECYCLE
from cuelight.actors._reply import DONE, RUNNING, Asked
from cuelight.errors import ChannelClosed, Interrupted
from cuelight.mailbox import CLOSED, NOT_READY

if TYPE_CHECKING:
    from cuelight.actors._task_cell import TaskCell
    from cuelight.mailbox import CaseWaiter

__all__ = ["Inbox"]

M = TypeVar("M")

AT_ONCE = KILL | FAIL | RECYCLE
"""Signals that do not wait for the queue."""


class Inbox(Generic[M]):
    """Where `run`, or an actor made of a function, takes its messages from. Also a case of `select`.

    A request that was received and neither answered (`reply`), deferred nor given to `handle` fails when the next
    message is received: no asker is left hanging.
    """

    __slots__ = ("_cell", "_waiters")

    def __init__(self, cell: TaskCell) -> None:
        self._cell = cell
        self._waiters: deque[CaseWaiter] = deque()

    def __len__(self) -> int:
        return len(self._cell)

    def _take(self) -> Any:
        """The next message, `NOT_READY` or `CLOSED`."""
        cell = self._cell
        self._settle_last()
        if cell.attention and (cell.signals & AT_ONCE or cell.attend() is not None):
            return CLOSED
        while cell.items:
            item = cell.items.popleft()
            if isinstance(item, Asked):
                if item.state == DONE:
                    cell.stales = max(0, cell.stales - 1)
                    continue
                item.state = RUNNING
                item.start_clock()
            cell.running = item
            cell.handled += 1
            return cell.content(item)
        cell.items = None
        if not cell.asleep:
            cell.asleep = 1
            cell.runtime.dozed()
        return NOT_READY if cell.state in (LIVE, DRAINING) and not cell.closed else CLOSED

    def _settle_last(self) -> None:
        cell = self._cell
        last, cell.running = cell.running, None
        if isinstance(last, Asked) and last.state == RUNNING:
            last.fail(Interrupted(f"{cell.path} took {last.message!r} and went on without a reply"))

    def _closed(self) -> ChannelClosed:
        return ChannelClosed(f"{self._cell.path} is stopping, and its mailbox is empty")

    async def receive(self) -> M:
        """The next message. A checkpoint only if there is none yet.

        Raises:
            ChannelClosed: the actor is to stop, and everything in its mailbox was received.
            anyio.BusyResourceError: another task waits for the next message already.
        """
        cell = self._cell
        while True:
            message = self._take()
            if message is CLOSED:
                raise self._closed()
            if message is not NOT_READY:
                taken: M = message
                return taken
            if cell.waiter is not None:
                raise anyio.BusyResourceError("receiving from")
            cell.waiter = waiter = cell.runtime.backend.waiter()
            try:
                await waiter
            finally:
                cell.waiter = None

    def receive_nowait(self) -> M:
        """The next message, if there is one. Not a checkpoint.

        Raises:
            anyio.WouldBlock: there is none.
            ChannelClosed: the actor is to stop, and everything in its mailbox was received.
        """
        message = self._take()
        if message is CLOSED:
            raise self._closed()
        if message is NOT_READY:
            raise anyio.WouldBlock
        taken: M = message
        return taken

    def reply(self, value: Any) -> None:
        """Answer the request that was received last. Nothing happens if it was told, not asked.

        Args:
            value: the answer, of the type that the request declares.
        """
        cell = self._cell
        last, cell.running = cell.running, None
        if isinstance(last, Asked):
            last.succeed(value)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> M:
        try:
            return await self.receive()
        except ChannelClosed:
            raise StopAsyncIteration from None

    # As a case of select.

    def case_poll(self) -> Any:
        """Take the next message.

        Raises:
            ChannelClosed: the actor is to stop, and everything in its mailbox was received. A loop that selects on
                its inbox and on timers must hear of that, so the inbox does not just drop out.
        """
        message = self._take()
        if message is CLOSED:
            raise self._closed()
        return message

    def case_enroll(self, waiter: CaseWaiter, /) -> None:
        """Claim the select when mail comes."""
        self._waiters.append(waiter)
        self._cell.waiter = self

    def case_withdraw(self, waiter: CaseWaiter, /) -> None:
        """The select is over."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)
        if not self._waiters:
            self._cell.waiter = None

    def case_put_back(self, item: Any, /) -> bool:
        """The select was cancelled: the message goes back to the front."""
        cell = self._cell
        back = cell.running if cell.running is not None else item
        cell.running = None
        cell.requeue(back)
        if cell.asleep:
            cell.woken()
        return True

    def wake(self) -> None:
        """Mail has come while a select waits for it."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if waiter.done():
                continue
            message = self._take()
            waiter.set_result(message)
            if message is not CLOSED:
                return
