"""Cells of actors with `async def` handlers and neither hooks nor a `run` of their own, on asyncio.

The dispatcher, or whoever asks an idle one, runs a handler up to its first wait; a task goes on with it from there. So an
actor whose handlers do not have to wait never has a task. One that has got a task keeps it as long as a `TaskCell` does.

Invariants:
1. While a handler is run, the current task is the one that would go on with it.
2. A handler that waits belongs to its task, and so does the mail behind it until that task has nothing to do.
"""

# Messages, factories and what users raise are Any here: no annotation could say more.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cuelight.actors._cell import KILL, Cell
from cuelight.actors._exits import Exit, Killed, Start
from cuelight.actors._handler_task import HandlerTask, resume
from cuelight.actors._plain_cell import BUDGET_RANGE, INLINE
from cuelight.actors._reply import (
    DONE,
    QUEUED,
    RUNNING,
    AnsweredLate,
    Asked,
    Begun,
    Reply,
    background_work,
    handling,
)
from cuelight.actors._task_cell import TaskCell
from cuelight.mailbox import swap_current_task

if TYPE_CHECKING:
    from collections.abc import Callable

    from cuelight.actors._family import Family
    from cuelight.actors._handlers import HandlerTable
    from cuelight.actors._spec import ChildSpec

__all__ = ["EagerCell"]

NESTED_STEPS = 8
"""Handlers that are run inside each other's asks, up to their first wait, before the next request queues."""

CANCELLED = "its task was cancelled from outside"


class EagerCell(TaskCell):
    """An actor whose handlers are run where its mail comes from, until they have to wait."""

    __slots__ = ("worker",)

    def __init__(self, keeper: Family, spec: ChildSpec[Any], table: HandlerTable) -> None:
        TaskCell.__init__(self, keeper, spec, table)
        self.worker: HandlerTask | None = None  # during a step, and as long as it is kept for this actor

    def begin(self, why: Start) -> None:
        try:
            self.construct()
        except BaseException as error:
            self.has_not_started(error)
            return
        self.has_started()
        self.asleep = INLINE
        if self.items or self.attention:
            self.woken()

    def woken(self) -> None:
        self.asleep = 0
        self.runtime.schedule(self)

    # Steps: what runs before the first wait.

    def _enter(self, worker: HandlerTask) -> None:
        self.worker, self.task = worker, worker.task
        self.scope = self.turn_scope = worker.scope
        self.runtime.nested_steps += 1

    def _leave(self, worker: HandlerTask, *, kept: bool) -> bool:
        """A step has ended without a wait. Returns whether the handler has cancelled its own task."""
        runtime = self.runtime
        runtime.nested_steps -= 1
        if worker.clean and not self.cut:
            if not kept:
                self.worker = self.task = self.scope = self.turn_scope = None
                runtime.spare_tasks.append(worker)
            return False
        cut, self.cut = self.cut, False
        self._let_go()
        worker.end()
        return not cut and worker.task.cancelling() > 0

    def _let_go(self) -> None:
        """Have no task any more."""
        self.worker = self.task = self.scope = self.turn_scope = self.coroutine = None

    def turn(self) -> bool:
        """Handle some mail, up to the first wait. Returns whether there is more. It runs in the cell's context."""
        if not self.handled:
            handling.set(self)
        runtime = self.runtime
        kept = self.worker
        worker = kept or runtime.new_task()
        self._enter(worker)
        runtime.inline = runtime.turn_asks
        loop = runtime.backend.loop
        coroutine = self._serve_mail()
        outcome: Exit | bool
        before = swap_current_task(loop, worker.task)
        try:
            awaited = coroutine.send(None)
        except StopIteration as end:
            outcome = end.value
        except BaseException as error:  # the handler has raised the cancellation that it had called for itself
            outcome = self._was_cancelled(error, caught=self.cut)
        else:
            runtime.nested_steps -= 1
            self._hand_over(worker, coroutine, awaited)
            return False
        finally:
            swap_current_task(loop, before)
            runtime.turn_asks, runtime.inline = runtime.inline, 0
        if self._leave(worker, kept=kept is not None):
            outcome = self._has_lost(outcome)
        return self._turn_over(outcome)

    def _has_lost(self, outcome: Exit | bool) -> Exit | bool:
        """Its task was cancelled and had nothing to wait for, where that could have hit it."""
        if outcome is False:  # it counts as asleep
            self.asleep = 0
            self.runtime.awake += 1
        return outcome if isinstance(outcome, Exit) else Killed(CANCELLED)

    def _turn_over(self, outcome: Exit | bool) -> bool:
        """Returns whether there is more mail to handle."""
        if isinstance(outcome, Exit):
            self.runtime.dozed()
            self.incarnation_over(outcome)
            return False
        if not outcome and self.worker is not None:
            self.runtime.keep_warm(self)
        return outcome

    def ask_now(self, message: Any, call: Callable[..., Any]) -> Reply[Any] | None:
        runtime = self.runtime
        if runtime.nested_steps >= NESTED_STEPS:
            return None
        asked = Begun(message, self, runtime.inline_patience())
        asker = handling.get()
        if asker is not None:
            asked.due = asker.deadline()
        if not self.handled:
            self.context.run(handling.set, self)
        turning, runtime.turning = runtime.turning, self
        loop = runtime.backend.loop
        kept = self.worker
        worker = kept or runtime.new_task()
        self._enter(worker)
        before = swap_current_task(loop, worker.task)
        try:
            waits, exit_ = self._begin(asked, worker, call)
        finally:
            swap_current_task(loop, before)
            runtime.turning = turning
        if not waits:
            self._step_over(worker, exit_, kept=kept is not None)
        if asked.state != DONE:  # else it is as if it had been answered by a `def` handler
            asked.unheard = True
            sender = background_work.get() if asker is None else asker
            if sender is not None:
                sender.has_sent(asked)
        elif before is not None and before._must_cancel:
            return AnsweredLate(asked.value, asked.error)
        return asked

    def _begin(self, asked: Begun, worker: HandlerTask, call: Callable[..., Any]) -> tuple[bool, Exit | bool | None]:
        """Run the handler of a request up to its first wait. Returns whether it waits, and how the incarnation ends."""
        message = asked.message
        asked.state = RUNNING
        self.asleep = 0
        self.running = asked
        handler = None
        try:
            if type(message) in self.table.async_calls:
                handler = call(self.actor, message)
                awaited = self.context.run(handler.send, None)
                self._wait_for(asked, worker, handler, awaited)
                return True, None
            self._answer(asked, self.context.run(call, self.actor, message))
        except StopIteration as end:
            if handler is None:
                return False, self.failed(end, asked)
            self._answer(asked, end.value)
        except BaseException as error:
            if self._is_ours(error):
                return False, self._was_cancelled(error, caught=self.cut)
            return False, self.failed(error, asked)
        return False, None

    def _answer(self, asked: Asked, value: Any) -> None:
        if self.running is asked:
            if asked.timed:
                asked.succeed(value)
            else:
                asked.value = value
                asked.state = DONE

    def _step_over(self, worker: HandlerTask, exit_: Exit | bool | None, *, kept: bool) -> None:
        self.running = None
        self.handled += 1
        if self._leave(worker, kept=kept) and not isinstance(exit_, Exit):
            exit_ = Killed(CANCELLED)
        if isinstance(exit_, Exit):
            self.incarnation_over(exit_)
        elif self.items or self.attention:
            self.woken()
        else:
            self.items = None
            self.asleep = INLINE

    # Going on in a task.

    def _wait_for(self, asked: Asked, worker: HandlerTask, handler: Any, awaited: Any) -> None:
        """The handler of a request that was begun inside its ask has to wait."""
        runtime = self.runtime
        runtime.nested_steps -= 1
        runtime.awake += 1
        coroutine = self._finish(asked, handler, awaited)
        self._hand_over(worker, coroutine, self.context.run(coroutine.send, None))

    def _hand_over(self, worker: HandlerTask, coroutine: Any, awaited: Any) -> None:
        self.coroutine = worker.coroutine
        self.runtime.tasks[self] = None
        asked = self.running
        if isinstance(asked, Asked):
            asked.start_clock()
        worker.go_on(self, coroutine, awaited)

    async def _finish(self, asked: Asked, handler: Any, awaited: Any) -> Exit | bool:
        """Go on with a request, then with the mail."""
        try:
            value = await resume(handler, awaited)
            if self.running is asked:
                asked.succeed(value)
        except BaseException as error:
            if self._is_ours(error):
                raise
            self.running = None
            if (exit_ := self.failed(error, asked)) is not None:
                return exit_
        self.handled += 1
        return True if self.cut else await self._serve_mail()

    async def _serve_mail(self) -> Exit | bool:  # noqa: C901, PLR0912 - a call for each message costs as much as one
        """Handle some mail. Returns how the incarnation ends, or whether there is more to do."""
        actor, async_calls, plain_calls = self.actor, self.table.async_calls, self.table.plain_calls
        for _ in BUDGET_RANGE:
            if self.attention:
                exit_ = self.attend()
                if exit_ is not None:
                    self.running = None
                    return exit_
            items = self.items
            if not items:
                self.running = self.items = None
                self.asleep = 1 if self.attention else INLINE  # nobody overtakes those that wait in line
                self.runtime.dozed()
                return False
            self.running = item = items.popleft()
            kind: type[Any] = type(item)
            call = async_calls.get(kind)
            try:
                if call is not None:
                    await call(actor, item)
                elif (call := plain_calls.get(kind)) is not None:
                    call(actor, item)
                elif (
                    kind is Asked and item.state == QUEUED and (call := async_calls.get(type(item.message))) is not None
                ):
                    item.state = RUNNING
                    if self.coroutine is not None and not item.timed:  # else that is done at the first wait
                        item.start_clock()
                    value = await call(actor, item.message)
                    if self.running is item:
                        item.succeed(value)
                else:
                    await self._handle_rest(actor, item)
            except BaseException as error:
                if self._is_ours(error):
                    raise
                self.running = None
                if (exit_ := self.failed(error, item)) is not None:
                    return exit_
            self.handled += 1
            if self.cut:
                break
        self.running = None
        return True

    def resumed(self, outcome: Exit | bool) -> None:
        """Its task has done what it had to; it is kept for a while."""
        self.coroutine = None
        self.runtime.tasks.pop(self, None)
        if self._turn_over(outcome):
            self.runtime.schedule_again(self)

    def task_over(self, outcome: Exit | bool, failure: BaseException | None, *, caught: bool) -> None:
        """Its task was cancelled, or cannot be used again for another reason."""
        self.runtime.tasks.pop(self, None)
        if failure is not None:
            outcome = self._was_cancelled(failure, caught=caught)
        elif self.task._must_cancel and not self.cut:
            outcome = self._has_lost(outcome)
        self.cut = False
        self._let_go()
        if self._turn_over(outcome):
            self.runtime.schedule_again(self)

    def _was_cancelled(self, failure: BaseException, *, caught: bool) -> Exit | bool:
        """The handler that runs was cut off."""
        item, self.running = self.running, None
        if self.sent:
            self.withdraw_asks(cut_off=True)
        if caught:
            self.cut_off(item, self.why_cut)
            return True
        if isinstance(failure, self.runtime.backend.cancelled):
            self.cut_off(item, CANCELLED)
            return Killed(CANCELLED)
        return self.crash(self.as_failure(failure), item)

    def lost_task(self, worker: HandlerTask) -> None:
        """The task that was kept for it has ended: it was not needed any more, or was cancelled."""
        if self.worker is worker:
            self._let_go()
            bonds = self.bonds_made()
            if bonds.exit_forced is None:
                bonds.exit_forced = Killed(CANCELLED)
            self.signal(KILL)

    def retire(self) -> None:
        worker = self.worker
        if worker is not None:
            self._let_go()
            worker.end()

    @property
    def idle(self) -> bool:
        return bool(self.asleep and not self.items and not self.attention)

    def deadline(self) -> float:
        running = self.running
        if not isinstance(running, Asked):
            return 0.0
        if not running.timed:
            running.start_clock()
        return running.due

    # Ending.

    def incarnation_over(self, exit_: Exit) -> None:
        worker = self.worker
        if worker is not None:
            self.runtime.forget_warm(self)
            self._let_go()
            worker.end()
        Cell.incarnation_over(self, exit_)
