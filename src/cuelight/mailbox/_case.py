"""What `select` can wait for: the `Case` protocol, and the claim that makes exactly one case take effect.

A select has three steps:

1. **poll** the cases in turn: the first that can take effect does so, at once, and the select is over;
2. else **enroll** a `CaseWaiter` with each of them and sleep. Nothing can happen between the polls and the
   enrolments, because no other task runs in between;
3. when woken, **withdraw** from each of them.

All the waiters of one select share one slot. Whoever owns a case and has something for it *claims* the
waiter:

    if not waiter.done():           # the select got something else already, or was cancelled: try the next
    one
        waiter.set_result(item)     # this select is over, and takes this item

Between the two lines there must be no await. With that, no two cases can both take effect.
`set_result(CLOSED)` says that the case will never be ready again: the select goes on with the others.

One gap remains on asyncio: a native `task.cancel()` can hit the selecting task after a waiter was claimed and
before the task ran. Then the select calls `case_put_back(item)` and raises the cancellation.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:
    from cuelight.mailbox._backend import Slot

__all__ = ["CLOSED", "NOT_READY", "Case", "CaseWaiter", "NotNow", "Signal", "Waiting"]

T_co = TypeVar("T_co", covariant=True)


class Signal(enum.Enum):
    """What stands in the place of an item when there is none."""

    NOT_READY = "not ready"
    CLOSED = "closed"


NOT_READY: Final = Signal.NOT_READY
"""The case cannot take effect now."""

CLOSED: Final = Signal.CLOSED
"""The case can never take effect again."""

NotNow: TypeAlias = Literal[Signal.NOT_READY, Signal.CLOSED]


class Waiting(Protocol):
    """Somebody who waits for one value: the slot of a plain operation, or the waiter of a select."""

    def done(self) -> bool:
        """Whether it has its value, or no longer waits for one."""
        ...

    def set_result(self, result: Any, /) -> None:
        """Give it its value. Only after `done()` said False."""
        ...


class CaseWaiter:
    """One case of one sleeping select. Hashable by identity; for one use."""

    __slots__ = ("index", "slot")

    def __init__(self, slot: Slot, index: int) -> None:
        self.slot = slot
        self.index = index

    def done(self) -> bool:
        """Whether the select is over: it has something else, or was cancelled."""
        return self.slot.done()

    def set_result(self, result: Any, /) -> None:
        """Claim the select for this case. Only after `done()` said False.

        Args:
            result: the item that the select returns, or `CLOSED`.
        """
        self.slot.set_result((self.index, result))


class Case(Protocol[T_co]):
    """Anything that `select` can wait for. All four methods are called in the loop's thread."""

    def case_poll(self) -> T_co | NotNow:
        """Take effect now, if that is possible.

        Returns:
            The item; or `NOT_READY`, and nothing has happened; or `CLOSED`, and it never will.

        Raises:
            Exception: the case is an error; the select raises it and no case takes effect.
        """
        ...

    def case_enroll(self, waiter: CaseWaiter, /) -> None:
        """Claim `waiter` as soon as there is something for it. Called only after `case_poll` was not
        ready.
        """
        ...

    def case_withdraw(self, waiter: CaseWaiter, /) -> None:
        """Forget `waiter`. Called for every enrolled waiter, the claimed one too; must not raise."""
        ...

    def case_put_back(self, item: Any, /) -> bool:
        """The claimed select was cancelled before it could take `item`: undo the effect.

        Returns:
            True: it is as if this case had never taken effect. False: that cannot be undone; then the select
            returns normally and the cancellation comes at the next await, where the loop can do that.
        """
        ...
