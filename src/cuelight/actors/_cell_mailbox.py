"""The mailbox of a cell, and what happens to messages that no handler completes.

They wait, or are dropped, refused, handled again or recorded as dead letters.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from typing import TYPE_CHECKING, Any

from cuelight._text import describe_error, safe_repr
from cuelight.actors._messages import ControlMessage, Crashed, Exit
from cuelight.actors._reply import DONE, QUEUED, SET_ASIDE, PendingAsk
from cuelight.errors import (
    ActorCrashed,
    Interrupted,
    InterruptedTimeout,
    MailboxFull,
    NotStarted,
    NotStartedTimeout,
    ReplyError,
)
from cuelight.mailbox import Mailbox, WaitingSender

if TYPE_CHECKING:
    from collections.abc import Callable

    from cuelight.actors._cell_extras import CellExtras
    from cuelight.actors._dispatcher import Dispatcher
    from cuelight.actors._spec import Options


class CellMailbox(Mailbox):
    """The mailbox of a cell. Its methods end messages that no handler completes."""

    __slots__ = ("exit", "extras", "options", "runtime")

    runtime: Dispatcher
    options: Options
    exit: Exit | None
    extras: CellExtras[Any] | None

    @property
    @abstractmethod
    def path(self) -> str:
        """The path of the actor in the tree."""

    @property
    @abstractmethod
    def class_name(self) -> str:
        """The name of the actor's class."""

    @abstractmethod
    def ensure_extras(self) -> CellExtras[Any]:
        """Return the rarely used state, made at first use."""

    # Methods that Mailbox needs from its owner.

    def discard(self, item: Any, reason: str) -> None:
        """Settle an item that was refused or dropped: fail the ask, or make a dead letter."""
        if isinstance(item, PendingAsk):
            if item.state == QUEUED:
                shown = safe_repr(item.message)
                item.fail(NotStarted(f"{self.path} did not take {shown}: {self._why_refused(reason)}"))
        else:
            self.runtime.dead_letters.add(item, self, reason)

    def _why_refused(self, reason: str) -> str:
        if self.closed and self.exit is not None:
            return f"it has ended ({self.exit.describe()})"
        return "it is stopping" if reason == "stopped" else f"its mailbox is full ({reason})"

    def item_cancelled(self, item: Any) -> bool:
        """Return whether an item is a request whose caller no longer waits."""
        return isinstance(item, PendingAsk) and item.state == DONE

    def content(self, item: Any) -> Any:
        """Return the message in an item."""
        return item.message if isinstance(item, PendingAsk) else item

    # Requests whose callers no longer wait.

    @abstractmethod
    def cancel_running(self, ask: PendingAsk) -> None:
        """Cancel the running handler if it handles this ask."""

    def cancel_request(self, ask: PendingAsk) -> None:
        """Handle a caller that no longer waits: drop a queued request, or cancel the handler of a running one."""
        shown = safe_repr(ask.message)
        if ask.state == QUEUED:
            ask.fail(NotStarted(f"the request {shown} was cancelled before {self.path} handled it"))
            self.note_cancelled()
        else:
            ask.fail(Interrupted(f"the request {shown} was cancelled while {self.path} handled it"))
            self._stop_handling(ask)

    def request_timed_out(self, ask: PendingAsk) -> None:
        """Handle a request whose deadline has passed."""
        text = f"{self.path} did not answer {safe_repr(ask.message)} in time"
        if ask.state == QUEUED:
            ask.fail(NotStartedTimeout(f"{text}: it had not begun; {len(self)} messages are in its mailbox"))
            self.note_cancelled()
        elif self._is_deferred(ask):
            ask.fail(InterruptedTimeout(f"{text}: its handler deferred the reply and has not sent it"))
            self._stop_handling(ask)
        else:
            ask.fail(InterruptedTimeout(f"{text}: its handler was running and has been cancelled"))
            self._stop_handling(ask)

    # Deferred replies.

    def _is_deferred(self, ask: PendingAsk) -> bool:
        return self.extras is not None and ask in self.extras.deferred

    def _stop_handling(self, ask: PendingAsk) -> None:
        """Cancel the handler of a request whose caller no longer waits, or the work that serves it."""
        self.cancel_running(ask)
        if self.extras is not None:
            for work in self.extras.deferred.pop(ask, ()):
                work.cancel()

    def deferred_reply_done(self, ask: PendingAsk) -> None:
        """Forget a deferred reply that was sent, refused or dropped."""
        if self.extras is not None:
            self.extras.deferred.pop(ask, None)

    def fail_deferred(self, ask: PendingAsk) -> None:
        """Fail a request whose reply was deferred, because the incarnation has ended without sending it."""
        exit_, shown = self.exit, safe_repr(ask.message)
        if isinstance(exit_, Crashed):
            failure: Interrupted = ActorCrashed(
                f"{self.path} {exit_.describe()}, before it sent the reply to {shown} that it had deferred"
            )
            failure.__cause__ = exit_.error
        else:
            how = "ended" if exit_ is None else exit_.describe()
            failure = Interrupted(f"{self.path} was {how} before it sent the reply to {shown} that it had deferred")
        ask.fail(failure)

    # Putting messages, without and with waiting.

    def put_or_drop(self, message: Any) -> bool:
        """Tell a message without waiting. Without room it becomes a dead letter. Return whether it was accepted."""
        reason = "mailbox_full"
        try:
            accepted = self.put(message)
        except MailboxFull:
            accepted = False
        except BaseException as error:
            accepted, reason = False, "policy_failed"
            self.runtime.policy_failed(self.path, self.options.overflow, error)
        if not accepted:
            self.discard(message, reason)
            return False
        items = self.items
        return items is not None and len(items) > 0 and items[-1] is message and not self.closed

    async def wait_for_room(self, message: Any) -> None:
        """Wait in the queue of senders for a place, then put the message into it."""
        sender = WaitingSender(self.runtime.backend.waiter())
        self.enqueue_sender(sender)
        try:
            await sender.waiter
        except BaseException:
            self.cancel_sender(sender)
            raise
        self.fill_place(sender, message)

    def requeue(self, item: Any) -> None:
        """Put an item back at the front of the queue, to be handled (again)."""
        if isinstance(item, PendingAsk):
            item.state = QUEUED
        if self.items is None:
            self.items = deque()
        self.items.appendleft(item)

    def drop_control(self, unwanted: Callable[[ControlMessage], bool]) -> None:
        """Remove the waiting control messages that are no longer wanted."""
        for lane in (self.control, self.items):
            for _ in range(len(lane or ())):  # in place, and without comparing messages of users
                assert lane is not None  # noqa: S101 - it has a length
                item = lane.popleft()
                if not (isinstance(item, ControlMessage) and unwanted(item)):
                    lane.append(item)

    # Failing.

    def handle_crash(self, error: BaseException, item: Any) -> Crashed:
        """Settle the message of a handler that raised. Return the exit of the incarnation."""
        if item is None or item is SET_ASIDE:
            return Crashed(error)
        message = self.content(item)
        exit_ = Crashed(error, message)
        if isinstance(item, ControlMessage):
            return exit_
        if self.options.redeliver > 1 and self._try_again(item, error):
            return exit_
        if isinstance(item, PendingAsk):
            failure = ActorCrashed(f"{self.path} crashed on {safe_repr(message)}: {describe_error(error)}")
            failure.__cause__ = error
            item.fail(failure)
        elif self.options.redeliver <= 1:
            self.runtime.dead_letters.add(message, self, "crashed", error)
        return exit_

    def _try_again(self, item: Any, error: BaseException) -> bool:
        """Count a crash on this message, then requeue it at the front, or quarantine it after too many crashes.

        Returns:
            Whether the message was requeued.
        """
        extras, count = self.ensure_extras(), 1
        if extras.retry is not None and extras.retry[0] is item:
            count += extras.retry[1]
        else:
            extras.error_log = []
        extras.error_log.append(error)
        if count >= self.options.redeliver:
            extras.retry = (item, 0)
            self.runtime.dead_letters.add(self.content(item), self, "quarantined", error, tuple(extras.error_log))
            return False
        extras.retry = (item, count)
        self.requeue(item)
        return True

    def reject(self, error: ReplyError, item: Any) -> None:
        """Settle the message of a handler that raised `ReplyError`. The caller gets the error; the actor continues."""
        if isinstance(item, PendingAsk):
            item.fail(error)
        else:
            self.runtime.dead_letters.add(item, self, "refused", error)

    def reject_unhandled(self, item: Any) -> None:
        """Settle a message that no handler takes."""
        message = self.content(item)
        if isinstance(item, PendingAsk):
            item.fail(NotStarted(f"{self.path} has no handler for {safe_repr(message)}: {self._why_unhandled(item)}"))
        else:
            self.runtime.dead_letters.add(message, self, "unhandled")
            self.runtime.warn_of_unhandled(self.path, self.class_name, message, self._why_unhandled(item))

    @abstractmethod
    def _why_unhandled(self, item: Any) -> str:
        """Return advice for a message that has no handler."""

    def handle_interrupted(self, item: Any, why: str) -> None:
        """Settle the message of a handler that was cancelled."""
        if isinstance(item, PendingAsk):
            shown = safe_repr(item.message)
            item.fail(Interrupted(f"{self.path} was interrupted while it handled {shown}: {why}"))
        elif item is not None and item is not SET_ASIDE and not isinstance(item, ControlMessage):
            self.runtime.dead_letters.add(item, self, "interrupted")
