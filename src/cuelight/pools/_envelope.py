"""A message that an actor pool has taken in, on its way to a member; and the reply of one that was asked."""

# Messages and replies are Any here: the handle is typed.
# pyright: reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Protocol

from cuelight.actors import Reason, Reply
from cuelight.actors._reply import DONE, Asked, handling
from cuelight.errors import ActorCrashed, Interrupted, NotStarted, NotStartedTimeout, ReplyError
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
        lost = isinstance(error, NotStarted) and not isinstance(error, NotStartedTimeout)
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
            cause = error.__cause__ if isinstance(error, ActorCrashed) else error
            cell.runtime.dead_letters.add(self.asked.message, cell, reason, cause)

    def _reason(self, error: BaseException | None, cell: Cell) -> Reason | None:
        if isinstance(error, ReplyError):
            return "refused"
        if isinstance(error, ActorCrashed):
            return "crashed" if cell.options.redeliver <= 1 else None  # one that is redelivered is laid to rest there
        if isinstance(error, NotStarted):
            return "stopped" if cell.closed or cell.dead else "unhandled"
        if error is not None and not isinstance(error, Interrupted):
            return "unhandled"  # the rule did not know what to do with it
        # A loop of its own that takes the next message has done with the last: nobody wanted a reply.
        return "interrupted" if isinstance(error, Interrupted) and not cell.table.own_run else None


class PooledReply(Reply[Any]):
    """What `ask` of a pool returns while the request waits for a member; it follows the request to whoever has it."""

    __slots__ = ("_envelope", "_waiter")

    def __init__(self, envelope: Envelope) -> None:
        self._envelope = envelope
        self._waiter: Waiter | None = None

    @property
    def done(self) -> bool:
        return self._envelope.stale

    @property
    def awaited(self) -> bool:
        """Whether a task waits for it."""
        return self._waiter is not None

    def cancel(self) -> None:
        self._envelope.given_up = True
        self._envelope.asked.cancel()

    def wake(self) -> None:
        """The answer is there."""
        if self._waiter is not None:
            self._waiter.wake()

    def __await__(self) -> Generator[Any, Any, Any]:
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
