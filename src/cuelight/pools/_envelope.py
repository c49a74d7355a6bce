"""A message in the queue of an actor pool or at a member, and the reply to a request."""

# Messages and replies are Any in this module; the public handle is typed.
# pyright: reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Protocol, Self

from cuelight.actors import Cell, Reason, Reply
from cuelight.actors._reply import DONE, Callee, PendingAsk, RequestSender, UnawaitedReply, current_cell
from cuelight.errors import ActorCrashed, Interrupted, NotStarted, NotStartedTimeout, ReplyError
from cuelight.pools._failures import is_a
from cuelight.pools._waiting import waiting

if TYPE_CHECKING:
    from cuelight.mailbox import Waiter
    from cuelight.pools._member_slot import MemberSlot


class EnvelopePool(Protocol):
    """The interface of the pool for a message."""

    name: str
    slots: list[MemberSlot]

    def done(self, envelope: Envelope) -> None:
        """Called when the slot of an envelope is done, in the queue or at a member."""
        ...


class Envelope:
    """A message and its slot. The slot calls `wake` instead of waking an asker when a member is done with it."""

    __slots__ = ("_pool", "asked", "cell", "given_up", "reply")

    def __init__(self, asked: PendingAsk, pool: EnvelopePool, *, told: bool) -> None:
        self._pool = pool
        self.cell: Cell | None = None
        self.given_up = False
        self.reply = None if told else PooledReply(self)
        self._watch(asked)

    def _watch(self, asked: PendingAsk) -> None:
        self.asked = asked
        heard_by: Any = self  # the slot wakes it like an asker; no task awaits it
        asked.waiter = heard_by

    def wake(self) -> None:
        self._pool.done(self)

    def give_to(self, cell: Cell) -> None:
        """Put the message into the mailbox of a member."""
        self.cell = self.asked.cell = cell
        if not cell.put(self.asked):
            cell.enqueue_sender(self.asked)

    @property
    def is_done(self) -> bool:
        """Whether the slot is done: answered, failed or withdrawn."""
        return self.asked.state == DONE

    @property
    def not_begun(self) -> bool:
        """Whether a member ended before it began the message, so that another member can have it."""
        error = self.asked.error
        lost = error is not None and is_a(error, NotStarted) and not is_a(error, NotStartedTimeout)
        return lost and not self.given_up and self.cell is not None and self.cell.closed

    def reset(self, supervisor: Cell) -> None:
        """Give the message a new slot for another member, with the same deadline."""
        old = self.asked
        asked = PendingAsk(old.message, supervisor, old.timeout)
        asked.due = old.due
        self.cell = None
        self._watch(asked)
        if self.reply is not None and self.reply.awaited:
            asked.start_clock()

    # In the graph of waits.

    @property
    def thing(self) -> str:
        """Its description in deadlock errors."""
        return f"an answer of the actor pool {self._pool.name!r}"

    @property
    def way_out(self) -> str:
        """The advice in deadlock errors."""
        return "Tell instead of ask, or ask from a background task (pipe_to_self)"

    def running_nodes(self) -> list[Any] | None:
        """The member that has the message; None if it waits for a member."""
        if self.is_done:
            return []
        return None if self.cell is None else [self.cell]

    def busy_nodes(self) -> list[Any]:
        """The members, one of which must become free first; empty if one is free, or certainly will be."""
        slots = self._pool.slots
        return [] if any(slot.ready or not slot.live for slot in slots) else [slot.cell for slot in slots]

    def settle(self) -> None:
        """Wake the asker, or make a dead letter of the failure of a told message, which has no asker."""
        if self.reply is not None:
            self.reply.wake()
            return
        error, cell = self.asked.error, self.asked.cell
        reason = self._reason(error, cell)
        if reason is not None:
            cause = error.__cause__ if error is not None and is_a(error, ActorCrashed) else error
            cell.runtime.dead_letters.add(self.asked.message, cell, reason, cause)

    def _reason(self, error: BaseException | None, cell: Callee) -> Reason | None:
        if error is None:
            return None
        if is_a(error, ReplyError):
            return "refused"
        assert isinstance(cell, Cell)  # noqa: S101 - a member, or the actor of the pool
        if is_a(error, ActorCrashed):
            # For messages that are redelivered, the actor itself makes the dead letter.
            return "crashed" if cell.options.redeliver <= 1 else None
        if is_a(error, NotStarted):
            return "stopped" if cell.closed or cell.dead else "unhandled"
        if not is_a(error, Interrupted):
            return "unhandled"  # the rule failed on the message
        # An actor with its own `run` loop finishes a message by taking the next; no asker waited for a reply.
        return "interrupted" if not cell.table.own_run else None


class PooledReply(Reply[Any]):
    """The reply of `ActorPool.ask`. It follows its request from member to member.

    The turn that has sent the request remembers this reply like an `PendingAsk`, and withdraws it when the turn ends.
    """

    __slots__ = ("_envelope", "_waiter", "sender", "unawaited")

    def __init__(self, envelope: Envelope) -> None:
        self._envelope = envelope
        self._waiter: Waiter | None = None
        self.sender: RequestSender | None = None
        self.unawaited: bool | UnawaitedReply = True

    @property
    def done(self) -> bool:
        self.mark_awaited()
        return self._envelope.is_done

    @property
    def awaited(self) -> bool:
        """Whether a task awaits this reply."""
        return self._waiter is not None

    def mark_awaited(self) -> None:
        """Note that the answer was noticed, or is not wanted."""
        unawaited, self.unawaited = self.unawaited, False
        if isinstance(unawaited, UnawaitedReply):
            unawaited.awaited = True

    def cancel(self) -> None:
        self.mark_awaited()
        self.withdraw()

    def withdraw(self) -> None:
        """Give the request up because its sender has ended. If the reply was never awaited, that is still a mistake."""
        self._envelope.given_up = True
        self._envelope.asked.cancel()

    def detach(self) -> Self:
        self.mark_awaited()
        self._forget_sender()
        asked = self._envelope.asked
        if not asked.timed:
            asked.due = 0.0
        return self

    def _forget_sender(self) -> None:
        sender, self.sender = self.sender, None
        if sender is not None and sender.sent is not None:
            requests: dict[Any, None] = sender.sent
            requests.pop(self, None)

    def wake(self) -> None:
        """Wake the asker, because the answer has arrived."""
        if self.sender is not None:
            self._forget_sender()
        if self.unawaited is True:
            asked = self._envelope.asked
            self.unawaited = UnawaitedReply(asked.message, asked.cell.path)
        if self._waiter is not None:
            self._waiter.wake()

    def __await__(self) -> Generator[Any, Any, Any]:
        if self.unawaited is True:
            self.unawaited = False
        elif self.unawaited:
            self.mark_awaited()
        envelope = self._envelope
        asked = envelope.asked
        if asked.state != DONE:
            if self._waiter is not None:
                raise RuntimeError("this reply is awaited already: one task may await it")
            asker = current_cell.get()
            if asker is not None and not asker.waits_in_asks():
                asker = None
            if not asked.timed:
                asked.start_clock()
            waiter = self._waiter = asked.cell.runtime.backend.waiter()
            try:
                if asker is None:
                    yield from waiter.__await__()
                else:
                    with waiting(envelope, [asker]):
                        yield from waiter.__await__()
            except BaseException:
                self.cancel()
                raise
            finally:
                self._waiter = None
        return envelope.asked.outcome()
