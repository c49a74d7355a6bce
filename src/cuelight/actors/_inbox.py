"""The mailbox from the view of an actor with its own receive loop: receive, iterate, select."""

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

M = TypeVar("M")

AT_ONCE = KILL | FAIL | RECYCLE
"""Signals that take effect before the queue is finished."""


class Inbox(Generic[M]):
    """The source of messages for `run`, or for an actor made from a function. Also a case of `select`.

    Each received request must be answered (`reply`), deferred or passed to `handle`. Otherwise it fails when the next
    message is received, so that no asker waits in vain.
    """

    __slots__ = ("_cell", "_waiters")

    def __init__(self, cell: TaskCell) -> None:
        self._cell = cell
        self._waiters: deque[CaseWaiter] = deque()

    def __len__(self) -> int:
        return len(self._cell)

    def _take(self) -> Any:
        """Return the next message, `NOT_READY` or `CLOSED`."""
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
        """Receive the next message. A checkpoint only if it has to wait.

        Raises:
            ChannelClosed: the actor is stopping, and all messages in its mailbox were received.
            anyio.BusyResourceError: another task already waits for the next message.
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
        """Receive the next message if there is one. Not a checkpoint.

        Raises:
            anyio.WouldBlock: there is none.
            ChannelClosed: the actor is stopping, and all messages in its mailbox were received.
        """
        message = self._take()
        if message is CLOSED:
            raise self._closed()
        if message is NOT_READY:
            raise anyio.WouldBlock
        taken: M = message
        return taken

    def reply(self, value: Any) -> None:
        """Answer the request that was received last. Do nothing if that message was told, not asked.

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
            ChannelClosed: the actor is stopping, and all messages in its mailbox were received. The inbox does not just
                drop out of the select, because a loop that selects on its inbox and on timers must notice the stop.
        """
        message = self._take()
        if message is CLOSED:
            raise self._closed()
        return message

    def case_enroll(self, waiter: CaseWaiter, /) -> None:
        """Claim the select when a message arrives."""
        self._waiters.append(waiter)
        self._cell.waiter = self

    def case_withdraw(self, waiter: CaseWaiter, /) -> None:
        """Forget the waiter of a select that is over."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)
        if not self._waiters:
            self._cell.waiter = None

    def case_put_back(self, item: Any, /) -> bool:
        """Put the message of a cancelled select back at the front."""
        cell = self._cell
        back = cell.running if cell.running is not None else item
        cell.running = None
        cell.requeue(back)
        if cell.asleep:
            cell.woken()
        return True

    def wake(self) -> None:
        """Give new messages to the waiting select."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if waiter.done():
                continue
            message = self._take()
            waiter.set_result(message)
            if message is not CLOSED:
                return
