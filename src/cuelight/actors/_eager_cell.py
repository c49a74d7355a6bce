"""Cells for actors on asyncio with `async def` handlers that have neither hooks nor an overridden `run`.

The dispatcher, or the ask of an idle actor, runs a handler up to its first wait. From there a task continues it. So an
actor whose handlers do not have to wait never has a task. An actor that has a task keeps it as long as a `TaskCell`
does.

Invariants:
1. While a handler is run, the current task is the one that would continue it.
2. A handler that waits belongs to its task. So do the messages behind it, until that task has nothing more to do.
"""

# Messages, factories and users' exceptions are Any here: no annotation could say more.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final

from cuelight.actors._cell import END_FOR_RESTART, FAIL, KILL, Cell
from cuelight.actors._handler_task import HandlerTask, resume
from cuelight.actors._messages import Exit, Killed, Start
from cuelight.actors._plain_cell import BUDGET_RANGE, INLINE, SPARE_QUEUES, TurnCell
from cuelight.actors._reply import (
    DONE,
    QUEUED,
    RUNNING,
    BegunAsk,
    CompletedForCancelled,
    PendingAsk,
    Reply,
    background_work,
    current_cell,
)
from cuelight.actors._task_cell import TaskCell
from cuelight.mailbox import swap_current_task

if TYPE_CHECKING:
    from collections.abc import Callable

    from cuelight.actors._cell import ChildSupervisor
    from cuelight.actors._handlers import HandlerTable
    from cuelight.actors._spec import ChildSpec

NESTED_STEPS = 8
"""The number of handlers that run nested in each other's asks, up to their first wait. Further requests queue."""

ENDING_SIGNALS: Final = KILL | FAIL | END_FOR_RESTART
"""Signals that end an incarnation before its next message."""

WAITING: Final = object()

CANCELLED_OUTSIDE: Final = "its task was cancelled from outside"


async def _awaiting(awaitable: Any) -> Any:
    """Wrap an awaitable that is not a native coroutine."""
    return await awaitable


class EagerCell(TurnCell, TaskCell):
    """An actor whose handlers run in the code that delivers their messages, until they have to wait."""

    __slots__ = ("worker",)

    def __init__(self, supervisor: ChildSupervisor, spec: ChildSpec[Any], table: HandlerTable) -> None:
        TaskCell.__init__(self, supervisor, spec, table)
        self.worker: HandlerTask | None = None  # during a step, and as long as it is kept for this actor

    def begin(self, why: Start) -> None:
        try:
            self.construct()
        except BaseException as error:
            self.start_failed(error)
            return
        self.has_started()
        self.asleep = INLINE
        if self.items or self.attention:
            self.on_mail()

    # Steps: the code that runs before the first wait.

    def turn(self) -> bool:
        """Handle some messages, up to the first wait, in the cell's context. Return whether there are more."""
        if not self.handled:
            current_cell.set(self)
        runtime = self.runtime
        kept, spares, loop = self.worker, runtime.spare_tasks, runtime.backend.loop
        self.worker = worker = kept or (spares.pop() if spares else HandlerTask(runtime))
        self.task = task = worker.task
        self.scope = self.turn_scope = worker.scope
        runtime.nested_steps = 1
        runtime.inline = runtime.turn_asks
        outcome: Exit | bool
        coroutine = self._serve_mail()
        before = swap_current_task(loop, task)
        try:
            awaited = coroutine.send(None)
        except StopIteration as end:
            outcome = end.value
        except BaseException as error:  # the handler has raised its own cancellation
            outcome = self._was_cancelled(error, caught=self.cancelling)
        else:
            self._hand_over(worker, coroutine, awaited)
            return False
        finally:
            swap_current_task(loop, before)
            runtime.turn_asks, runtime.inline, runtime.nested_steps = runtime.inline, -1, 0
        if self.cancelling or task.cancelling() or worker.scopes.cancel_scope is not worker.scope:
            if self._discard(worker):
                outcome = self._killed_exit(outcome)
        elif kept is None:
            self.worker = self.task = self.scope = self.turn_scope = None
            spares.append(worker)
        if outcome is False and kept is None:
            return False
        return self._end_turn(outcome)

    def _replace_task(self, worker: HandlerTask, exit_: Exit | None) -> Exit | None:
        """Replace a task that a handler made unusable without waiting. Return the exit of the incarnation, if any."""
        if self._discard(worker):
            return exit_ or Killed(CANCELLED_OUTSIDE)
        return exit_ or (self.process_signals() if self.signals & ENDING_SIGNALS else None)

    def _discard(self, worker: HandlerTask) -> bool:
        """End a task that cannot be used again. Return whether the handler has cancelled it and then did not wait."""
        cancelling, self.cancelling = self.cancelling, False
        self._forget_task()
        worker.end()
        return not cancelling and worker.task.cancelling() > 0

    def _forget_task(self) -> None:
        self.worker = self.task = self.scope = self.turn_scope = self.coroutine = None

    def _killed_exit(self, outcome: Exit | bool) -> Exit | bool:
        """Return the exit after the task was cancelled and had no wait at which the cancellation could arrive."""
        if outcome is False:  # it counts as asleep
            self.asleep = 0
            self.runtime.busy_count += 1
        return outcome if isinstance(outcome, Exit) else Killed(CANCELLED_OUTSIDE)

    def _end_turn(self, outcome: Exit | bool) -> bool:
        """Return whether there are more messages to handle."""
        if isinstance(outcome, Exit):
            self.runtime.mark_idle()
            self.end_incarnation(outcome)
            return False
        if not outcome and self.worker is not None:
            self.runtime.keep_idle_task(self)
        return outcome

    def ask_now(self, message: Any, call: Callable[..., Any]) -> Reply[Any] | None:
        runtime = self.runtime
        if runtime.nested_steps >= NESTED_STEPS:
            return None
        kept, spares, loop = self.worker, runtime.spare_tasks, runtime.backend.loop
        self.worker = worker = kept or (spares.pop() if spares else HandlerTask(runtime))
        self.task = task = worker.task
        self.scope = self.turn_scope = worker.scope
        timeout = runtime.inline_timeout
        self.running = asked = BegunAsk(message, self, runtime.ask_timeout if timeout is None else timeout)
        asker = current_cell.get()
        if asker is not None:
            asked.due = asker.deadline()
        runtime.nested_steps += 1
        turning, runtime.turning = runtime.turning, self
        before = swap_current_task(loop, task)
        try:
            exit_ = self._begin(asked, call)
        finally:
            swap_current_task(loop, before)
            runtime.turning = turning
            runtime.nested_steps -= 1
        if exit_ is not WAITING:
            self.running = None
            self.handled += 1
            if self.cancelling or task.cancelling() or worker.scopes.cancel_scope is not worker.scope:
                exit_ = self._replace_task(worker, exit_)
            elif kept is None:
                self.worker = self.task = self.scope = self.turn_scope = None
                spares.append(worker)
            if exit_:
                self.end_incarnation(exit_)
            elif self.items or self.attention:
                self.on_mail()
            else:
                self.items = None
                self.asleep = INLINE
        asked.unawaited = True
        if asked.state != DONE:
            sender = background_work.get() if asker is None else asker
            if sender is not None:
                sender.has_sent(asked)
        elif before is not None and getattr(before, "_must_cancel", False):
            asked.mark_awaited()
            return CompletedForCancelled(None if asked.error is not None else asked.value, asked.error)
        return asked

    def _begin(self, asked: BegunAsk, call: Callable[..., Any]) -> Any:
        """Run the handler of a request up to its first wait.

        Return the exit of the incarnation, a false value if it does not end, or `WAITING` if the handler has to wait.
        """
        if not self.handled:
            self.context.run(current_cell.set, self)
        message = asked.message
        asked.state = RUNNING
        self.asleep = 0
        handler = None
        try:
            if type(message) in self.table.async_calls:
                handler = call(self.actor, message)
                if type(handler) is not CoroutineType:
                    handler = _awaiting(handler)
                awaited = self.context.run(handler.send, None)
                self._wait_for(asked, handler, awaited)
                return WAITING
            value = self.context.run(call, self.actor, message)
        except StopIteration as end:
            if handler is None:
                return self.failed(end, asked)
            value = end.value
        except BaseException as error:
            if self._is_ours(error):
                outcome = self._was_cancelled(error, caught=self.cancelling)
                return None if outcome is True else outcome
            return self.failed(error, asked)
        if self.running is asked:
            if asked.timed:
                asked.succeed(value)
            else:
                asked.value = value
                asked.state = DONE
        return None

    # Continuing in a task.

    def _wait_for(self, asked: PendingAsk, handler: Any, awaited: Any) -> None:
        """Let a task continue the handler of a request that began inside its ask and has to wait."""
        self.runtime.busy_count += 1
        coroutine = self._finish(asked, handler, awaited)
        worker = self.worker
        assert worker is not None  # noqa: S101 - it has one in a step
        self._hand_over(worker, coroutine, self.context.run(coroutine.send, None))

    def _hand_over(self, worker: HandlerTask, coroutine: Any, awaited: Any) -> None:
        self.coroutine = worker.coroutine
        self.runtime.tasks[self] = None
        asked = self.running
        if isinstance(asked, PendingAsk):
            asked.start_clock()
        worker.continue_handler(self, coroutine, awaited)

    async def _finish(self, asked: PendingAsk, handler: Any, awaited: Any) -> Exit | bool:
        """Continue with a request, then with the other messages."""
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
        return self._process_ending() if self.cancelling else await self._serve_mail()

    async def _serve_mail(self) -> Exit | bool:  # noqa: C901, PLR0912 - a call for each message costs as much as one
        """Handle some messages. Return the exit of the incarnation, or whether there is more to do."""
        actor, async_calls, plain_calls = self.actor, self.table.async_calls, self.table.plain_calls
        for _ in BUDGET_RANGE:
            if self.attention:
                exit_ = self.process_signals()
                if exit_ is not None:
                    self.running = None
                    return exit_
            items = self.items
            if not items:
                self.running = self.items = None
                self.asleep = 1 if self.attention else INLINE  # new messages must not overtake waiting senders
                runtime = self.runtime
                if items is not None and len(runtime.spare_queues) < SPARE_QUEUES:
                    runtime.spare_queues.append(items)
                runtime.busy_count -= 1
                if runtime._idle_waiters:
                    runtime.wake_if_idle()
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
                    kind is PendingAsk
                    and item.state == QUEUED
                    and (call := async_calls.get(type(item.message))) is not None
                ):
                    item.state = RUNNING
                    if self.coroutine is not None and not item.timed:  # otherwise the clock starts at the first wait
                        item.start_clock()
                    value = await call(actor, item.message)
                    if self.running is item:
                        item.succeed(value)
                else:
                    await self._handle_uncommon(actor, item)
            except BaseException as error:
                if self._is_ours(error):
                    raise
                self.running = None
                if (exit_ := self.failed(error, item)) is not None:
                    return exit_
            self.handled += 1
            if self.cancelling:
                break
        self.running = None
        return self._process_ending() if self.cancelling else True

    def _process_ending(self) -> Exit | bool:
        """Process at once the signal that has cancelled a handler, so that the actor does not seem idle."""
        return (self.process_signals() if self.signals & ENDING_SIGNALS else None) or True

    def resumed(self, outcome: Exit | bool) -> None:
        """Take back the task after it has finished its work. It is kept for a while."""
        self.coroutine = None
        self.runtime.tasks.pop(self, None)
        if self._end_turn(outcome):
            self.runtime.schedule_again(self)

    def task_ended(self, outcome: Exit | bool, failure: BaseException | None, *, caught: bool) -> None:
        """Handle the end of the task, which was cancelled or cannot be used again for another reason."""
        self.runtime.tasks.pop(self, None)
        if failure is not None:
            outcome = self._was_cancelled(failure, caught=caught)
        elif self.task._must_cancel and not self.cancelling:
            outcome = self._killed_exit(outcome)
        self.cancelling = False
        self._forget_task()
        if self._end_turn(outcome):
            self.runtime.schedule_again(self)

    def _was_cancelled(self, failure: BaseException, *, caught: bool) -> Exit | bool:
        """Handle the cancellation of the running handler."""
        item, self.running = self.running, None
        if self.sent:
            self.withdraw_asks(interrupted=True)
        if caught:
            self.handle_interrupted(item, self.why_cancelled)
            return self._process_ending()
        if isinstance(failure, self.runtime.backend.cancelled):
            self.handle_interrupted(item, CANCELLED_OUTSIDE)
            return Killed(CANCELLED_OUTSIDE)
        return self.handle_crash(self.as_failure(failure), item)

    def task_lost(self, worker: HandlerTask) -> None:
        """Handle the end of the kept task, which was no longer needed or was cancelled."""
        if self.worker is worker:
            self._forget_task()
            extras = self.ensure_extras()
            if extras.exit_forced is None:
                extras.exit_forced = Killed(CANCELLED_OUTSIDE)
            self.signal(KILL)

    def end_idle_task(self) -> None:
        worker = self.worker
        if worker is not None:
            self._forget_task()
            worker.end()

    @property
    def idle(self) -> bool:
        return bool(self.asleep and not self.items and not self.attention)

    def deadline(self) -> float:
        running = self.running
        if not isinstance(running, PendingAsk):
            return 0.0
        if not running.timed:
            running.start_clock()
        return running.due

    # Ending.

    def end_incarnation(self, exit_: Exit) -> None:
        worker = self.worker
        if worker is not None:
            self.runtime.forget_idle_task(self)
            self._forget_task()
            worker.end()
        Cell.end_incarnation(self, exit_)
