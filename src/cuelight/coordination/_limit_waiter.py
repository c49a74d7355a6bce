"""The requests that wait at a limiter: their costs, their queue, and how they sleep."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, Final

from cuelight.coordination._limit_meter import EVER, SECOND, Ticket
from cuelight.mailbox import Slot, await_until, call_in_loop, loop_time, running_loop, running_task

_SHORTEST: Final = 1000
"""The least time to sleep, in nanoseconds: less would be lost in the rounding of a loop's time, which is a float."""


class Waiter:
    """One request: its costs, and its place in the queue while it waits."""

    __slots__ = (
        "admitted",
        "armed",
        "before",
        "began",
        "costs",
        "deadline",
        "line",
        "loop",
        "slot",
        "task",
        "tickets",
        "waited",
    )

    def __init__(self, costs: tuple[int, ...]) -> None:
        self.costs = costs
        self.tickets: list[Ticket] = []
        self.admitted = False
        self.armed = -EVER  # the time of its timer; -EVER before the first sleep, when it is about to check by itself
        self.slot: Slot | None = None
        self.waited: int | None = None  # nanoseconds

    def wake(self) -> bool:
        """Make its task check again. Returns False if the loop of that task has ended."""
        slot = self.slot
        if slot is None or slot.done():
            return True  # it is about to check anyway
        if running_loop() is not self.loop or running_task() is self.task:
            return call_in_loop(self.loop, _fill, self, slot)
        slot.set_result(None)
        return True

    line: Line
    loop: Any
    task: Any
    before: tuple[int, ...]  # total cost of all requests that joined the queue before it, since the line exists
    began: int
    deadline: int


def _fill(waiter: Waiter, slot: Slot) -> None:
    # Do not fill an old slot: its task has continued, and may sleep elsewhere by now.
    if waiter.slot is slot and not slot.done():
        slot.set_result(None)


class Line:
    """State that a limiter has only while requests wait or may be refunded, or after the limiter was forgotten."""

    __slots__ = ("end", "returned", "revive", "served", "users", "waiting")

    def __init__(self, meters: int) -> None:
        self.revive: Callable[[], None] | None = None
        self.waiting: OrderedDict[Waiter, None] = OrderedDict()
        nothing: tuple[int, ...] = (0,) * meters
        self.served: tuple[int, ...] = nothing  # the total cost of all requests before the first in the queue
        self.end: tuple[int, ...] = nothing  # the total cost of all requests before the next to come
        self.returned: deque[Callable[[int], None]] = deque()
        self.users = 0  # callers that may still call `_post`


def plus(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip(left, right, strict=True))


async def sleep(slot: Slot, nanoseconds: int) -> None:
    """Sleep until the slot is filled, for `nanoseconds` at most."""
    if nanoseconds > EVER // 2:
        await slot
    else:
        await await_until(slot, loop_time() + max(_SHORTEST, nanoseconds) / SECOND)
