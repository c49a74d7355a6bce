"""`MemoryStore`: a store in memory. Its rows are in dicts, and in heaps whose entries are checked when they are first.

Invariants:

1. Each order (of a limit queue, of due times, ...) is a heap that contains at least all valid entries.
2. An outdated entry is dropped when it is found. A heap is cleaned when its size has doubled since the last time.
   Therefore heaps stay proportional to their valid entries, and all steps take O(log n) amortized time.
"""

from __future__ import annotations

import heapq
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from math import inf
from operator import attrgetter
from typing import Any, Final, TypeVar

from cuelight.errors import PoolClosed
from cuelight.mailbox._backend import yield_now
from cuelight.tasks._stores._engine import Engine
from cuelight.tasks._stores._fair_queue import FairQueue
from cuelight.tasks._stores._protocol import (
    Added,
    Beat,
    Bound,
    Claim,
    Exchange,
    Finish,
    Query,
    Schedule,
    Size,
    Snapshot,
)
from cuelight.tasks._stores._rows import (
    CANCELLED,
    COMPLETED,
    DEAD_LETTER,
    IN_FLIGHT,
    PARKED,
    PENDING,
    SCHEDULED,
    STATES,
    LimitQueue,
    LimitState,
    Row,
)
from cuelight.tasks._stores._support import MonotonicWallClock, VersionNotifier
from cuelight.tasks._task import Limit, QueueEntry, Record

_GONE: Final = -1
_tuple: Any = tuple
_new_entry: Final = _tuple.__new__  # faster than the constructor, which matters because each task has an entry
_FEW: Final = (PARKED, IN_FLIGHT, DEAD_LETTER)  # states that are queried while most tasks are in other states


class _MemoryRow(Row, kw_only=True):
    """A row, and its positions in the row store.

    Attributes:
        saved: the state in which it was last saved.
        pending_ticket: the ticket of its valid entry among the pending tasks.
        waiting_ticket: the ticket of its valid entries among the deadlines and in the order of `last`.
        due_ticket: the ticket of its valid entry among the due times.
        due_entry: the time of that entry; `due` may be later.
    """

    saved: int = _GONE
    pending_ticket: int = 0
    waiting_ticket: int = 0
    due_ticket: int = 0
    due_entry: float = inf


class _LazyHeap:
    """A heap of entries (key..., ticket, item), some of which may be outdated."""

    __slots__ = ("_is_valid", "_room", "entries")

    def __init__(self, is_valid: Callable[[Any], bool]) -> None:
        self.entries: list[Any] = []
        self._is_valid = is_valid
        self._room = 1024

    def push(self, entry: Any) -> None:
        heapq.heappush(self.entries, entry)
        if len(self.entries) > self._room:
            self.entries = [entry for entry in self.entries if self._is_valid(entry)]
            heapq.heapify(self.entries)
            self._room = max(1024, 2 * len(self.entries))

    def top(self) -> Any | None:
        while self.entries:
            if self._is_valid(self.entries[0]):
                return self.entries[0]
            heapq.heappop(self.entries)
        return None


def _is_pending(entry: Any) -> bool:
    return bool(entry[2].pending_ticket == entry[1])


def _is_waiting(entry: Any) -> bool:
    return bool(entry[2].waiting_ticket == entry[1])


def _is_last(entry: Any) -> bool:
    return bool(entry[5].waiting_ticket == entry[4])


def _is_due(entry: Any) -> bool:
    return bool(entry[2].due_ticket == entry[1])


class MemoryRowStore:
    """A `RowStore` in memory."""

    def __init__(self) -> None:
        self.sizes = [0] * len(STATES)
        self.paused = self.closed = self.changed = False
        self.fair_queue = FairQueue()
        self._ticket = count(1)
        self._sequence = 0
        self._tasks: dict[str, _MemoryRow] = {}
        self._by_sequence: list[_MemoryRow] = []  # includes deleted rows until it is compacted
        self._few: dict[int, dict[int, _MemoryRow]] = {state: {} for state in _FEW}
        self._unlimited = _LazyHeap(_is_pending)
        self._due = {state: _LazyHeap(_is_due) for state in (SCHEDULED, IN_FLIGHT, COMPLETED, CANCELLED)}
        self._deadlines = _LazyHeap(_is_waiting)
        self._last: _LazyHeap | None = None  # created on demand, because most queues shed no tasks
        self._limit_queue_ids = count(1)
        self._limit_queues: dict[int, LimitQueue] = {}
        self._limit_queue_tasks: dict[int, _LazyHeap] = {}
        self._limit_queues_by_keys: dict[tuple[str, ...], LimitQueue] = {}
        self._limit_queue_tickets: dict[int, int] = {}
        self._limit_queues_by_wait: dict[str, _LazyHeap] = {}
        self._limit_states: dict[str, LimitState] = {}
        self._limit_state_dues: dict[str, float] = {}
        self._limit_states_due = _LazyHeap(lambda entry: self._limit_state_dues.get(entry[1]) == entry[0])
        self._unique: dict[str, tuple[str, float]] = {}
        self._unique_ends = _LazyHeap(lambda entry: self._unique.get(entry[2], ("", 0.0))[1] == entry[0])
        self._claims: dict[str, tuple[list[tuple[Row, int]], float]] = {}
        self._claim_ends = _LazyHeap(lambda entry: self._claims.get(entry[2], ([], 0.0))[1] == entry[0])
        self._schedules: dict[str, Schedule] = {}

    # Tasks

    def new(self, record: Record) -> Row:
        self._sequence += 1
        return _MemoryRow(seq=self._sequence, record=record)

    def insert(self, row: Row) -> None:
        own = _own_row(row)
        self._tasks[row.record.id] = own
        self._by_sequence.append(own)
        self.save(row)

    def rows(self, ids: Sequence[str], *, payload: bool = False) -> dict[str, Row]:
        tasks = self._tasks
        return {task_id: tasks[task_id] for task_id in ids if task_id in tasks}

    def save(self, row: Row) -> None:
        own = _own_row(row)
        self.changed = True
        state = own.state
        if state == own.saved:
            if own.due is not None and own.due < own.due_entry:
                self._push_due(own, own.due)
            return
        if own.saved in self._few:
            del self._few[own.saved][own.seq]
        if state in self._few:
            self._few[state][own.seq] = own
        was_waiting = _GONE < own.saved < IN_FLIGHT
        own.saved = state
        own.pending_ticket = own.due_ticket = 0
        if state == PENDING:
            own.pending_ticket = next(self._ticket)
            heap = self._limit_queue_tasks[own.limit_queue] if own.limit_queue else self._unlimited
            record = own.record
            place = (record.priority, record.deadline, own.turn, own.seq, record.id)
            heap.push((_new_entry(QueueEntry, place), own.pending_ticket, own))
        elif own.due is not None:
            self._push_due(own, own.due)
        if state > PARKED:
            own.waiting_ticket = 0
        elif not was_waiting:
            self._push_waiting(own)

    def _push_due(self, row: _MemoryRow, due: float) -> None:
        row.due_ticket, row.due_entry = next(self._ticket), due
        self._due[row.state].push((due, row.due_ticket, row))

    def _push_waiting(self, row: _MemoryRow) -> None:
        row.waiting_ticket = next(self._ticket)
        if row.record.deadline < inf:
            self._deadlines.push((row.record.deadline, row.waiting_ticket, row))
        if self._last is not None:
            self._last.push(self._last_entry(row))

    def _last_entry(self, row: _MemoryRow) -> tuple[int, float, float, int, int, _MemoryRow]:
        return (-row.record.priority, -row.record.deadline, -row.turn, -row.seq, row.waiting_ticket, row)

    def save_attempts(self, row: Row) -> None:
        self.changed = True

    def save_record(self, row: Row) -> None:
        self.changed = True

    def save_corrupt(self, row: Row) -> None:
        """Nothing is damaged in memory."""

    def delete(self, row: Row) -> None:
        own = _own_row(row)
        self.changed = True
        if own.saved in self._few:
            del self._few[own.saved][own.seq]
        del self._tasks[own.record.id]
        own.state = _GONE
        own.pending_ticket = own.waiting_ticket = own.due_ticket = 0
        if len(self._by_sequence) > 2 * len(self._tasks) + 1024:
            self._by_sequence = [row for row in self._by_sequence if row.state != _GONE]

    def iter_ready(self, hint: int) -> Iterator[Row]:
        while (entry := self._unlimited.top()) is not None:
            yield entry[2]

    def first_ready(self, limit_queue: LimitQueue) -> Row | None:
        entry = self._limit_queue_tasks[limit_queue.id].top()
        return None if entry is None else entry[2]

    def due(self, state: int, now: float, most: int) -> list[Row]:
        heap, found = self._due[state], list[_MemoryRow]()
        while len(found) < most and (entry := self._top_due(state)) is not None and entry[0] <= now:
            found.append(heapq.heappop(heap.entries)[2])
        for row in found:  # the caller may leave them unchanged
            self._push_due(row, row.due_entry)
        return list(found)

    def _top_due(self, state: int) -> Any | None:
        heap = self._due[state]
        while (entry := heap.top()) is not None:
            row: _MemoryRow = entry[2]
            if row.due is None or row.due <= entry[0]:
                break
            heapq.heappop(heap.entries)  # the lease was renewed
            self._push_due(row, row.due)
        return entry

    def expired(self, now: float, most: int) -> list[Row]:
        heap, popped = self._deadlines, list[Any]()
        while len(popped) < most and (entry := heap.top()) is not None and entry[0] <= now:
            popped.append(heapq.heappop(heap.entries))
        for entry in popped:  # the caller may leave them unchanged
            heap.push(entry)
        return [entry[2] for entry in popped]

    def last(self) -> Row | None:
        if self._last is None:
            self._last = _LazyHeap(_is_last)
            for row in self._tasks.values():
                if row.state < IN_FLIGHT:
                    self._last.push(self._last_entry(row))
        entry = self._last.top()
        return None if entry is None else entry[5]

    def parked(self, types: Sequence[str]) -> list[Row]:
        return [row for _, row in sorted(self._few[PARKED].items()) if row.record.type in types]

    def find(self, query: Query, now: float) -> list[Row]:
        few = self._few.get(STATES.index(query.state)) if query.state is not None else None
        if few is not None:
            wanted = (row for row in few.values() if row.seq > query.after and _fits(row, query, now))
            return list(heapq.nsmallest(query.limit, wanted, key=attrgetter("seq")))
        found: list[Row] = []
        rows = self._by_sequence
        for index in range(bisect_right(rows, query.after, key=attrgetter("seq")), len(rows)):
            if len(found) >= query.limit:
                break
            if rows[index].state != _GONE and _fits(rows[index], query, now):
                found.append(rows[index])
        return found

    def count_expired(self, now: float) -> tuple[int, int]:
        before = -1
        while before != len(self._tasks):
            before = len(self._tasks)
            self.forget(now, 1000)
        return 0, 0

    def next_due(self) -> float:
        tops = (self._top_due(SCHEDULED), self._top_due(IN_FLIGHT), self._deadlines.top(), self._limit_states_due.top())
        return min((top[0] for top in tops if top is not None), default=inf)

    # Limits

    def limit_queue(self, limit_queue: int) -> LimitQueue | None:
        return self._limit_queues.get(limit_queue)

    def limit_queue_of(self, keys: tuple[str, ...]) -> LimitQueue:
        limit_queue = self._limit_queues_by_keys.get(keys)
        if limit_queue is None:
            limit_queue = LimitQueue(next(self._limit_queue_ids), keys)
            self._limit_queues[limit_queue.id] = self._limit_queues_by_keys[keys] = limit_queue
            self._limit_queue_tasks[limit_queue.id] = _LazyHeap(_is_pending)
        return limit_queue

    def save_limit_queue(self, limit_queue: LimitQueue) -> None:
        self.changed = True
        heap = self._limit_queues_by_wait.get(limit_queue.waits_on)
        if heap is None:
            tickets = self._limit_queue_tickets
            heap = self._limit_queues_by_wait[limit_queue.waits_on] = _LazyHeap(
                lambda entry: tickets.get(entry[2].id) == entry[1]
            )
        ticket = self._limit_queue_tickets[limit_queue.id] = next(self._ticket)
        heap.push((limit_queue.first_order, ticket, limit_queue))

    def drop_limit_queue(self, limit_queue: LimitQueue) -> None:
        self.changed = True
        del (
            self._limit_queues[limit_queue.id],
            self._limit_queue_tasks[limit_queue.id],
            self._limit_queues_by_keys[limit_queue.keys],
        )
        self._limit_queue_tickets.pop(limit_queue.id, None)

    def first_limit_queue(self, waits_on: str) -> LimitQueue | None:
        heap = self._limit_queues_by_wait.get(waits_on)
        if heap is None:
            return None
        entry = heap.top()
        if entry is None:
            del self._limit_queues_by_wait[waits_on]
            return None
        limit_queue: LimitQueue = entry[2]
        return limit_queue

    def limit_state(self, key: str) -> LimitState:
        limit_state = self._limit_states.get(key)
        if limit_state is None:
            limit_state = self._limit_states[key] = LimitState(key)
        return limit_state

    def running(self) -> dict[str, int]:
        return {key: limit_state.running for key, limit_state in self._limit_states.items()}

    def save_limit_state(self, limit_state: LimitState) -> None:
        self.changed = True
        if limit_state.due is None:
            self._limit_state_dues.pop(limit_state.key, None)
        elif self._limit_state_dues.get(limit_state.key) != limit_state.due:
            self._limit_state_dues[limit_state.key] = limit_state.due
            self._limit_states_due.push((limit_state.due, limit_state.key))

    def drop_limit_state(self, limit_state: LimitState) -> None:
        self.changed = True
        del self._limit_states[limit_state.key]
        self._limit_state_dues.pop(limit_state.key, None)

    def limit_states_due(self, now: float, most: int) -> list[LimitState]:
        found: list[LimitState] = []
        while len(found) < most and (entry := self._limit_states_due.top()) is not None and entry[0] <= now:
            heapq.heappop(self._limit_states_due.entries)
            del self._limit_state_dues[entry[1]]
            found.append(self._limit_states[entry[1]])
        return found

    # Unique keys, claims, schedules

    def unique_holder(self, key: str, now: float) -> str | None:
        task_id, until = self._unique.get(key, ("", 0.0))
        return task_id if until > now else None

    def hold_unique(self, key: str, task_id: str, until: float) -> None:
        self.changed = True
        self._unique[key] = (task_id, until)
        if until < inf:
            self._unique_ends.push((until, next(self._ticket), key))

    def release_unique(self, key: str, task_id: str) -> None:
        if self._unique.get(key) == (task_id, inf):
            del self._unique[key]

    def claimed(self, nonce: str) -> list[tuple[Row, int]] | None:
        there = self._claims.get(nonce)
        return None if there is None else there[0]

    def remember(self, nonce: str, rows: Sequence[Row], until: float) -> None:
        self._claims[nonce] = ([(row, row.epoch) for row in rows], until)
        self._claim_ends.push((until, next(self._ticket), nonce))

    def forget(self, now: float, most: int) -> None:
        for state in (COMPLETED, CANCELLED):
            for row in self.due(state, now, most):
                if row.due is not None and row.due < now:
                    self.sizes[state] -= 1
                    self.delete(row)
        for heap, kept in ((self._unique_ends, self._unique), (self._claim_ends, self._claims)):
            for _ in range(most):
                entry = heap.top()
                if entry is None or entry[0] >= now:
                    break
                del kept[heapq.heappop(heap.entries)[2]]

    def schedules(self) -> list[Schedule]:
        return sorted(self._schedules.values(), key=lambda schedule: (schedule.due, schedule.name))

    def schedule(self, name: str) -> Schedule | None:
        return self._schedules.get(name)

    def save_schedule(self, schedule: Schedule) -> None:
        self.changed = True
        self._schedules[schedule.name] = schedule

    def drop_schedule(self, name: str) -> None:
        self.changed = True
        del self._schedules[name]

    def save_queue(self) -> None:
        self.changed = True


def _own_row(row: Row) -> _MemoryRow:
    if not isinstance(row, _MemoryRow):  # pragma: no cover - all rows come from `new`
        raise TypeError(f"a row of another book: {row!r}")
    return row


def _fits(row: Row, query: Query, now: float) -> bool:
    return (
        not (row.state in (COMPLETED, CANCELLED) and row.due is not None and row.due < now)
        and (query.state is None or STATES[row.state] == query.state)
        and (query.type is None or row.record.type == query.type)
        and (query.reason is None or row.reason == query.reason)
        and (query.ended_before is None or 0 < row.ended < query.ended_before)
    )


R = TypeVar("R")


class MemoryStore:
    """Keeps the tasks of one queue in memory. They do not survive the process.

    It may be used from several event loops and threads at the same time. No operation suspends, so an operation that is
    cancelled before it began has no effect, and every other operation is complete. After `close`, `open` continues with
    the same tasks.
    """

    durable = False
    overlap = 1

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        """Create an empty store, which can be used at once.

        Args:
            clock: returns seconds since the epoch. It is called in the thread that calls the store.
        """
        self._clock = MonotonicWallClock(clock)
        self._lock = threading.Lock()
        self._row_store = MemoryRowStore()
        self._engine = Engine(self._row_store)
        self._notifier = VersionNotifier()
        self._closed = False

    def now(self) -> float:
        """The current time, in seconds since the epoch; see `MonotonicWallClock`."""
        return self._clock()

    async def open(self) -> None:
        """Work again after `close`. A checkpoint."""
        await yield_now()
        self._closed = False

    async def close(self) -> None:
        """Reject all later calls with `PoolClosed`. A checkpoint."""
        await yield_now()
        self._closed = True
        self._notifier.notify()

    def _do(self, step: Callable[..., R], *args: Any) -> R:
        row_store = self._row_store
        with self._lock:
            if self._closed:
                self._check_open()
            row_store.changed = False
            answer = step(self._clock(), *args)
            changed = row_store.changed
        if changed:
            self._notifier.notify()
        return answer

    def _check_open(self) -> None:
        if self._closed:
            raise PoolClosed("the store is closed: open() it again, or make another")

    async def _step(self, step: Callable[..., R], *args: Any) -> R:
        await yield_now()
        return self._do(step, *args)

    async def add(self, records: Sequence[Record], bound: Bound | None = None) -> list[Added]:
        await yield_now()
        return self._do(self._engine.add, records, bound)

    async def exchange(self, finishes: Sequence[Finish], claim: Claim | None = None) -> Exchange:
        await yield_now()
        return self._do(self._engine.exchange, finishes, claim)

    def beat(self, worker: str, leases: Sequence[tuple[str, int]], lease: float | None) -> Beat:
        return self._do(self._engine.beat, worker, leases, lease)

    async def save(
        self, task_id: str, epoch: int, *, progress: bytes | None = None, checkpoint: bytes | None = None
    ) -> bool:
        return await self._step(self._engine.save_progress, task_id, epoch, progress, checkpoint)

    async def cancel(self, ids: Sequence[str]) -> list[str]:
        return await self._step(self._engine.cancel, ids)

    async def unpark(self, types: Sequence[str]) -> int:
        return await self._step(self._engine.unpark, types)

    async def control(self, *, paused: bool | None = None, closed: bool | None = None) -> None:
        await self._step(self._engine.control, paused, closed)

    async def set_limit(self, limit: Limit | None, key: str) -> None:
        await self._step(self._engine.set_limit, limit, key)

    async def pause_limit(self, key: str, seconds: float) -> None:
        await self._step(self._engine.pause_limit, key, seconds)

    async def put_schedule(self, schedule: Schedule) -> None:
        await self._step(self._engine.put_schedule, schedule)

    async def remove_schedule(self, name: str) -> bool:
        return await self._step(self._engine.remove_schedule, name)

    async def schedules(self) -> list[Schedule]:
        return await self._step(self._engine.schedules)

    async def fire(self, name: str, due: float, next_due: float) -> bool:
        return await self._step(self._engine.fire, name, due, next_due)

    async def get(self, ids: Sequence[str]) -> list[Snapshot | None]:
        return await self._step(self._engine.get, ids)

    async def size(self) -> Size:
        return await self._step(self._engine.size)

    async def find(self, query: Query) -> list[Snapshot]:
        return await self._step(self._engine.find, query)

    async def replay(self, ids: Sequence[str]) -> list[bool]:
        return await self._step(self._engine.replay, ids)

    async def edit(self, task_id: str, payload: bytes) -> bool:
        return await self._step(self._engine.edit, task_id, payload)

    async def purge(self, ids: Sequence[str]) -> int:
        return await self._step(self._engine.purge, ids)

    def version(self) -> int:
        return self._notifier.version

    async def changed(self, since: int, timeout: float) -> None:
        self._check_open()
        await self._notifier.wait(since, timeout)
