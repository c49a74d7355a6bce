"""The messages of lock errors: the holders, their places in the code, and advice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cuelight.coordination._parties import describe, place_now, show_place
from cuelight.errors import DeadlockError, LockTimeout

if TYPE_CHECKING:
    from cuelight.coordination._core import Core


def holders_of(core: Core) -> str:
    """The holders, in words."""
    details = core.details or {}
    shown: list[str] = []
    for owner in core.held():
        hold = details.get(owner)
        taken = show_place(hold.place) if hold is not None else None
        at = place_now(owner) if taken is None else None
        shown.append(describe(owner) + (f" took it at {taken}" if taken else f", now at {at}" if at else ""))
    return "; ".join(shown) if shown else "nobody holds it"


def timed_out(core: Core, me: Any, timeout: float | None) -> LockTimeout:
    """The error for a timeout."""
    line = len(core.queue or ())
    return LockTimeout(
        f"{describe(me)} did not get {core.thing} within {timeout:g} s: {holders_of(core)}; {line} more wait"
    )


def reentered(core: Core, me: Any, weight: int) -> DeadlockError:
    """The error for a second acquisition by the same owner."""
    held = core.held().get(me, 0)
    if weight == core.capacity != 1 and held < weight:
        return DeadlockError(
            f"{describe(me)} holds {core.thing} for reading and wants to write: two readers who did so would wait for "
            f"each other. Release it first, or take it for writing from the start and downgrade()"
        )
    return DeadlockError(
        f"{describe(me)} holds {core.thing} already and would wait for itself: it is not re-entrant "
        f"({holders_of(core)})"
    )


def deadlock(core: Core, owner: Any, circle: str, *, blocks_loop: bool) -> DeadlockError:
    """The error for a circle of waits."""
    advice = (
        "A `with` here would block the event loop that they need: use `async with`"
        if blocks_loop
        else "Take what several need in one order everywhere, as `LockManager.acquire_all` does"
    )
    return DeadlockError(
        f"{describe(owner)} wants {core.thing} and would wait for ever, because each waits for the next: "
        f"{circle} ({holders_of(core)}). {advice}"
    )
