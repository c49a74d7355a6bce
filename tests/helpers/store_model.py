"""What a store should do, in the simplest way: one dict, and a loop over all of it for each question.

It is told which tasks a store has leased, and checks that these were the right ones; all else it predicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

from cuelight.tasks import Bound, Counts, Finish, Lease, Limit, Record

WAITING = ("pending", "scheduled", "parked")
FINAL = ("completed", "cancelled", "dead_letter")
Line = tuple[int, bool]  # priority, has a deadline: tasks that share one virtual time
BUDGETS = {
    "error": ("errors", "max_retries", "errors"),
    "timeout": ("timeouts", "max_timeouts", "timeouts"),
    "crash": ("crashes", "max_crashes", "quarantined"),
}


@dataclass
class Known:
    """A task as the model knows it."""

    record: Record
    sequence: int
    state: str = "pending"
    due: float = 0.0
    epoch: int = 0
    worker: str = ""
    reason: str = ""
    ended: float = 0.0
    cancelling: bool = False
    counts: Counts = field(default_factory=Counts)
    attempts: list[str] = field(default_factory=list[str])
    settled: tuple[int, str, str] = (0, "", "")  # epoch, kind, outcome
    turn: float = 0.0

    @property
    def order(self) -> tuple[int, float, float, int]:
        return (self.record.priority, self.record.deadline, self.turn, self.sequence)

    @property
    def line(self) -> Line:
        return (self.record.priority, self.record.deadline < inf)

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(limit.key for limit in self.record.limits)


class Model:
    """The tasks of one queue."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.tasks: dict[str, Known] = {}
        self.sequence = 0
        self.floor = self.top = 0.0
        self.virtual: dict[Line, float] = {}
        self.ends: dict[tuple[Line, str], float] = {}
        self.unique: dict[str, tuple[str, float]] = {}
        self.paused = self.closed = False
        self.overrides: dict[str, Limit] = {}
        self.shut: dict[str, float] = {}
        self.tat: dict[str, float] = {}
        self.starts: list[tuple[float, Limit]] = []
        self.claims: dict[str, tuple[str, list[tuple[str, int, int]], float]] = {}

    # What producers do

    def add(self, records: Sequence[Record], bound: Bound | None) -> list[tuple[str, str]]:
        return [self._add(record, bound) for record in records]

    def _add(self, record: Record, bound: Bound | None) -> tuple[str, str]:
        there = self.tasks.get(record.id)
        if there is not None:
            return ("added" if there.record.nonce == record.nonce else "duplicate", record.id)
        holder, until = self.unique.get(record.unique or "", ("", 0.0))
        if record.unique is not None and until > self.now:
            return ("duplicate", holder)
        waiting = [task for task in self.tasks.values() if task.state in WAITING]
        if bound is not None and len(waiting) >= bound.most:
            last = max(waiting, key=lambda task: task.order)
            if not bound.shed or last.order[:2] <= (record.priority, record.deadline):
                return ("full", record.id)
            self._end(last, "dead_letter", "shed")
        self.sequence += 1
        task = self.tasks[record.id] = Known(record, self.sequence)
        task.turn = self._turn(task)
        if record.delay:
            task.state, task.due = "scheduled", self.now + record.delay
        if record.unique is not None:
            self.unique[record.unique] = (record.id, self.now + (record.unique_for or inf))
        return ("added", record.id)

    def _turn(self, task: Known) -> float:
        """`max(virtual time, end of the tenant's last task)`; nobody's tasks count from the first tenant on."""
        line, tenant, weight = task.line, task.record.tenant or "", task.record.weight
        turn = self.virtual.get(line, self.floor)
        if task.record.tenant is not None or self.ends:
            turn = max(turn, self.ends.get((line, tenant), turn))
            self.ends[line, tenant] = turn + 1 / weight
            self.top = max(self.top, turn + 1 / weight)
        return turn

    # What time brings

    def sweep(self) -> None:
        for task in list(self.tasks.values()):
            if task.state == "in_flight" and task.due <= self.now:
                self._attempt_over(task, "crash", 0)
            elif task.state == "scheduled" and task.due <= self.now:
                task.state, task.due = "pending", 0.0
        for task in list(self.tasks.values()):
            if task.state in WAITING and task.record.deadline <= self.now:
                self._end(task, "dead_letter", "expired")

    def forget_over(self) -> None:
        for task in list(self.tasks.values()):
            if task.state in ("completed", "cancelled") and task.due < self.now:
                del self.tasks[task.record.id]

    # What workers do

    def admits(self, key: str, task: Known) -> bool:
        """Whether a limit lets a task start now."""
        own = next(limit for limit in task.record.limits if limit.key == key)
        limit = self.overrides.get(key, own)
        running = sum(other.state == "in_flight" and key in other.keys for other in self.tasks.values())
        if self.shut.get(key, 0.0) > self.now or (limit.max_concurrent is not None and running >= limit.max_concurrent):
            return False
        if limit.rate is None:
            return True
        burst = limit.burst or limit.rate
        return self.tat.get(key, 0.0) - (burst - own.cost) * limit.per / limit.rate <= self.now

    def leased(self, leases: Sequence[Lease], worker: str, most: int, lease: float) -> None:
        """Check that these are the tasks that a claim has to give, and lease them."""
        assert len(leases) <= (0 if self.paused else most)
        orders = [self.tasks[given.record.id].order for given in leases]
        assert orders == sorted(orders), "5: not in the order of claims"
        for given in leases:
            task = self.tasks[given.record.id]
            assert task.state == "pending", "1: only a pending task is claimed"
            assert task.record.deadline > self.now, "7: its deadline has passed"
            assert all(self.admits(key, task) for key in task.keys), "6: a limit is exceeded"
            task.state, task.worker, task.due = "in_flight", worker, self.now + lease
            task.epoch += 1
            self.virtual[task.line] = max(self.virtual.get(task.line, self.floor), task.turn)
            assert given.epoch == task.epoch, "3: each claim raises the epoch by one"
            assert (given.expires, given.counts) == (task.due, task.counts)
            for limit in task.record.limits:
                if limit.rate is not None:
                    self.starts.append((self.now, limit))
                    paid = max(self.tat.get(limit.key, 0.0), self.now)
                    self.tat[limit.key] = paid + limit.cost * limit.per / limit.rate
        pending = sorted((t for t in self.tasks.values() if t.state == "pending"), key=lambda task: task.order)
        if not pending:  # nobody waits for a turn
            self.floor = self.top
            self.virtual, self.ends = {}, {}
        if not self.paused and len(leases) < most:
            self._check_none_may_run(pending)
        elif leases:
            self._check_none_may_run([task for task in pending if task.order < max(orders)])

    def leased_again(self, leases: Sequence[Lease], lease: float) -> None:
        """The answer to a claim was lost: what is still held is held from now on."""
        for given in leases:
            task = self.tasks[given.record.id]
            task.due = max(task.due, self.now + lease)
            assert given.expires == task.due

    def _check_none_may_run(self, left: list[Known]) -> None:
        held: set[str] = set()  # limits that a more urgent task waits for
        for task in left:
            refusing = {key for key in task.keys if not self.admits(key, task)}
            assert refusing or held & set(task.keys), f"5: {task.record.id} may run and was not claimed"
            held |= refusing or set(task.keys)

    def finish(self, finish: Finish) -> str:
        task = self.tasks.get(finish.id)
        if task is None:
            return ""
        if task.state != "in_flight" or task.epoch != finish.epoch:
            epoch, kind, outcome = task.settled
            return outcome if (epoch, kind) == (finish.epoch, finish.kind) else ""
        self._attempt_over(task, finish.kind, finish.delay)
        task.settled = (finish.epoch, finish.kind, task.state)
        if finish.kind == "rate_limited" and finish.pause_key is not None:
            self.pause_limit(finish.pause_key, finish.delay)
        return task.state

    def _attempt_over(self, task: Known, kind: str, delay: float) -> None:
        if kind not in ("done", "unknown"):
            task.attempts.append(kind)
        counted = {"error": "errors", "timeout": "timeouts", "crash": "crashes"}.get(kind, kind)
        if hasattr(task.counts, counted):
            setattr(task.counts, counted, getattr(task.counts, counted) + 1)
        name, budget, reason = BUDGETS.get(kind, ("errors", "", ""))
        if kind == "done":
            self._end(task, "completed")
        elif task.cancelling or kind == "cancelled":
            self._end(task, "cancelled")
        elif kind in ("rejected", "undecodable"):
            self._end(task, "dead_letter", kind)
        elif kind == "unknown":
            task.state, task.due = "parked", 0.0
        elif reason and getattr(task.counts, name) >= max(1, getattr(task.record, budget)):
            self._end(task, "dead_letter", reason)
        elif delay and kind != "crash":
            task.state, task.due = "scheduled", self.now + delay
        else:
            task.state, task.due = "pending", 0.0

    def _end(self, task: Known, state: str, reason: str = "") -> None:
        task.state, task.reason, task.ended, task.cancelling = state, reason, self.now, False
        task.due = 0.0 if state == "dead_letter" else self.now + task.record.result_ttl
        if self.unique.get(task.record.unique or "") == (task.record.id, inf):
            del self.unique[task.record.unique or ""]

    def holds(self, task_id: str, epoch: int, worker: str | None = None) -> bool:
        task = self.tasks.get(task_id)
        return (
            task is not None
            and (task.state, task.epoch) == ("in_flight", epoch)
            and (worker is None or task.worker == worker)
        )

    # What people do

    def cancel(self, task_id: str) -> str:
        task = self.tasks.get(task_id)
        if task is None:
            return "unknown"
        if task.state == "in_flight":
            task.cancelling = True
            return "cancelling"
        if task.state in WAITING:
            self._end(task, "cancelled")
        return "cancelled" if task.state == "cancelled" else "finished"

    def replay(self, task_id: str) -> bool:
        task = self.tasks.get(task_id)
        if task is None or task.state != "dead_letter":
            return False
        task.state, task.due, task.reason, task.ended, task.counts = "pending", 0.0, "", 0.0, Counts()
        if task.record.deadline <= self.now:
            task.record.deadline = inf
            task.turn = min(task.turn, self.virtual.get(task.line, self.floor))
        key = task.record.unique
        if key is not None and task.record.unique_for is None and self.unique.get(key, ("", 0.0))[1] <= self.now:
            self.unique[key] = (task_id, inf)
        return True

    def edit(self, task_id: str, payload: bytes) -> bool:
        task = self.tasks.get(task_id)
        if task is None or not (task.state == "dead_letter" or (task.state in WAITING and task.epoch == 0)):
            return False
        task.record.payload = payload
        return True

    def purge(self, task_id: str) -> int:
        if task_id in self.tasks and self.tasks[task_id].state in FINAL:
            del self.tasks[task_id]
            return 1
        return 0

    def unpark(self, task_type: str) -> int:
        parked = [task for task in self.tasks.values() if task.state == "parked" and task.record.type == task_type]
        for task in parked:
            task.state = "pending"
        return len(parked)

    def pause_limit(self, key: str, seconds: float) -> None:
        self.shut[key] = max(self.shut.get(key, 0.0), self.now + seconds) if seconds else 0.0
