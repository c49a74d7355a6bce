"""A message that an actor pool has taken in, on its way to a member; and the reply of one that was asked."""

# Messages and replies are Any here: the handle is typed.
# pyright: reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Protocol, Self

from cuelight.actors import Reason, Reply
from cuelight.actors._reply import DONE, Asked, Sender, Unheard, handling
from cuelight.errors import ActorCrashed, Interrupted, NotStarted, NotStartedTimeout, ReplyError
from cuelight.pools._failures import is_a
from cuelight.pools._waiting import waiting

if TYPE_CHECKING:
    from cuelight.actors import Cell
    from cuelight.mailbox import Waiter
    from cuelight.pools._troupe import Seat

__all__ = ["Envelope", "PooledReply"]


class Members(Protocol):
    """The pool, as a message sees it."""

    name: str
    seats: list[Seat]

    def done(self, envelope: Envelope) -> None:
        """The slot of an envelope is done, in the queue or with a member."""
        ...


class Envelope:
    """A message and its slot. It is told (through `wake`, in the stead of an asker) when a member is done with it."""

    __slots__ = ("_pool", "asked", "cell", "given_up", "reply")

    def __init__(self, asked: Asked, pool: Members, *, told: bool) -> None:
        self._pool = pool
        self.cell: Cell | None = None
        self.given_up = False
        self.reply = None if told else PooledReply(self)
        self._watch(asked)

    def _watch(self, asked: Asked) -> None:
        self.asked = asked
        heard_by: Any = self  # it is woken as an asker would be, and nobody awaits it
        asked.waiter = heard_by

    def wake(self) -> None:
        """The slot is done."""
        self._pool.done(self)

    def give_to(self, cell: Cell) -> None:
        """Put it into the mailbox of a member."""
        self.cell = self.asked.cell = cell
        if not cell.put(self.asked):
            cell.line_up(self.asked)

    @property
    def stale(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.asked.state == DONE

    @property
    def untouched(self) -> bool:
        """Whether a member that has ended gave it back, so that another can have it."""
        error = self.asked.error
        lost = error is not None and is_a(error, NotStarted) and not is_a(error, NotStartedTimeout)
        return lost and not self.given_up and self.cell is not None and self.cell.closed

    def renew(self, home: Cell) -> None:
        """Make it fit to be given to another member, with what is left of its time."""
        old = self.asked
        asked = Asked(old.message, home, old.timeout)
        asked.due = old.due
        self.cell = None
        self._watch(asked)
        if self.reply is not None and self.reply.awaited:
            asked.start_clock()

    # In the graph of waits.

    @property
    def thing(self) -> str:
        """What it is, for people who are told of a deadlock."""
        return f"an answer of the actor pool {self._pool.name!r}"

    @property
    def way_out(self) -> str:
        """What to do about a deadlock."""
        return "Tell instead of ask, or ask from a background task (pipe_to_self)"

    def runners(self) -> list[Any] | None:
        """The member that has it; None if it waits for one."""
        if self.stale:
            return []
        return None if self.cell is None else [self.cell]

    def occupants(self) -> list[Any]:
        """The members of which one must be free before it goes to one; none if one is, or will be for sure."""
        seats = self._pool.seats
        return [] if any(seat.ready or not seat.live for seat in seats) else [seat.cell for seat in seats]

    def settle(self) -> None:
        """It is done with: wake the asker, or make a dead letter of a failure that nobody else would hear of."""
        if self.reply is not None:
            self.reply.wake()
            return
        error, cell = self.asked.error, self.asked.cell
        reason = self._reason(error, cell)
        if reason is not None:
            cause = error.__cause__ if error is not None and is_a(error, ActorCrashed) else error
            cell.runtime.dead_letters.add(self.asked.message, cell, reason, cause)

    def _reason(self, error: BaseException | None, cell: Cell) -> Reason | None:
        if error is None:
            return None
        if is_a(error, ReplyError):
            return "refused"
        if is_a(error, ActorCrashed):
            return "crashed" if cell.options.redeliver <= 1 else None  # one that is redelivered is laid to rest there
        if is_a(error, NotStarted):
            return "stopped" if cell.closed or cell.dead else "unhandled"
        if not is_a(error, Interrupted):
            return "unhandled"  # the rule did not know what to do with it
        # A loop of its own that takes the next message has done with the last: nobody wanted a reply.
        return "interrupted" if not cell.table.own_run else None


class PooledReply(Reply[Any]):
    """The reply of `ActorPool.ask`. It follows its request to the member that gets it.

    The turn that has sent it remembers it as it remembers an `Asked`, and withdraws it at its end.
    """

    __slots__ = ("_envelope", "_waiter", "sender", "unheard")

    def __init__(self, envelope: Envelope) -> None:
        self._envelope = envelope
        self._waiter: Waiter | None = None
        self.sender: Sender | None = None
        self.unheard: bool | Unheard = True

    @property
    def done(self) -> bool:
        self.hear()
        return self._envelope.stale

    @property
    def awaited(self) -> bool:
        """Whether a task waits for it."""
        return self._waiter is not None

    def hear(self) -> None:
        """Somebody knows of the answer, or wants none."""
        unheard, self.unheard = self.unheard, False
        if isinstance(unheard, Unheard):
            unheard.heard = True

    def cancel(self) -> None:
        self.hear()
        self.withdraw()

    def withdraw(self) -> None:
        """Give it up, as its sender has ended; if nobody has awaited it, that is still a mistake."""
        self._envelope.given_up = True
        self._envelope.asked.cancel()

    def detach(self) -> Self:
        self.hear()
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
        """The answer is there."""
        if self.sender is not None:
            self._forget_sender()
        if self.unheard is True:
            asked = self._envelope.asked
            self.unheard = Unheard(asked.message, asked.cell.path)
        if self._waiter is not None:
            self._waiter.wake()

    def __await__(self) -> Generator[Any, Any, Any]:
        if self.unheard is True:
            self.unheard = False
        elif self.unheard:
            self.hear()
        envelope = self._envelope
        asked = envelope.asked
        if asked.state != DONE:
            if self._waiter is not None:
                raise RuntimeError("this reply is awaited already: one task may await it")
            asker = handling.get()
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
