"""The `Case` protocol: the things that `select` can wait for, and the claim that makes exactly one case take effect.

A select has three steps:

1. **Poll** the cases in turn. The first case that can take effect does so at once, and the select is over.
2. Otherwise, **enroll** a `CaseWaiter` with each case and sleep. Nothing can happen between the polls and the
   enrolments, because no other task runs in between.
3. After waking, **withdraw** the waiter from each case.

All waiters of one select share one slot. The owner of a case that has a result for the select *claims* the waiter:

    if not waiter.done():           # otherwise the select has another result or was cancelled: try the next waiter
        waiter.set_result(item)     # this select is over and takes this item

There must be no await between these two lines. Then no two cases can both take effect. `set_result(CLOSED)` says that
the case will never be ready again: the select continues with the other cases.

One gap remains on asyncio: a native `task.cancel()` can hit the selecting task after a waiter was claimed and before
the task ran. Then the select calls `case_put_back(item)` and raises the cancellation.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:
    from cuelight.mailbox._backend import Slot

T_co = TypeVar("T_co", covariant=True)


class NoItem(enum.Enum):
    """The values that stand for a missing item."""

    NOT_READY = "not ready"
    CLOSED = "closed"


NOT_READY: Final = NoItem.NOT_READY
"""The case cannot take effect now."""

CLOSED: Final = NoItem.CLOSED
"""The case can never take effect again."""

NotNow: TypeAlias = Literal[NoItem.NOT_READY, NoItem.CLOSED]


class ChannelWaiter(Protocol):
    """A wait for one value: the slot of a plain operation, or the waiter of a select."""

    def done(self) -> bool:
        """Return whether it has its value, or no longer waits for one."""
        ...

    def set_result(self, result: Any, /) -> None:
        """Deliver the value. Call this only after `done()` returned False."""
        ...


class CaseWaiter:
    """One case of one sleeping select. It is hashable by identity and can be used once."""

    __slots__ = ("index", "slot")

    def __init__(self, slot: Slot, index: int) -> None:
        self.slot = slot
        self.index = index

    def done(self) -> bool:
        """Return whether the select is over, because it has another result or was cancelled."""
        return self.slot.done()

    def set_result(self, result: Any, /) -> None:
        """Claim the select for this case. Call this only after `done()` returned False.

        Args:
            result: the item that the select returns, or `CLOSED`.
        """
        self.slot.set_result((self.index, result))


class Case(Protocol[T_co]):
    """A thing that `select` can wait for. All four methods are called in the loop's thread."""

    def case_poll(self) -> T_co | NotNow:
        """Take effect now if that is possible.

        Returns:
            The item. Or `NOT_READY` if the case did not take effect now, or `CLOSED` if it never will.

        Raises:
            Exception: the case has failed. The select raises this exception, and no case takes effect.
        """
        ...

    def case_enroll(self, waiter: CaseWaiter, /) -> None:
        """Claim `waiter` as soon as there is an item for it. Called only after `case_poll` returned `NOT_READY`."""
        ...

    def case_withdraw(self, waiter: CaseWaiter, /) -> None:
        """Forget `waiter`. Called for every enrolled waiter, including the claimed one. It must not raise."""
        ...

    def case_put_back(self, item: Any, /) -> bool:
        """Undo the effect of this case, because the claimed select was cancelled before it could take `item`.

        Returns:
            True if this case is now as if it had never taken effect. False if its effect cannot be undone; then the
            select returns normally, and the cancellation arrives at the next await if the loop supports that.
        """
        ...
