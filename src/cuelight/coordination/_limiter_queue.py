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
from cuelight.coordination._meters import NEVER, SECOND, LimiterStatistics, Meter, MeterCharge
from cuelight.coordination._spread import spread
from cuelight.mailbox import Slot, await_until, call_in_loop, loop_time, new_slot, running_loop, running_task

# The requests that wait at a limiter: their costs, their queue, and how they sleep.


SHORTEST_SLEEP: Final = 1000
"""The least time to sleep, in nanoseconds: less would be lost in the rounding of a loop's time, which is a float."""


class QueuedRequest:
    """One request: its costs, and its place in the queue while it waits."""

    __slots__ = (
        "admitted",
        "charges",
        "cost_before",
        "costs",
        "deadline",
        "joined_at",
        "loop",
        "queue",
        "slot",
        "task",
        "waited",
        "wakes_at",
    )

    def __init__(self, costs: tuple[int, ...]) -> None:
        self.costs = costs
        self.charges: list[MeterCharge] = []
        self.admitted = False
        # The time of its timer; -NEVER before the first sleep, when it is about to check by itself.
        self.wakes_at = -NEVER
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

    queue: LimiterQueue
    loop: Any
    task: Any
    cost_before: tuple[int, ...]  # total cost of all requests that joined the queue before it, since the queue exists
    joined_at: int
    deadline: int


def _fill(request: QueuedRequest, slot: Slot) -> None:
    # Do not fill an old slot: its task has continued, and may sleep elsewhere by now.
    if request.slot is slot and not slot.done():
        slot.set_result(None)


class LimiterQueue:
    """State that a limiter has only while requests wait or may be refunded, or after the limiter was forgotten."""

    __slots__ = ("end_cost", "posted", "restore", "served_cost", "users", "waiting")

    def __init__(self, meters: int) -> None:
        self.restore: Callable[[], None] | None = None
        self.waiting: OrderedDict[QueuedRequest, None] = OrderedDict()
        nothing: tuple[int, ...] = (0,) * meters
        self.served_cost: tuple[int, ...] = nothing  # the total cost of all requests before the first in the queue
        self.end_cost: tuple[int, ...] = nothing  # the total cost of all requests before the next to come
        self.posted: deque[Callable[[int], None]] = deque()
        self.users = 0  # callers that may still call `_post`


def add_costs(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip(left, right, strict=True))


async def sleep(slot: Slot, nanoseconds: int) -> None:
    """Sleep until the slot is filled, for `nanoseconds` at most."""
    if nanoseconds > NEVER // 2:
        await slot
    else:
        await await_until(slot, loop_time() + max(SHORTEST_SLEEP, nanoseconds) / SECOND)


TIMER_TOLERANCE: Final = SECOND // 100
"""Nanoseconds by which a timer may be late without changing the time at which the request counts as admitted. Timers
are late by a millisecond or two, and a bucket without a burst would lose that time with each request.
"""

YIELD_MASK: Final = 63
"""A bit mask: one in 64 requests that need not wait lets other tasks run."""


class QueuedLimiter:
    """The base of all limiters: waiting in order, pauses, statistics. Create one of its subclasses."""

    __slots__ = (
        "__weakref__",
        "_admitted",
        "_clock",
        "_lock",
        "_not_before",
        "_queue",
        "_refused",
        "_total_wait",
        "_waited",
    )

    def __init__(self, clock: Callable[[], float] | None) -> None:
        self._clock: Callable[[], int] = time.monotonic_ns if clock is None else partial(_clock_nanoseconds, clock)
        self._lock = Lock()
        self._queue: LimiterQueue | None = None
        self._not_before = -NEVER
        self._admitted = self._refused = self._waited = self._total_wait = 0

    @property
    def _meters(self) -> tuple[Meter, ...]:
        raise NotImplementedError

    # Steps. Each is taken with the lock held.

    @contextmanager
    def _step(self) -> Generator[int]:
        """Hold the lock for one step and yield the time. Requests that are due are admitted before the step.

        A step that makes other requests due, or due earlier, ends with `_admit_due`.
        """
        try:
            with self._lock:
                now = self._clock()
                if self._queue is not None:
                    self._restore(self._queue)
                self._admit_due(now)
                try:
                    yield now
                finally:
                    if self._queue is not None and not self._queue.users:
                        self._queue = None
        finally:
            queue = self._queue
            if queue is not None and queue.posted:
                self._run_posted(queue)

    def _post(self, queue: LimiterQueue, step: Callable[[int], None]) -> None:
        """Run a step without ever waiting for the lock: now, or when the current holder of the lock has finished.

        The ends of tasks use this method, because the garbage collector may end a forgotten task during a step of this
        limiter, in the same thread. Each caller that may post is counted in `queue.users`, so this is still the current
        queue.
        """
        queue.posted.append(step)
        self._run_posted(queue)

    def _run_posted(self, queue: LimiterQueue) -> None:
        while queue.posted and self._lock.acquire(blocking=False):
            try:
                now = self._clock()
                self._restore(queue)
                while queue.posted:
                    queue.posted.popleft()(now)
                self._admit_due(now)
                if not queue.users:
                    self._queue = None
            finally:
                self._lock.release()

    def _try_evict(self, restore: Callable[[], None]) -> bool:
        """Agree to be forgotten, if idle. `restore` is called, with the lock held, before the limiter is used again."""
        if not self._lock.acquire(blocking=False):
            return False  # it is in use at this moment
        try:
            if self._is_idle(self._clock()):
                if self._queue is None:
                    self._queue = LimiterQueue(len(self._meters))
                self._queue.users += self._queue.restore is None
                self._queue.restore = restore
            queue = self._queue
        finally:
            self._lock.release()
        if queue is None:
            return False
        self._run_posted(queue)
        return queue.restore is restore

    @staticmethod
    def _restore(queue: LimiterQueue) -> None:
        if queue.restore is not None:
            queue.restore()
            queue.restore = None
            queue.users -= 1

    def _available_at(self, now: int, costs: Iterable[int]) -> int:
        """When the first in the queue can be admitted. Meters in which it costs nothing do not delay it."""
        due = self._not_before
        for meter, cost in zip(self._meters, costs, strict=True):
            if cost:
                due = max(due, meter.available_at(now, cost))
        return due

    def _estimate(self, now: int, costs: Iterable[int], cost_before: Iterable[int]) -> int:
        """Estimate when a request is admitted after all requests before it, costing `cost_before`; never too late."""
        queue = self._queue
        if queue is None:
            return max(now, self._available_at(now, costs))
        due = max(now, self._not_before)
        if queue.waiting:
            due = max(due, self._available_at(now, next(iter(queue.waiting)).costs))
        for meter, cost, end_cost, served_cost in zip(self._meters, costs, cost_before, queue.served_cost, strict=True):
            if cost or end_cost > served_cost:
                due = max(due, meter.available_at(now, cost, end_cost - served_cost))
        return due

    def _admit_due(self, now: int) -> None:
        """Admit all requests that are due, and make sure that the timer of the next one is not too late."""
        queue = self._queue
        if queue is None:
            return
        waiting = queue.waiting
        while waiting:
            head = next(iter(waiting))
            due = self._available_at(now, head.costs)
            if due > now:
                if due >= head.wakes_at:
                    return
                head.wakes_at = due
                if head.wake():
                    return
                self._remove(head)  # its loop has ended
            else:
                self._remove(head)
                self._admit(head, now, max(due, now - TIMER_TOLERANCE))
                head.waited = now - head.joined_at
                self._waited += 1
                self._total_wait += head.waited
                if not head.wake():
                    self._refund(head, now)

    @staticmethod
    def _remove(request: QueuedRequest) -> None:
        queue = request.queue
        del queue.waiting[request]
        first = next(iter(queue.waiting), None)
        queue.served_cost = queue.end_cost if first is None else first.cost_before

    def _admit(self, request: QueuedRequest, now: int, slot: int) -> None:
        request.admitted = True
        request.charges = [
            meter.charge(now, slot, cost) for meter, cost in zip(self._meters, request.costs, strict=True)
        ]
        self._admitted += 1

    def _refund(self, request: QueuedRequest, now: int) -> None:
        request.admitted = False
        for meter, charge, cost in zip(self._meters, request.charges, request.costs, strict=True):
            meter.adjust(charge, cost, 0, now)
        self._admitted -= 1
        if request.waited is not None:
            self._waited -= 1
            self._total_wait -= request.waited

    def _cancel(self, request: QueuedRequest, now: int) -> None:
        """Remove a request from the queue, or refund it if it was admitted already."""
        request.queue.users -= 1
        if request.admitted:
            self._refund(request, now)
        elif request in request.queue.waiting:
            self._remove(request)

    # Waiting.

    async def _enter(self, costs: tuple[int, ...], timeout: float | None) -> QueuedRequest:
        """Wait in the queue until the request is admitted. A checkpoint if it has to wait.

        Raises:
            TimeoutError: the wait would take, or took, longer than `timeout` seconds.
        """
        request = QueuedRequest(costs)
        with self._step() as now:
            if self._join(request, now, timeout):
                return request
        try:
            while True:
                with self._step() as now:
                    if request.admitted:
                        self._finish_wait(request)
                        return request
                    if now >= request.deadline:
                        raise self._timeout_error(request, now, timeout)
                    slot, until = self._arm(request, now)
                await sleep(slot, until - now)
        except BaseException:
            request.slot = None
            self._post(request.queue, partial(self._cancel, request))
            raise

    def _join(self, request: QueuedRequest, now: int, timeout: float | None) -> bool:
        """Admit a request at once, or put it at the end of the queue and count the caller as a user of the queue."""
        queue = self._queue
        if (queue is None or not queue.waiting) and self._available_at(now, request.costs) <= now:
            self._admit(request, now, now)
            return True
        if queue is None:
            queue = self._queue = LimiterQueue(len(self._meters))
        request.joined_at, request.cost_before = now, queue.end_cost
        request.deadline = NEVER if timeout is None else now + _to_nanoseconds(timeout)
        estimate = self._estimate(now, request.costs, request.cost_before)
        # NEVER: it depends on when others release a permit, which is not known.
        if estimate > request.deadline and (estimate < NEVER or timeout == 0):
            raise self._timeout_error(request, now, timeout)
        request.queue, request.loop, request.task = queue, running_loop(), running_task()
        queue.users += 1
        queue.end_cost = add_costs(queue.end_cost, request.costs)
        queue.waiting[request] = None
        return False

    def _arm(self, request: QueuedRequest, now: int) -> tuple[Slot, int]:
        """Prepare the next sleep of a waiting request: its new slot, and the time until which it sleeps at most."""
        request.wakes_at = self._estimate(now, request.costs, request.cost_before)
        request.slot = slot = new_slot()
        return slot, min(request.wakes_at, request.deadline)

    def _finish_wait(self, request: QueuedRequest) -> None:
        request.slot = None
        request.queue.users -= 1

    def _timeout_error(self, request: QueuedRequest, now: int, timeout: float | None) -> TimeoutError:
        self._refused += 1
        wait = self._estimate(now, request.costs, request.cost_before) - now
        earliest = "when others give something back" if wait > NEVER // 2 else f"in {wait / SECOND:.3g} s"
        return TimeoutError(
            f"{self!r} has no room within {timeout} s for {self._format_costs(request.costs)}: its turn comes "
            f"{earliest}"
        )

    def _format_costs(self, costs: tuple[int, ...]) -> str:
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
            self._not_before = max(self._not_before, now + _to_nanoseconds(seconds))
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
            self._not_before = -NEVER
            self._admit_due(now)

    @property
    def idle(self) -> bool:
        """Whether a new limiter would behave the same, apart from the statistics."""
        with self._step() as now:
            return self._is_idle(now)

    def _is_idle(self, now: int) -> bool:
        return (
            (self._queue is None or not self._queue.waiting)
            and self._not_before <= now
            and all(meter.unused_at(now) <= now for meter in self._meters)
        )

    def statistics(self) -> LimiterStatistics:
        """Return the statistics so far."""
        with self._step():
            waiting = 0 if self._queue is None else len(self._queue.waiting)
            total_wait = self._total_wait / SECOND
            return LimiterStatistics(self._admitted, self._refused, self._waited, waiting, total_wait)


def jittered(seconds: float, jitter: float) -> float:
    """Return the length of a pause, extended at random by a share of up to `jitter`.

    Raises:
        ValueError: one of the arguments is negative or infinite.
    """
    for name, value in {"seconds": seconds, "jitter": jitter}.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"pause_for({name}={safe_repr(value)}): give a number, 0 or more")
    return seconds * (1 + jitter * spread.random())


def _clock_nanoseconds(clock: Callable[[], float]) -> int:
    return round(clock() * SECOND)


def _to_nanoseconds(seconds: float) -> int:
    """The time in nanoseconds; an infinite time becomes `NEVER`."""
    return NEVER if seconds > NEVER / SECOND else round(seconds * SECOND)
