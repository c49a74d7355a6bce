"""Applies the supervision policies: receives the ends of children, asks the policies for a decision and carries it out.

Invariants:
1. Children start one after another, in order, and stop one after another, in reverse order.
2. No decision is taken inside a handler: the dispatcher, which never waits, decides on crashes.
3. A restart is a timer: while it runs, children can be stopped, listed and added.
4. After `close` or `kill` nothing is restarted, and the owner is notified when the last child has ended for good.

A restart of several children: they stop in reverse order, then start in order, one at a time.

The supervisor does not wait and can do other work between the steps.
"""

from __future__ import annotations

import random
from collections import deque
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from cuelight._checks import check_seconds
from cuelight._text import describe_error, safe_repr, safe_str
from cuelight.actors import Cell, ChildSpec, Crashed, Exit, Killed, Runtime, ShutDown, Spawned, WasRestarted
from cuelight.errors import BudgetExceeded, CuelightError, MaxChildren, RestartLimitExceeded, ends_the_program
from cuelight.supervision._budget import Budget, Ledger, resident_memory
from cuelight.supervision._crash_report import report_crash
from cuelight.supervision._policies import Backoff, RestartLimit, Strategy, one_for_one

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cuelight.actors import BackoffPolicy, ChildSupervisor
    from cuelight.actors._spec import RestartLimitPolicy


class GroupRestart:
    __slots__ = ("_affected", "_delay", "_ended", "_family", "_running", "_starting", "_timer")

    def __init__(self, family: Children, affected: list[Cell], delay: float) -> None:
        self._family = family
        self._affected = set(affected)  # children that have not started again yet
        # Both lists are consumed from the end. They may contain children that have ended for good in the meantime.
        self._running = list(affected)
        self._ended = affected[::-1]
        self._delay = delay
        self._starting: Cell | None = None
        self._timer: Any = None

    def begin(self) -> None:
        """Stop the last child that is still running. When none is left, set the timer for the start."""
        self.abandon()  # two children may have ended at the same time
        while self._running:
            cell = self._running[-1]
            if cell in self._affected and not cell.over:
                self._timer = self._family.runtime.later(cell.options.shutdown, cell.cancel_turn)
                cell.end_for_restart()
                return
            self._running.pop()
        self._timer = self._family.runtime.later(self._delay, self._start_next)

    def heard(self, cell: Cell, exit_: Exit) -> bool:
        """Handle the end of a child's incarnation. Returns False if the child is not part of this restart."""
        if cell not in self._affected:
            return False
        stays_ended = cell.options.restart == "temporary" or (cell.closed and cell.options.restart != "permanent")
        if self._starting is cell:
            self._starting = None
            if not stays_ended:
                self._family.start_failed_again(cell, exit_)
                return True
            step = self._start_next
        else:
            self._family.report(cell, exit_, "it ended while its group was being stopped for a restart")
            step = self.begin
        if stays_ended:
            self._affected.discard(cell)
            self._family.bury(cell, exit_)
        self._family.runtime.post(self._if_current, step)
        return True

    def _if_current(self, step: Any) -> None:
        if self._family.group_restart is self:
            step()

    def _start_next(self) -> None:
        while self._ended:
            cell = self._ended.pop()
            if cell in self._affected:
                self._starting = cell
                self._family.restart(cell)
                return
        self._family.group_restart_done()

    def has_started(self, cell: Cell) -> None:
        """Start the next child."""
        if self._starting is cell:
            self._starting = None
            self._affected.discard(cell)
            self._family.runtime.post(self._if_current, self._start_next)

    def gone(self, cell: Cell) -> None:
        """Forget a child that another caller has stopped or killed."""
        if self._starting is not cell:
            self._affected.discard(cell)

    def abandon(self) -> None:
        """Cancel the timer, because the family is closing or the next step is due now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


AutoShutdown = Literal["never", "any_significant", "all_significant"]

MEMORY_PERIOD = 1.0


class Plan(msgspec.Struct, frozen=True):
    """How a family is supervised.

    The defaults apply to the children of a plainly spawned actor, and to the top of a system without options.
    """

    strategy: Strategy = one_for_one
    limit: RestartLimit = RestartLimit()
    backoff: Any = Backoff()
    auto_shutdown: AutoShutdown = "never"
    max_children: float = float("inf")
    together: bool = False
    budget: Budget | None = None


DEFAULT_PLAN = Plan()


class Record:
    """The restart data of a child that has crashed at least once."""

    __slots__ = ("exit", "history", "restarts", "since", "timer")

    def __init__(self) -> None:
        self.history: tuple[float, ...] = ()  # used by a child with its own restart limit
        self.restarts = 0
        self.since: float | None = None
        self.timer: Any = None
        self.exit: Exit | None = None


class Children:
    """The children of one cell; implements `actors.Family`."""

    __slots__ = (
        "_cells",
        "_closing",
        "_history",
        "_ledger",
        "_looks",
        "_plan",
        "_records",
        "_stopping",
        "_sweeping",
        "_to_stop",
        "_deferred",
        "owner",
        "group_restart",
        "runtime",
    )

    def __init__(self, runtime: Runtime, owner: Cell, plan: Plan) -> None:
        self.runtime = runtime
        self.owner: Cell | None = owner
        self._plan = plan
        self._cells: dict[Cell, None] = {}
        self._records: dict[Cell, Record] = {}
        self._history: tuple[float, ...] = ()
        self.group_restart: GroupRestart | None = None
        self._deferred: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._closing = False
        self._stopping: Cell | None = None
        self._to_stop: list[Cell] = []
        self._sweeping = False
        self._looks: list[Any] = []
        self._ledger: Ledger | None = None
        if plan.budget is not None:
            self._open_budget(plan.budget)

    @property
    def empty(self) -> bool:
        return not self._cells

    def children(self) -> Iterable[Cell]:
        return tuple(self._cells)

    def new_children(self, owner: Cell) -> ChildSupervisor:
        return self.runtime.new_children(owner)

    # Starting.

    def adopt(self, spec: ChildSpec[Any], *, awaited_start: bool = False) -> Cell:
        if len(self._cells) >= self._plan.max_children:
            path = "the supervisor" if self.owner is None else self.owner.path
            raise MaxChildren(f"{path} has {len(self._cells)} children, as many as max_children allows")
        cell = self.runtime.new_cell(self, spec)
        cell.awaited_start = awaited_start
        self._cells[cell] = None
        cell.begin(SPAWNED)
        return cell

    def has_started(self, cell: Cell) -> None:
        record = self._records.get(cell)
        if record is not None:
            record.since = self.runtime.backend.time()
        if self.group_restart is not None:
            self.group_restart.has_started(cell)

    # Ends of children.

    def ended(self, cell: Cell, exit_: Exit) -> None:
        if self._closing:
            self.bury(cell, exit_)
        elif self.group_restart is not None and self.group_restart.heard(cell, exit_):
            pass
        elif self._wants_restart(cell, exit_):
            self.runtime.post(self._decide, cell, exit_)
        else:
            self.bury(cell, exit_)

    def _start_failed(self, cell: Cell) -> bool:
        """Whether a child failed to start for the first time while a caller waits for its start."""
        return cell.awaited_start and not cell.incarnation

    def _wants_restart(self, cell: Cell, exit_: Exit) -> bool:
        kind = cell.options.restart
        if self._start_failed(cell):
            return False
        if kind == "permanent":
            return True
        beyond = isinstance(exit_, Crashed) and isinstance(exit_.error, BudgetExceeded)
        return kind == "transient" and exit_.abnormal and not cell.closed and not beyond

    def bury(self, cell: Cell, exit_: Exit) -> None:
        """End a child for good."""
        record = self._records.get(cell)
        if record is not None:
            self._forget_timer(cell)
            self._records.pop(cell, None)
        cell.bury(exit_)
        reported = record is not None and record.exit is exit_
        if isinstance(exit_, Crashed) and not (reported or self._start_failed(cell)):
            why = ", for its supervisor is stopping" if self._closing else ""
            self.report(cell, exit_, f"it is not restarted{why}")

    def _forget_timer(self, cell: Cell) -> None:
        record = self._records.get(cell)
        if record is not None and record.timer is not None:
            record.timer.cancel()
            record.timer = None
            self.runtime.restart_finished()

    def buried(self, cell: Cell) -> None:
        self._cells.pop(cell, None)
        if self._closing:
            if self._stopping is cell:
                self._stopping = None
            if not self._sweeping or not self._cells:
                self.runtime.post(self._stop_next)
        elif cell.options.significant and self.owner is not None:
            rule = self._plan.auto_shutdown
            left = any(other.options.significant for other in self._cells)
            if rule == "any_significant" or (rule == "all_significant" and not left):
                self.runtime.post(self.owner.stop)

    def give_up(self, cell: Cell, exit_: Exit) -> None:
        if self.group_restart is not None:
            self.group_restart.gone(cell)
        self.bury(cell, exit_)

    # Decisions.

    def _decide(self, cell: Cell, exit_: Exit) -> None:
        if cell not in self._cells or not cell.over:
            return
        if self._closing:
            self.bury(cell, exit_)
            return
        if self.group_restart is not None:
            self._deferred.append((self._decide, (cell, exit_)))
            return
        now = self.runtime.backend.time()
        record = self._records.get(cell)
        if record is None:
            record = self._records[cell] = Record()
        record.exit = exit_
        try:
            self._count_or_restart(cell, exit_, record, now)
        except BaseException as error:  # raised by a back-off, a limit or a strategy of the user
            self._policy_failed(cell, exit_, error)

    def _count_or_restart(self, cell: Cell, exit_: Exit, record: Record, now: float) -> None:
        backoff: BackoffPolicy = cell.options.backoff or self._plan.backoff
        if record.since is not None and now - record.since >= backoff.healthy_after:
            record.restarts = 0
        counted = not (cell.options.redeliver > 1 and isinstance(exit_, Crashed) and exit_.message is not None)
        limit: RestartLimitPolicy = self._plan.limit
        own = cell.options.restart_limit
        if counted:
            if own is not None:
                record.history, allowed = own.count(record.history, now)
            else:
                self._history, allowed = limit.count(self._history, now)
            if not allowed:
                self._exhausted(cell, exit_)
                return
        limit, used = (limit, self._history) if own is None else (own, record.history)
        delay = backoff.delay(record.restarts, random.random())  # noqa: S311 - jitter, not a secret
        check_seconds(f"the delay of {safe_repr(backoff)}", delay, 0.0, finite=True)
        affected = self._affected(cell)
        record.restarts += 1
        self.runtime.restarting += 1
        if len(affected) == 1:
            record.timer = self.runtime.later(delay, self._restart, cell)
        else:
            for other in affected:
                self._forget_timer(other)  # replaced by the group restart
            self.group_restart = GroupRestart(self, affected, delay)
            self.group_restart.begin()
        others = f", together with {len(affected) - 1} others" if len(affected) > 1 else ""
        self.report(
            cell,
            exit_,
            f"restart in {delay:.2f} s{others}: number {record.restarts} since it was last healthy; "
            f"{len(used)} of at most {limit.max_restarts} restarts within {limit.within:g} s are used",
        )

    def _policy_failed(self, cell: Cell, exit_: Exit, error: BaseException) -> None:
        """Fail the supervisor because a restart policy raised, so there is no decision about the child."""
        failure = CuelightError(
            f"{cell.path} {exit_.describe()}, and a restart policy of its supervisor raised {describe_error(error)}"
        )
        failure.__cause__ = error
        self.report(cell, exit_, f"no restart: a policy raised {describe_error(error)}")
        self.escalate(failure)
        if ends_the_program(error):
            self.runtime.abort(error)

    def _affected(self, cell: Cell) -> list[Cell]:
        """The children chosen by the strategy, and those that a failed group restart has left ended."""
        chosen = set(self._plan.strategy(list(self._cells), cell))
        left = {other for other in self._cells if other.over and not self._is_due(other)}
        return [other for other in self._cells if other in chosen or other in left]

    def _is_due(self, cell: Cell) -> bool:
        record = self._records.get(cell)
        return record is not None and record.timer is not None

    def _restart(self, cell: Cell) -> None:
        record = self._records[cell]
        record.timer = None
        self.runtime.restart_finished()
        self.restart(cell)

    def restart(self, cell: Cell) -> None:
        """Start the next incarnation of a child."""
        record = self._records.get(cell)
        exit_ = ShutDown() if record is None or record.exit is None else record.exit
        cell.restarts = 1 if record is None else record.restarts
        cell.restart(WasRestarted(exit_, cell.restarts))

    def report(self, cell: Cell, exit_: Exit, decision: str) -> None:
        """Log a crash and the decision."""
        if isinstance(exit_, Crashed):
            report_crash(cell, exit_, self, decision)

    def group_restart_done(self) -> None:
        """End the group restart, complete or abandoned, and resume deferred decisions."""
        self.group_restart = None
        self.runtime.restart_finished()
        undecided, self._deferred = self._deferred, deque()
        for decision, args in undecided:
            self.runtime.post(decision, *args)

    def restart_child(self, cell: Cell) -> None:
        """Restart one child on request. This does not count as a crash."""
        if self.group_restart is not None:
            self._deferred.append((self.restart_child, (cell,)))
        elif cell in self._cells and not self._closing and not self._is_due(cell):
            self.runtime.restarting += 1
            self.group_restart = GroupRestart(self, [cell], 0.0)
            self.group_restart.begin()

    def start_failed_again(self, cell: Cell, exit_: Exit) -> None:
        """Abandon the group restart because a child failed to start, and count that as a crash of the child."""
        self.group_restart_done()
        self.runtime.post(self._decide, cell, exit_)

    def _exhausted(self, cell: Cell, exit_: Exit) -> None:
        own = cell.options.restart_limit
        if own is not None:
            advice = "its option restart_limit changes that"
            more = f"more than {own.max_restarts} restarts within {own.within:g} s"
            self.report(cell, exit_, f"it is not restarted, and its supervisor continues: {more} ({advice})")
            self.bury(cell, exit_)
            return
        limit = self._plan.limit
        error = RestartLimitExceeded(
            f"{cell.path} {exit_.describe()}; more than {limit.max_restarts} restarts within {limit.within:g} s, "
            f"so its supervisor gives up (max_restarts and within change that)"
        )
        if isinstance(exit_, Crashed):
            error.__cause__ = exit_.error
        self.escalate(error)
        self.report(cell, exit_, f"no restart: {len(self._history)} within {limit.within:g} s are too many")

    def escalate(self, error: CuelightError) -> None:
        """End the owner's incarnation with this error."""
        owner = self.owner
        assert owner is not None  # noqa: S101 - only the root itself has no owner
        if not self._closing:
            owner.fail_with(error)

    # Budgets.

    def _open_budget(self, budget: Budget) -> None:
        self._ledger = Ledger(budget)
        if budget.wall < float("inf"):
            self._looks.append(self.runtime.later(budget.wall, self._out_of_time, budget.wall))
        if budget.memory < float("inf"):
            self._looks.append(self.runtime.later(MEMORY_PERIOD, self._look_at_memory, budget.memory))

    def _out_of_time(self, wall: float) -> None:
        self.escalate(BudgetExceeded(f"lived for {wall:g} s, as long as its budget allows"))

    def _look_at_memory(self, limit: float) -> None:
        used = resident_memory()
        if used > limit:
            self.escalate(BudgetExceeded(f"the process uses {used} bytes of at most {limit:g}"))
        elif not self._closing:
            self._looks = [self.runtime.later(MEMORY_PERIOD, self._look_at_memory, limit)]

    def spent(self) -> dict[str, float]:
        return {} if self._ledger is None else self._ledger.spent(self.runtime.backend.time())

    def spend(self, amounts: dict[str, float]) -> None:
        family: Any = self
        while family is not None:
            ledger = getattr(family, "_ledger", None)
            if ledger is not None:
                error = ledger.charge(amounts, self.runtime.backend.time())
                if error is not None:
                    family.escalate(error)
            family = None if family.owner is None else family.owner.keeper

    # Stopping.

    def _close(self) -> None:
        self._closing = True
        self._to_stop = list(self._cells)  # consumed from the end; some children may end by themselves meanwhile
        for look in self._looks:
            look.cancel()
        if self.group_restart is not None:
            self.group_restart.abandon()
            self.group_restart = None
            self.runtime.restart_finished()

    def close(self, exit_: Exit) -> None:
        if isinstance(exit_, Crashed) and isinstance(exit_.error, BudgetExceeded):
            self.kill(safe_str(exit_.error))  # kill at once, so that the subtree does not go on spending
        elif not self._closing:
            self._close()
            self.runtime.post(self._stop_next)

    def kill(self, why: str) -> None:
        self._close()
        for cell in reversed(tuple(self._cells)):
            self.runtime.post(self._kill_one, cell, why)

    def _kill_one(self, cell: Cell, why: str) -> None:
        if cell.over:
            self.give_up(cell, Killed(why))
        else:
            cell.kill(why)

    def _stop_next(self) -> None:
        if self._plan.together:
            if not self._sweeping:
                self._sweeping = True
                for cell in reversed(tuple(self._cells)):
                    self._stop(cell)
        else:
            self._sweeping = True
            while self._to_stop and self._stopping is None:
                cell = self._to_stop.pop()
                if cell in self._cells:
                    self._stopping = cell
                    self._stop(cell)
            self._sweeping = False
        if not self._cells and self.owner is not None:
            self.runtime.post(self.owner.part_ended)

    def _stop(self, cell: Cell) -> None:
        if cell.over:
            self.bury(cell, cell.exit or ShutDown())
        else:
            cell.shut_down()
        if not cell.dead and cell.options.shutdown < float("inf"):  # most actors are idle and have already ended
            timer = self.runtime.later(cell.options.shutdown, self._overdue, cell)
            cell.ensure_extras().call_when_ended(lambda _: timer.cancel())

    def _overdue(self, cell: Cell) -> None:
        if cell.dead:
            return
        if cell.waits_for_children:
            self.runtime.later(cell.options.shutdown, self._overdue, cell)  # its children have their own deadlines
        else:
            cell.kill(f"it did not stop within {cell.options.shutdown:g} s (shutdown)")


SPAWNED = Spawned()
