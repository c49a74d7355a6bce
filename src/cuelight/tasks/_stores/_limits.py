"""The limits of a store: when a task may start, how a start changes a limit, and which task is next.

A rate is enforced with GCRA: starting a task moves the theoretical arrival time `tat` ahead by the task's cost, and a
task may start if `tat` is then at most the burst ahead of now. This is the algorithm of `coordination.gcra`, and a test
compares the two. It is implemented again because a task with several limits must pass all of them before it uses any,
and because stores use seconds and costs that need not be integers. An override replaces the whole limit of a task
except for its cost.

A limit queue contains the tasks with the same set of limits. It is runnable until one of its limits rejects its first
task. It then waits on that limit, with all its tasks. So no search examines all tasks that have to wait. Invariants:

1. A runnable limit queue waits on no limit. Every other limit queue waits on exactly one.
2. If a limit would admit the first task of the first limit queue that waits on it, that queue is made runnable. After
   that queue was used, `settle` is called for each of its keys, which makes the next one runnable.
3. Therefore a task does not overtake a more urgent one that waits on the same limit, but it does overtake all others.
"""

from __future__ import annotations

from math import inf

from cuelight.tasks._stores._row_store import RowStore
from cuelight.tasks._stores._rows import LimitQueue, LimitState, Row, order_of
from cuelight.tasks._task import Limit


def available_at(limit_state: LimitState, own: Limit) -> float:
    """The time at which a task with this limit may start, in seconds since the epoch.

    A time that is not after now means at once; `math.inf` means when another task has ended. If a task costs more than
    the burst, it may start when all earlier costs are paid off. That only happens with an override: a task's own limit
    cannot be like that.
    """
    limit = limit_state.override or own
    if limit.max_concurrent is not None and limit_state.running >= limit.max_concurrent:
        return inf
    if limit.rate is None:
        return limit_state.closed
    burst = limit.rate if limit.burst is None else limit.burst
    return max(limit_state.closed, limit_state.tat - max(0.0, burst - own.cost) * limit.per / limit.rate)


def charge(limit_state: LimitState, own: Limit, now: float) -> None:
    """Start a task: count it as running and charge its cost."""
    limit_state.running += 1
    limit = limit_state.override or own
    if limit.rate is not None:
        limit_state.tat = max(limit_state.tat, now) + own.cost * limit.per / limit.rate


def forget_at(limit_state: LimitState) -> float | None:
    """The time from which a limit state without waiting limit queues equals a new one, or None while it is in use."""
    if limit_state.running or limit_state.override is not None:
        return None
    return max(limit_state.tat, limit_state.closed)


class LimitQueues:
    """The limit queues and limit states of one queue."""

    def __init__(self, row_store: RowStore) -> None:
        self._row_store = row_store

    def limit_queue_of(self, row: Row) -> LimitQueue:
        """The limit queue for a task with limits."""
        return self._row_store.limit_queue_of(tuple(sorted({limit.key for limit in row.record.limits})))

    def entered(self, limit_queue: LimitQueue, row: Row, now: float) -> None:
        """Record that a task became pending in a limit queue. The task must be saved already."""
        order = order_of(row)
        if limit_queue.first_order is None or order < limit_queue.first_order:
            limit_queue.first_order = order
            self._row_store.save_limit_queue(limit_queue)
            if limit_queue.waits_on:
                self.settle(limit_queue.waits_on, now)

    def left(self, limit_queue_id: int, row: Row, now: float) -> None:
        """Record that a task is no longer pending. The task must be saved already."""
        limit_queue = self._row_store.limit_queue(limit_queue_id)
        if limit_queue is None or limit_queue.first_order is None or limit_queue.first_order[-1] != row.seq:
            return
        first = self._row_store.first_ready(limit_queue)
        if first is None:
            self._row_store.drop_limit_queue(limit_queue)
        else:
            limit_queue.first_order = order_of(first)
            self._row_store.save_limit_queue(limit_queue)
        self._settle_all(limit_queue, now)

    def refused(self, limit_queue: LimitQueue, row: Row, now: float) -> bool:
        """Return whether a limit rejects the first task of a limit queue. If so, the queue now waits on that limit."""
        for limit in row.record.limits:
            limit_state = self._row_store.limit_state(limit.key)
            ahead = self._row_store.first_limit_queue(limit.key) if limit_state.waiting else None
            is_behind = ahead is not None and ahead.first_order < limit_queue.first_order  # type: ignore[operator]
            if is_behind or available_at(limit_state, limit) > now:
                limit_queue.waits_on = limit.key
                self._row_store.save_limit_queue(limit_queue)
                self._settle_all(limit_queue, now)
                return True
        return False

    def start(self, row: Row, now: float) -> None:
        """Charge the limits of a task, before it is saved as in flight."""
        for limit in row.record.limits:
            limit_state = self._row_store.limit_state(limit.key)
            charge(limit_state, limit, now)
            self._row_store.save_limit_state(limit_state)

    def ended(self, row: Row, now: float) -> None:
        """Release the limits of a task that is no longer in flight."""
        for limit in row.record.limits:
            limit_state = self._row_store.limit_state(limit.key)
            limit_state.running = max(0, limit_state.running - 1)
            self._row_store.save_limit_state(limit_state)
            self.settle(limit.key, now)

    def _settle_all(self, limit_queue: LimitQueue, now: float) -> None:
        for key in limit_queue.keys:
            self.settle(key, now)

    def settle(self, key: str, now: float) -> None:
        """Make the first queue that waits on a limit runnable if its first task may start, or note when it may."""
        limit_state = self._row_store.limit_state(key)
        limit_queue, own = self._row_store.first_limit_queue(key), None
        while limit_queue is not None:
            own = self._limit_of_first(limit_queue, key)
            if own is not None:
                break
            limit_queue = self._row_store.first_limit_queue(key)
        if limit_queue is None or own is None:
            limit_state.waiting = False
            limit_state.due = forget_at(limit_state)
            if limit_state.due is not None and limit_state.due <= now:
                self._row_store.drop_limit_state(limit_state)
                return
        else:
            limit_state.waiting = True
            at = available_at(limit_state, own)
            limit_state.due = at if now < at < inf else None
            if at <= now:
                limit_queue.waits_on = ""
                self._row_store.save_limit_queue(limit_queue)
        self._row_store.save_limit_state(limit_state)

    def _limit_of_first(self, limit_queue: LimitQueue, key: str) -> Limit | None:
        """The limit of the limit queue's first task, or None for a limit queue that cannot wait here.

        No step leaves such a limit queue behind. It is repaired, so that it waits here no longer.
        """
        first = self._row_store.first_ready(limit_queue)
        if first is None:
            self._row_store.drop_limit_queue(limit_queue)
            return None
        own = next((limit for limit in first.record.limits if limit.key == key), None)
        if own is None:
            limit_queue.waits_on, limit_queue.first_order = "", limit_queue.first_order or order_of(first)
            self._row_store.save_limit_queue(limit_queue)
        return own

    def recount(self, now: float) -> None:
        """Recount the tasks in flight for all limits whose count may be wrong."""
        running = self._row_store.running()
        for key in running:
            limit_state = self._row_store.limit_state(key)
            limit_state.running = running[key]
            self._row_store.save_limit_state(limit_state)
            self.settle(key, now)
