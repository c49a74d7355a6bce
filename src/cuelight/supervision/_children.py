"""The supervision of the children of one actor: their starts, restarts and ends, as the policies decide.

Invariants:
1. Children start one after another, in order, and stop one after another, in reverse order.
2. No decision is taken inside a handler: the dispatcher, which never waits, decides on crashes.
3. A restart is a timer: while it runs, children can be stopped, listed and added.
4. After `close` or `kill` nothing is restarted, and the owner is notified when the last child has ended for good.
"""

from __future__ import annotations

import random
from collections import deque
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from cuelight._checks import check_seconds
from cuelight._text import describe_error, safe_repr, safe_str
from cuelight.actors import ActorRuntime, Cell, ChildSpec, Crashed, Exit, Killed, ShutDown, Spawned, WasRestarted
from cuelight.errors import BudgetExceeded, CuelightError, MaxChildren, RestartLimitExceeded, ends_the_program
from cuelight.supervision._budget import Budget, BudgetCounter, resident_memory
from cuelight.supervision._crash_report import report_crash
from cuelight.supervision._policies import Backoff, RestartLimit, Strategy, one_for_one

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cuelight.actors import BackoffPolicy, ChildSupervisor
    from cuelight.actors._spec import RestartLimitPolicy


class GroupRestart:
    """A restart of several children: they stop in reverse order, then start in order, one at a time.

    The supervisor does not wait and can do other work between the steps.
    """

    __slots__ = ("_affected", "_children", "_delay", "_ended", "_running", "_starting", "_timer")

    def __init__(self, children: Children, affected: list[Cell], delay: float) -> None:
        self._children = children
        self._affected = set(affected)  # children that have not started again yet
        # Both lists are consumed from the end. They may contain children that have ended for good in the meantime.
        self._running = list(affected)
        self._ended = affected[::-1]
        self._delay = delay
        self._starting: Cell | None = None
        self._timer: Any = None

    def begin(self) -> None:
        """Stop the last child that is still running. When none is left, set the timer for the start."""
        self.cancel_timer()  # two children may have ended at the same time
        while self._running:
            cell = self._running[-1]
            if cell in self._affected and not cell.incarnation_ended:
                self._timer = self._children.runtime.call_later(cell.options.shutdown, cell.cancel_turn)
                cell.end_for_restart()
                return
            self._running.pop()
        self._timer = self._children.runtime.call_later(self._delay, self._start_next)

    def child_ended(self, cell: Cell, exit_: Exit) -> bool:
        """Handle the end of a child's incarnation. Returns False if the child is not part of this restart."""
        if cell not in self._affected:
            return False
        stays_ended = cell.options.restart == "temporary" or (cell.closed and cell.options.restart != "permanent")
        if self._starting is cell:
            self._starting = None
            if not stays_ended:
                self._children.start_failed_again(cell, exit_)
                return True
            step = self._start_next
        else:
            self._children.report(cell, exit_, "it ended while its group was being stopped for a restart")
            step = self.begin
        if stays_ended:
            self._affected.discard(cell)
            self._children.finalize(cell, exit_)
        self._children.runtime.post(self._if_current, step)
        return True

    def _if_current(self, step: Any) -> None:
        if self._children.group_restart is self:
            step()

    def _start_next(self) -> None:
        while self._ended:
            cell = self._ended.pop()
            if cell in self._affected:
                self._starting = cell
                self._children.restart(cell)
                return
        self._children.group_restart_done()

    def child_started(self, cell: Cell) -> None:
        """Start the next child."""
        if self._starting is cell:
            self._starting = None
            self._affected.discard(cell)
            self._children.runtime.post(self._if_current, self._start_next)

    def forget(self, cell: Cell) -> None:
        """Forget a child that another caller has stopped or killed."""
        if self._starting is not cell:
            self._affected.discard(cell)

    def cancel_timer(self) -> None:
        """Cancel the timer, because the supervisor is closing or the next step is due now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


AutoShutdown = Literal["never", "any_significant", "all_significant"]

MEMORY_CHECK_SECONDS = 1.0


class SupervisionPolicy(msgspec.Struct, frozen=True):
    """How the children of an actor are supervised.

    The defaults apply to the children of a plainly spawned actor, and to the top of a system without options.
    """

    strategy: Strategy = one_for_one
    limit: RestartLimit = RestartLimit()
    backoff: Any = Backoff()
    auto_shutdown: AutoShutdown = "never"
    max_children: float = float("inf")
    stop_together: bool = False
    budget: Budget | None = None


DEFAULT_POLICY = SupervisionPolicy()


class ChildState:
    """The restart data of a child that has crashed at least once."""

    __slots__ = ("exit", "history", "restarts", "since", "timer")

    def __init__(self) -> None:
        self.history: tuple[float, ...] = ()  # used by a child with its own restart limit
        self.restarts = 0
        self.since: float | None = None
        self.timer: Any = None
        self.exit: Exit | None = None


class Children:
    """The children of one cell; implements `actors.ChildSupervisor`."""

    __slots__ = (
        "_budget_counter",
        "_budget_timers",
        "_cells",
        "_closing",
        "_deferred",
        "_history",
        "_policy",
        "_states",
        "_stopping",
        "_stopping_all",
        "_to_stop",
        "group_restart",
        "owner",
        "runtime",
    )

    def __init__(self, runtime: ActorRuntime, owner: Cell, policy: SupervisionPolicy) -> None:
        self.runtime = runtime
        self.owner: Cell | None = owner
        self._policy = policy
        self._cells: dict[Cell, None] = {}
        self._states: dict[Cell, ChildState] = {}
        self._history: tuple[float, ...] = ()
        self.group_restart: GroupRestart | None = None
        self._deferred: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._closing = False
        self._stopping: Cell | None = None
        self._to_stop: list[Cell] = []
        self._stopping_all = False
        self._budget_timers: list[Any] = []
        self._budget_counter: BudgetCounter | None = None
        if policy.budget is not None:
            self._open_budget(policy.budget)

    @property
    def empty(self) -> bool:
        return not self._cells

    def cells(self) -> Iterable[Cell]:
        return tuple(self._cells)

    def new_children(self, owner: Cell) -> ChildSupervisor:
        return self.runtime.new_children(owner)

    # Starting.

    def start_child(self, spec: ChildSpec[Any], *, awaited_start: bool = False) -> Cell:
        if len(self._cells) >= self._policy.max_children:
            path = "the supervisor" if self.owner is None else self.owner.path
            raise MaxChildren(f"{path} has {len(self._cells)} children, as many as max_children allows")
        cell = self.runtime.new_cell(self, spec)
        cell.awaited_start = awaited_start
        self._cells[cell] = None
        cell.begin(SPAWNED)
        return cell

    def child_started(self, cell: Cell) -> None:
        state = self._states.get(cell)
        if state is not None:
            state.since = self.runtime.backend.time()
        if self.group_restart is not None:
            self.group_restart.child_started(cell)

    # Ends of children.

    def child_ended(self, cell: Cell, exit_: Exit) -> None:
        if self._closing:
            self.finalize(cell, exit_)
        elif self.group_restart is not None and self.group_restart.child_ended(cell, exit_):
            pass
        elif self._wants_restart(cell, exit_):
            self.runtime.post(self._decide, cell, exit_)
        else:
            self.finalize(cell, exit_)

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

    def finalize(self, cell: Cell, exit_: Exit) -> None:
        """End a child for good."""
        state = self._states.get(cell)
        if state is not None:
            self._forget_timer(cell)
            self._states.pop(cell, None)
        cell.finalize(exit_)
        reported = state is not None and state.exit is exit_
        if isinstance(exit_, Crashed) and not (reported or self._start_failed(cell)):
            why = ", for its supervisor is stopping" if self._closing else ""
            self.report(cell, exit_, f"it is not restarted{why}")

    def _forget_timer(self, cell: Cell) -> None:
        state = self._states.get(cell)
        if state is not None and state.timer is not None:
            state.timer.cancel()
            state.timer = None
            self.runtime.restart_finished()

    def child_finalized(self, cell: Cell) -> None:
        self._cells.pop(cell, None)
        if self._closing:
            if self._stopping is cell:
                self._stopping = None
            if not self._stopping_all or not self._cells:
                self.runtime.post(self._stop_next)
        elif cell.options.significant and self.owner is not None:
            rule = self._policy.auto_shutdown
            left = any(other.options.significant for other in self._cells)
            if rule == "any_significant" or (rule == "all_significant" and not left):
                self.runtime.post(self.owner.stop)

    def abandon_restart(self, cell: Cell, exit_: Exit) -> None:
        if self.group_restart is not None:
            self.group_restart.forget(cell)
        self.finalize(cell, exit_)

    # Decisions.

    def _decide(self, cell: Cell, exit_: Exit) -> None:
        if cell not in self._cells or not cell.incarnation_ended:
            return
        if self._closing:
            self.finalize(cell, exit_)
            return
        if self.group_restart is not None:
            self._deferred.append((self._decide, (cell, exit_)))
            return
        now = self.runtime.backend.time()
        state = self._states.get(cell)
        if state is None:
            state = self._states[cell] = ChildState()
        state.exit = exit_
        try:
            self._count_or_restart(cell, exit_, state, now)
        except BaseException as error:  # raised by a back-off, a limit or a strategy of the user
            self._policy_failed(cell, exit_, error)

    def _count_or_restart(self, cell: Cell, exit_: Exit, state: ChildState, now: float) -> None:
        backoff: BackoffPolicy = cell.options.backoff or self._policy.backoff
        if state.since is not None and now - state.since >= backoff.healthy_after:
            state.restarts = 0
        counted = not (cell.options.redeliver > 1 and isinstance(exit_, Crashed) and exit_.message is not None)
        limit: RestartLimitPolicy = self._policy.limit
        own = cell.options.restart_limit
        if counted:
            if own is not None:
                state.history, allowed = own.count(state.history, now)
            else:
                self._history, allowed = limit.count(self._history, now)
            if not allowed:
                self._limit_exceeded(cell, exit_)
                return
        limit, used = (limit, self._history) if own is None else (own, state.history)
        delay = backoff.delay(state.restarts, random.random())  # noqa: S311 - jitter, not a secret
        check_seconds(f"the delay of {safe_repr(backoff)}", delay, 0.0, finite=True)
        affected = self._affected(cell)
        state.restarts += 1
        self.runtime.restarting += 1
        if len(affected) == 1:
            state.timer = self.runtime.call_later(delay, self._restart, cell)
        else:
            for other in affected:
                self._forget_timer(other)  # replaced by the group restart
            self.group_restart = GroupRestart(self, affected, delay)
            self.group_restart.begin()
        others = f", together with {len(affected) - 1} others" if len(affected) > 1 else ""
        self.report(
            cell,
            exit_,
            f"restart in {delay:.2f} s{others}: number {state.restarts} since it was last healthy; "
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
        chosen = set(self._policy.strategy(list(self._cells), cell))
        left = {other for other in self._cells if other.incarnation_ended and not self._restart_is_due(other)}
        return [other for other in self._cells if other in chosen or other in left]

    def _restart_is_due(self, cell: Cell) -> bool:
        state = self._states.get(cell)
        return state is not None and state.timer is not None

    def _restart(self, cell: Cell) -> None:
        state = self._states[cell]
        state.timer = None
        self.runtime.restart_finished()
        self.restart(cell)

    def restart(self, cell: Cell) -> None:
        """Start the next incarnation of a child."""
        state = self._states.get(cell)
        exit_ = ShutDown() if state is None or state.exit is None else state.exit
        cell.restarts = 1 if state is None else state.restarts
        cell.restart(WasRestarted(exit_, cell.restarts))

    def report(self, cell: Cell, exit_: Exit, decision: str) -> None:
        """Log a crash and the decision."""
        if isinstance(exit_, Crashed):
            report_crash(cell, exit_, self, decision)

    def group_restart_done(self) -> None:
        """End the group restart, complete or abandoned, and resume deferred decisions."""
        self.group_restart = None
        self.runtime.restart_finished()
        deferred, self._deferred = self._deferred, deque()
        for decision, args in deferred:
            self.runtime.post(decision, *args)

    def restart_child(self, cell: Cell) -> None:
        """Restart one child on request. This does not count as a crash."""
        if self.group_restart is not None:
            self._deferred.append((self.restart_child, (cell,)))
        elif cell in self._cells and not self._closing and not self._restart_is_due(cell):
            self.runtime.restarting += 1
            self.group_restart = GroupRestart(self, [cell], 0.0)
            self.group_restart.begin()

    def start_failed_again(self, cell: Cell, exit_: Exit) -> None:
        """Abandon the group restart because a child failed to start, and count that as a crash of the child."""
        self.group_restart_done()
        self.runtime.post(self._decide, cell, exit_)

    def _limit_exceeded(self, cell: Cell, exit_: Exit) -> None:
        own = cell.options.restart_limit
        if own is not None:
            advice = "its option restart_limit changes that"
            more = f"more than {own.max_restarts} restarts within {own.within:g} s"
            self.report(cell, exit_, f"it is not restarted, and its supervisor continues: {more} ({advice})")
            self.finalize(cell, exit_)
            return
        limit = self._policy.limit
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
        self._budget_counter = BudgetCounter(budget)
        if budget.wall < float("inf"):
            self._budget_timers.append(self.runtime.call_later(budget.wall, self._out_of_time, budget.wall))
        if budget.memory < float("inf"):
            self._budget_timers.append(self.runtime.call_later(MEMORY_CHECK_SECONDS, self._check_memory, budget.memory))

    def _out_of_time(self, wall: float) -> None:
        self.escalate(BudgetExceeded(f"lived for {wall:g} s, as long as its budget allows"))

    def _check_memory(self, limit: float) -> None:
        used = resident_memory()
        if used > limit:
            self.escalate(BudgetExceeded(f"the process uses {used} bytes of at most {limit:g}"))
        elif not self._closing:
            self._budget_timers = [self.runtime.call_later(MEMORY_CHECK_SECONDS, self._check_memory, limit)]

    def spent(self) -> dict[str, float]:
        return {} if self._budget_counter is None else self._budget_counter.spent(self.runtime.backend.time())

    def spend(self, amounts: dict[str, float]) -> None:
        children: Any = self
        while children is not None:
            counter = getattr(children, "_budget_counter", None)
            if counter is not None:
                error = counter.charge(amounts, self.runtime.backend.time())
                if error is not None:
                    children.escalate(error)
            children = None if children.owner is None else children.owner.supervisor

    # Stopping.

    def _close(self) -> None:
        self._closing = True
        self._to_stop = list(self._cells)  # consumed from the end; some children may end by themselves meanwhile
        for timer in self._budget_timers:
            timer.cancel()
        if self.group_restart is not None:
            self.group_restart.cancel_timer()
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
        if cell.incarnation_ended:
            self.abandon_restart(cell, Killed(why))
        else:
            cell.kill(why)

    def _stop_next(self) -> None:
        if self._policy.stop_together:
            if not self._stopping_all:
                self._stopping_all = True
                for cell in reversed(tuple(self._cells)):
                    self._stop(cell)
        else:
            self._stopping_all = True
            while self._to_stop and self._stopping is None:
                cell = self._to_stop.pop()
                if cell in self._cells:
                    self._stopping = cell
                    self._stop(cell)
            self._stopping_all = False
        if not self._cells and self.owner is not None:
            self.runtime.post(self.owner.part_ended)

    def _stop(self, cell: Cell) -> None:
        if cell.incarnation_ended:
            self.finalize(cell, cell.exit or ShutDown())
        else:
            cell.shut_down()
        if not cell.dead and cell.options.shutdown < float("inf"):  # most actors are idle and have already ended
            timer = self.runtime.call_later(cell.options.shutdown, self._stop_timed_out, cell)
            cell.ensure_extras().call_when_ended(lambda _: timer.cancel())

    def _stop_timed_out(self, cell: Cell) -> None:
        if cell.dead:
            return
        if cell.waits_for_children:
            self.runtime.call_later(
                cell.options.shutdown, self._stop_timed_out, cell
            )  # its children have their own deadlines
        else:
            cell.kill(f"it did not stop within {cell.options.shutdown:g} s (shutdown)")


SPAWNED = Spawned()
