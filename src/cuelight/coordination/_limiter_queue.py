"""The queue of requests that wait at a limiter. It knows the time and sleeps; the meters do neither.

A limiter may be used from several event loops at once, in several threads too. So it is a monitor: each step is short
and synchronous, and runs under one lock. A waiting request is a place in a queue, not a booking in the future. It is
charged at the moment when it is admitted. So a cancelled request leaves no gap, and changes of limits, pauses and
refunds apply at once to all waiting requests.

Invariants:

1. Requests are admitted in the order of arrival, whatever they cost: the first in the queue is admitted as soon as its
   meters allow it, and no other before it.
2. A request is charged in all meters or in none.
3. An `acquire` that raises has charged nothing: charges made before the error are refunded.
4. Each waiting task sets its own timer, for the earliest time of its turn. The timer of the first in the queue is not
   too late, unless only a step of another caller can admit it. A task whose timer fires admits all requests that are
   due, so that a loop that is blocked or closed delays no other.

The clock is `time.monotonic`, because it is the same in all threads; each event loop has a clock of its own.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from functools import partial
from threading import Lock
from typing import Any, Final

from cuelight._text import safe_repr
from cuelight.coordination._meters import EVER, SECOND, LimiterStatistics, Meter, Ticket
from cuelight.coordination._spread import spread
from cuelight.mailbox import Slot, await_until, call_in_loop, loop_time, new_slot, running_loop, running_task

# The requests that wait at a limiter: their costs, their queue, and how they sleep.


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


_LATE: Final = SECOND // 100
"""Nanoseconds by which a timer may be late without changing the time at which the request counts as admitted. Timers
are late by a millisecond or two, and a bucket without a burst would lose that time with each request.
"""

YIELD: Final = 63
"""A bit mask: one in 64 requests that need not wait lets other tasks run."""


class Limiter:
    """The base of all limiters: waiting in order, pauses, statistics. Create one of its subclasses."""

    __slots__ = (
        "__weakref__",
        "_admitted",
        "_clock",
        "_line",
        "_lock",
        "_not_before",
        "_refused",
        "_waited",
        "_waited_for",
    )

    def __init__(self, clock: Callable[[], float] | None) -> None:
        self._clock: Callable[[], int] = time.monotonic_ns if clock is None else partial(_nanoseconds, clock)
        self._lock = Lock()
        self._line: Line | None = None
        self._not_before = -EVER
        self._admitted = self._refused = self._waited = self._waited_for = 0

    @property
    def _meters(self) -> tuple[Meter, ...]:
        raise NotImplementedError

    # Steps. Each is taken with the lock held.

    @contextmanager
    def _step(self) -> Generator[int]:
        """Hold the lock for one step and yield the time. Requests that are due are admitted before the step.

        A step that makes other requests due, or due earlier, ends with `_advance`.
        """
        try:
            with self._lock:
                now = self._clock()
                if self._line is not None:
                    self._revive(self._line)
                self._advance(now)
                try:
                    yield now
                finally:
                    if self._line is not None and not self._line.users:
                        self._line = None
        finally:
            line = self._line
            if line is not None and line.returned:
                self._take_back(line)

    def _post(self, line: Line, step: Callable[[int], None]) -> None:
        """Run a step without ever waiting for the lock: now, or when the current holder of the lock has finished.

        The ends of tasks use this method, because the garbage collector may end a forgotten task during a step of this
        limiter, in the same thread. Each caller that may post is counted in `line.users`, so this is still the current
        line.
        """
        line.returned.append(step)
        self._take_back(line)

    def _take_back(self, line: Line) -> None:
        while line.returned and self._lock.acquire(blocking=False):
            try:
                now = self._clock()
                self._revive(line)
                while line.returned:
                    line.returned.popleft()(now)
                self._advance(now)
                if not line.users:
                    self._line = None
            finally:
                self._lock.release()

    def _retire(self, revive: Callable[[], None]) -> bool:
        """Agree to be forgotten, if idle. `revive` is called, with the lock held, before the limiter is used again."""
        if not self._lock.acquire(blocking=False):
            return False  # it is in use at this moment
        try:
            if self._is_idle(self._clock()):
                if self._line is None:
                    self._line = Line(len(self._meters))
                self._line.users += self._line.revive is None
                self._line.revive = revive
            line = self._line
        finally:
            self._lock.release()
        if line is None:
            return False
        self._take_back(line)
        return line.revive is revive

    @staticmethod
    def _revive(line: Line) -> None:
        if line.revive is not None:
            line.revive()
            line.revive = None
            line.users -= 1

    def _due(self, now: int, costs: Iterable[int]) -> int:
        """When the first in the queue can be admitted. Meters in which it costs nothing do not delay it."""
        due = self._not_before
        for meter, cost in zip(self._meters, costs, strict=True):
            if cost:
                due = max(due, meter.due(now, cost))
        return due

    def _estimate(self, now: int, costs: Iterable[int], before: Iterable[int]) -> int:
        """Estimate when a request is admitted after all requests before it, which cost `before`; never too late."""
        line = self._line
        if line is None:
            return max(now, self._due(now, costs))
        due = max(now, self._not_before)
        if line.waiting:
            due = max(due, self._due(now, next(iter(line.waiting)).costs))
        for meter, cost, end, served in zip(self._meters, costs, before, line.served, strict=True):
            if cost or end > served:
                due = max(due, meter.due(now, cost, end - served))
        return due

    def _advance(self, now: int) -> None:
        """Admit all requests that are due, and make sure that the timer of the next one is not too late."""
        line = self._line
        if line is None:
            return
        waiting = line.waiting
        while waiting:
            head = next(iter(waiting))
            due = self._due(now, head.costs)
            if due > now:
                if due >= head.armed:
                    return
                head.armed = due
                if head.wake():
                    return
                self._remove(head)  # its loop has ended
            else:
                self._remove(head)
                self._admit(head, now, max(due, now - _LATE))
                head.waited = now - head.began
                self._waited += 1
                self._waited_for += head.waited
                if not head.wake():
                    self._give_back(head, now)

    @staticmethod
    def _remove(waiter: Waiter) -> None:
        line = waiter.line
        del line.waiting[waiter]
        first = next(iter(line.waiting), None)
        line.served = line.end if first is None else first.before

    def _admit(self, waiter: Waiter, now: int, slot: int) -> None:
        waiter.admitted = True
        waiter.tickets = [meter.book(now, slot, cost) for meter, cost in zip(self._meters, waiter.costs, strict=True)]
        self._admitted += 1

    def _give_back(self, waiter: Waiter, now: int) -> None:
        waiter.admitted = False
        for meter, ticket, cost in zip(self._meters, waiter.tickets, waiter.costs, strict=True):
            meter.amend(ticket, cost, 0, now)
        self._admitted -= 1
        if waiter.waited is not None:
            self._waited -= 1
            self._waited_for -= waiter.waited

    def _leave(self, waiter: Waiter, now: int) -> None:
        """Remove a request from the queue, or refund it if it was admitted already."""
        waiter.line.users -= 1
        if waiter.admitted:
            self._give_back(waiter, now)
        elif waiter in waiter.line.waiting:
            self._remove(waiter)

    # Waiting.

    async def _enter(self, costs: tuple[int, ...], timeout: float | None) -> Waiter:
        """Wait in the queue until the request is admitted. A checkpoint if it has to wait.

        Raises:
            TimeoutError: the wait would take, or took, longer than `timeout` seconds.
        """
        waiter = Waiter(costs)
        with self._step() as now:
            if self._join(waiter, now, timeout):
                return waiter
        try:
            while True:
                with self._step() as now:
                    if waiter.admitted:
                        self._forget(waiter)
                        return waiter
                    if now >= waiter.deadline:
                        raise self._too_late(waiter, now, timeout)
                    slot, until = self._arm(waiter, now)
                await sleep(slot, until - now)
        except BaseException:
            waiter.slot = None
            self._post(waiter.line, partial(self._leave, waiter))
            raise

    def _join(self, waiter: Waiter, now: int, timeout: float | None) -> bool:
        """Admit a request at once, or put it at the end of the queue and count the caller as a user of the line."""
        line = self._line
        if (line is None or not line.waiting) and self._due(now, waiter.costs) <= now:
            self._admit(waiter, now, now)
            return True
        if line is None:
            line = self._line = Line(len(self._meters))
        waiter.began, waiter.before = now, line.end
        waiter.deadline = EVER if timeout is None else now + _whole(timeout)
        estimate = self._estimate(now, waiter.costs, waiter.before)
        # EVER: it depends on when others release a permit, which is not known.
        if estimate > waiter.deadline and (estimate < EVER or timeout == 0):
            raise self._too_late(waiter, now, timeout)
        waiter.line, waiter.loop, waiter.task = line, running_loop(), running_task()
        line.users += 1
        line.end = plus(line.end, waiter.costs)
        line.waiting[waiter] = None
        return False

    def _arm(self, waiter: Waiter, now: int) -> tuple[Slot, int]:
        """Prepare the next sleep of a waiting request: its new slot, and the time until which it sleeps at most."""
        waiter.armed = self._estimate(now, waiter.costs, waiter.before)
        waiter.slot = slot = new_slot()
        return slot, min(waiter.armed, waiter.deadline)

    def _forget(self, waiter: Waiter) -> None:
        waiter.slot = None
        waiter.line.users -= 1

    def _too_late(self, waiter: Waiter, now: int, timeout: float | None) -> TimeoutError:
        self._refused += 1
        wait = self._estimate(now, waiter.costs, waiter.before) - now
        earliest = "when others give something back" if wait > EVER // 2 else f"in {wait / SECOND:.3g} s"
        return TimeoutError(
            f"{self!r} has no room within {timeout} s for {self._shown(waiter.costs)}: its turn comes {earliest}"
        )

    def _shown(self, costs: tuple[int, ...]) -> str:
        return f"a cost of {costs[0]}"

    # The public methods of all limiters.

    def pause_for(self, seconds: float, *, jitter: float = 0.1) -> float:
        """Admit no requests for some time, for all users: for example after a response "429, Retry-After".

        Waiting requests go on waiting. A pause that ends later already stays. Time goes on during the pause: at its end
        a token bucket has filled up.

        Args:
            seconds: the length of the pause.
            jitter: the greatest random extension, as a share of `seconds`, so that processes do not all resume at the
                same moment. The pause is never shorter than `seconds`.

        Returns:
            The seconds until the end of the pause.

        Raises:
            ValueError: one of the arguments is negative or infinite.
        """
        seconds = jittered(seconds, jitter)
        with self._step() as now:
            self._not_before = max(self._not_before, now + _whole(seconds))
            return (self._not_before - now) / SECOND

    def pause_until(self, when: float) -> None:
        """Admit no requests before `when`. A pause that ends later already stays.

        Args:
            when: a time in seconds on this limiter's clock, which is `time.monotonic()` unless another was given.

        Raises:
            ValueError: `when` is not a finite number.
        """
        if not math.isfinite(when):
            raise ValueError(f"pause_until({safe_repr(when)}): give a time of this limiter's clock, in seconds")
        with self._step():
            self._not_before = max(self._not_before, round(when * SECOND))

    def resume(self) -> None:
        """End a pause."""
        with self._step() as now:
            self._not_before = -EVER
            self._advance(now)

    @property
    def idle(self) -> bool:
        """Whether a new limiter would behave the same, apart from the statistics."""
        with self._step() as now:
            return self._is_idle(now)

    def _is_idle(self, now: int) -> bool:
        return (
            (self._line is None or not self._line.waiting)
            and self._not_before <= now
            and all(meter.unused_at(now) <= now for meter in self._meters)
        )

    def statistics(self) -> LimiterStatistics:
        """Return the statistics so far."""
        with self._step():
            waiting = 0 if self._line is None else len(self._line.waiting)
            waited_for = self._waited_for / SECOND
            return LimiterStatistics(self._admitted, self._refused, self._waited, waiting, waited_for)


def jittered(seconds: float, jitter: float) -> float:
    """Return the length of a pause, extended at random by a share of up to `jitter`.

    Raises:
        ValueError: one of the arguments is negative or infinite.
    """
    for name, value in {"seconds": seconds, "jitter": jitter}.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"pause_for({name}={safe_repr(value)}): give a number, 0 or more")
    return seconds * (1 + jitter * spread.random())


def _nanoseconds(clock: Callable[[], float]) -> int:
    return round(clock() * SECOND)


def _whole(seconds: float) -> int:
    """The time in nanoseconds; an infinite time becomes `EVER`."""
    return EVER if seconds > EVER / SECOND else round(seconds * SECOND)
