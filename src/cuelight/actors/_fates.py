"""What becomes of a message that is not simply handled: it waits, is dropped, refused, run again or laid to rest."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from cuelight._text import describe_error
from cuelight.actors._exits import Crashed, Exit, Terminated
from cuelight.actors._reply import ASIDE, DONE, QUEUED, Asked
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
    from cuelight.actors._bonds import Bonds
    from cuelight.actors._ref import Ref
    from cuelight.actors._runtime import Runtime
    from cuelight.actors._spec import Options

__all__ = ["Fates"]


class Fates(Mailbox):
    """The part of a cell that settles messages."""

    __slots__ = ("exit", "options", "runtime")

    runtime: Runtime
    options: Options
    exit: Exit | None

    @property
    def path(self) -> str:
        """The place of the actor in the tree."""
        raise NotImplementedError

    def bonds_made(self) -> Bonds:
        """Its bonds, made at first use."""
        raise NotImplementedError

    # What Mailbox asks of its owner.

    def dropped(self, item: Any, reason: str) -> None:
        """An item was refused or dropped: fail the ask, or make a dead letter."""
        if isinstance(item, Asked):
            if item.state == QUEUED:
                item.fail(NotStarted(f"{self.path} did not take {item.message!r}: {self._why_refused(reason)}"))
        else:
            self.runtime.dead_letters.add(item, self, reason)

    def _why_refused(self, reason: str) -> str:
        if self.closed and self.exit is not None:
            return f"it has ended ({self.exit.describe()})"
        return "it is stopping" if reason == "stopped" else f"its mailbox is full ({reason})"

    def stale(self, item: Any) -> bool:
        """A request that nobody waits for any more."""
        return isinstance(item, Asked) and item.state == DONE

    def content(self, item: Any) -> Any:
        """The message in an item."""
        return item.message if isinstance(item, Asked) else item

    # Requests that nobody waits for any more.

    def cancel_running(self, ask: Asked) -> None:
        """Cancel the running handler if it is the one of this ask."""
        raise NotImplementedError

    def given_up(self, ask: Asked) -> None:
        """An asker waits no more: queued, the request is dropped; running, its handler is cancelled."""
        if ask.state == QUEUED:
            ask.fail(NotStarted(f"the request {ask.message!r} was cancelled before {self.path} handled it"))
            self.note_stale()
        else:
            ask.fail(Interrupted(f"the request {ask.message!r} was cancelled while {self.path} handled it"))
            self.cancel_running(ask)

    def overdue(self, ask: Asked) -> None:
        """The deadline of a request has passed."""
        text = f"{self.path} did not answer {ask.message!r} in time"
        if ask.state == QUEUED:
            ask.fail(NotStartedTimeout(f"{text}: it had not begun; {len(self)} messages are in its mailbox"))
            self.note_stale()
        else:
            ask.fail(InterruptedTimeout(f"{text}: its handler was running and has been cancelled"))
            self.cancel_running(ask)

    # Putting, for those who cannot wait, and for those who do.

    def put_or_drop(self, message: Any) -> bool:
        """Tell without waiting; without room it is a dead letter. Returns whether it was accepted."""
        try:
            accepted = self.put(message)
        except MailboxFull:
            accepted = False
        if not accepted:
            self.dropped(message, "mailbox_full")
            return False
        items = self.items
        return items is not None and len(items) > 0 and items[-1] is message and not self.closed

    async def wait_for_room(self, message: Any) -> None:
        """Wait in line for a place, then put the message into it."""
        sender = WaitingSender(self.runtime.backend.waiter())
        self.line_up(sender)
        try:
            await sender.waiter
        except BaseException:
            self.leave(sender)
            raise
        self.redeem(sender, message)

    def requeue(self, item: Any) -> None:
        """Put an item back in front of the mail: it is to be handled (again)."""
        if isinstance(item, Asked):
            item.state = QUEUED
        if self.items is None:
            self.items = deque()
        self.items.appendleft(item)

    def drop_terminated(self, ref: Ref[Any]) -> None:
        """Forget a `Terminated` of this actor that waits to be handled."""
        for lane in (self.control, self.items):
            if lane:
                for item in [one for one in lane if isinstance(one, Terminated) and one.ref == ref]:
                    lane.remove(item)

    # Failing.

    def crash(self, error: BaseException, item: Any) -> Crashed:
        """A handler raised: settle its message. Returns how the incarnation ends."""
        if item is None or item is ASIDE:
            return Crashed(error)
        message = self.content(item)
        exit_ = Crashed(error, message)
        if isinstance(item, Terminated):
            return exit_
        if self.options.redeliver > 1 and self.bonds_made().try_again(item, error):
            return exit_
        if isinstance(item, Asked):
            failure = ActorCrashed(f"{self.path} crashed on {message!r}: {describe_error(error)}")
            failure.__cause__ = error
            item.fail(failure)
        elif self.options.redeliver <= 1:
            self.runtime.dead_letters.add(message, self, "crashed", error)
        return exit_

    def refused(self, error: ReplyError, item: Any) -> None:
        """A handler raised `ReplyError`: the asker gets it, and the actor lives on."""
        if isinstance(item, Asked):
            item.fail(error)
        else:
            self.runtime.dead_letters.add(item, self, "refused", error)

    def unhandled(self, item: Any) -> None:
        """No handler takes this message."""
        message = self.content(item)
        if isinstance(item, Asked):
            item.fail(NotStarted(f"{self.path} has no handler for {message!r}: add one with @on(...)"))
        else:
            self.runtime.dead_letters.add(message, self, "unhandled")

    def cut_off(self, item: Any, why: str) -> None:
        """The handler of this item was cancelled."""
        if isinstance(item, Asked):
            item.fail(Interrupted(f"{self.path} was interrupted while it handled {item.message!r}: {why}"))
        elif item is not None and item is not ASIDE and not isinstance(item, Terminated):
            self.runtime.dead_letters.add(item, self, "interrupted")
