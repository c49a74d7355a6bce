"""Who waits at a limiter, in order: the shell around the meters, which knows the time and sleeps.

A limiter may be used from several event loops at once, also in several threads. So it is a monitor: each step is short,
synchronous, and taken with one lock held. A waiter is a place in a queue, not a booking in the future. It is charged in
the moment it is let through, so that one that leaves leaves no gap, and limits, pauses and refunds count at once for
all that wait.

Invariants:

1. Requests are let through in the order in which they came, whatever they cost: the first in the queue is let through
   as soon as its meters allow it, and nothing before it.
2. A request is charged in all meters or in none.
3. An `acquire` that raises has charged nothing: what was charged already is given back.
4. Each waiter sets its own timer, for when its turn comes at the earliest. The first in the queue has one that is not
   too late, or nothing but another's step can let it through. Whoever's timer rings lets through all that are due, so
   that a loop that is blocked or has ended holds up nobody else.

`time.monotonic` tells the time, because it is the same in all threads; loops have clocks of their own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from functools import partial
from threading import Lock
from typing import Final

from cuelight._text import safe_repr
from cuelight.coordination._limit_meter import EVER, SECOND, LimiterStatistics, Meter
from cuelight.coordination._limit_waiter import Line, Waiter, plus, sleep
from cuelight.coordination._spread import spread
from cuelight.mailbox import Slot, new_slot, running_loop, running_task

__all__ = ["YIELD", "Limiter", "jittered"]

_LATE: Final = SECOND // 100
"""A waiter's timer may ring so late, and its slot is still its own. Timers are late by a millisecond or two, and a
bucket without a burst would lose that time with each request."""

YIELD: Final = 63
"""One in so many (and one) requests that need not wait lets other tasks run."""


class Limiter:
    """What all limiters share: waiting in order, pauses, statistics. Make one of its subclasses."""

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
        """Hold the lock for one step, which is told the time; what is due is let through before it.

        A step that makes others due, or due earlier, ends with `_advance`.
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
        """Take a step without ever waiting for the lock: now, or whoever holds it does when it has finished.

        Ends of tasks go this way. The garbage collector may end a forgotten task in the middle of a step of ours, in
        the same thread. Whoever may post is counted in `line.users`, so that this is still our line.
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
        """Be forgotten, if idle: `revive` is to be called, with the lock held, when it is used after all."""
        if not self._lock.acquire(blocking=False):
            return False  # somebody uses it just now
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
        """When the first in the queue can be let through. What it does not use does not hold it up."""
        due = self._not_before
        for meter, cost in zip(self._meters, costs, strict=True):
            if cost:
                due = max(due, meter.due(now, cost))
        return due

    def _estimate(self, now: int, costs: Iterable[int], before: Iterable[int]) -> int:
        """When it will be a request's turn after all that costs `before`; never too late."""
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
        """Let through all that are due, and see that the next one's timer is not too late."""
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
        """A waiter gives up, perhaps after it was let through."""
        waiter.line.users -= 1
        if waiter.admitted:
            self._give_back(waiter, now)
        elif waiter in waiter.line.waiting:
            self._remove(waiter)

    # Waiting.

    async def _enter(self, costs: tuple[int, ...], timeout: float | None) -> Waiter:
        """Be let through, in turn. A checkpoint if it has to wait.

        Raises:
            TimeoutError: it would take, or took, longer than `timeout` seconds.
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
        """Let it through at once, or put it at the end of the queue. The caller becomes a user of the line."""
        line = self._line
        if (line is None or not line.waiting) and self._due(now, waiter.costs) <= now:
            self._admit(waiter, now, now)
            return True
        if line is None:
            line = self._line = Line(len(self._meters))
        waiter.began, waiter.before = now, line.end
        waiter.deadline = EVER if timeout is None else now + _whole(timeout)
        estimate = self._estimate(now, waiter.costs, waiter.before)
        # EVER: nobody knows when others will give something back.
        if estimate > waiter.deadline and (estimate < EVER or timeout == 0):
            raise self._too_late(waiter, now, timeout)
        waiter.line, waiter.loop, waiter.task = line, running_loop(), running_task()
        line.users += 1
        line.end = plus(line.end, waiter.costs)
        line.waiting[waiter] = None
        return False

    def _arm(self, waiter: Waiter, now: int) -> tuple[Slot, int]:
        """Where the waiter is to sleep, next and whatever happens, and when it is to look again."""
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

    # What every limiter can do.

    def pause_for(self, seconds: float, *, jitter: float = 0.1) -> float:
        """Let nothing through for a while, for all users: a service said "429, Retry-After".

        What waits goes on waiting. A pause that ends later already stays. Time goes on: when the pause is over, a token
        bucket has filled up.

        Args:
            seconds: how long.
            jitter: how much longer at random, as a share, so that not all processes come back in the same moment. Never
                shorter.

        Returns:
            The seconds after which it is over.

        Raises:
            ValueError: one of them is negative or infinite.
        """
        seconds = jittered(seconds, jitter)
        with self._step() as now:
            self._not_before = max(self._not_before, now + _whole(seconds))
            return (self._not_before - now) / SECOND

    def pause_until(self, when: float) -> None:
        """Let nothing through before `when`. A pause that ends later already stays.

        Args:
            when: a time of this limiter's clock in seconds, `time.monotonic()` unless you gave it another.

        Raises:
            ValueError: it is no finite number.
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
        """Whether it is as if it had never been used, apart from its statistics: a new one would do the same."""
        with self._step() as now:
            return self._is_idle(now)

    def _is_idle(self, now: int) -> bool:
        return (
            (self._line is None or not self._line.waiting)
            and self._not_before <= now
            and all(meter.unused_at(now) <= now for meter in self._meters)
        )

    def statistics(self) -> LimiterStatistics:
        """What it has done so far."""
        with self._step():
            waiting = 0 if self._line is None else len(self._line.waiting)
            waited_for = self._waited_for / SECOND
            return LimiterStatistics(self._admitted, self._refused, self._waited, waiting, waited_for)


def jittered(seconds: float, jitter: float) -> float:
    """The length of a pause, made longer at random by a share of up to `jitter`.

    Raises:
        ValueError: one of them is negative or infinite.
    """
    for name, value in {"seconds": seconds, "jitter": jitter}.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"pause_for({name}={safe_repr(value)}): give a number, 0 or more")
    return seconds * (1 + jitter * spread.random())


def _nanoseconds(clock: Callable[[], float]) -> int:
    return round(clock() * SECOND)


def _whole(seconds: float) -> int:
    """Nanoseconds; an infinite time is one that does not come."""
    return EVER if seconds > EVER / SECOND else round(seconds * SECOND)
