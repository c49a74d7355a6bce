"""Cells of actors that can suspend. A task starts when messages arrive, stays idle for a while after them, and ends.

One cancel scope serves a whole busy period and is replaced only after it was cancelled. So the ability to cancel any
handler costs nothing per message.
"""

# Messages, factories and users' exceptions are Any here: no annotation could say more.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import inspect
import sys
from collections import deque
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

import anyio

from cuelight.actors._cell import DRAINING, END_FOR_RESTART, FAIL, KILL, LIVE, STARTING, STOPPING_HOOK, Cell
from cuelight.actors._messages import Crashed, Exit, Killed, Start, WasRestarted
from cuelight.actors._reply import DONE, QUEUED, RUNNING, SET_ASIDE, PendingAsk, StreamSlot, current_cell
from cuelight.errors import ChannelClosed, Interrupted, ReplyError, consists_of, control_error
from cuelight.mailbox import CLOSED, NOT_READY

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from cuelight.actors._cell import ChildSupervisor
    from cuelight.actors._handlers import HandlerTable
    from cuelight.actors._spec import ChildSpec
    from cuelight.mailbox import CaseWaiter, Waiter


BUDGET = 256
"""The number of messages that one actor handles before it lets other tasks run."""


class Wakeable(Protocol):
    """A sleeping task, or a select."""

    def wake(self) -> None:
        """Wake it, because a message has arrived."""
        ...


class TaskCell(Cell):
    """An actor with `async def` handlers or hooks, or an overridden `run`."""

    __slots__ = (
        "cancelling",
        "coroutine",
        "idle_too_long",
        "inbox",
        "scope",
        "task",
        "turn_scope",
        "waiter",
        "why_cancelled",
    )

    def __init__(self, supervisor: ChildSupervisor, spec: ChildSpec[Any], table: HandlerTable) -> None:
        Cell.__init__(self, supervisor, spec, table)
        self.coroutine: Coroutine[Any, Any, None] | None = None
        self.task: Any = None  # the task that runs the coroutine, once it has begun
        self.scope: anyio.CancelScope | None = None  # around the whole task
        self.turn_scope: anyio.CancelScope | None = None  # around the code that an interrupt cancels
        self.waiter: Wakeable | None = None
        self.cancelling = False
        self.why_cancelled = ""
        self.idle_too_long = False
        self.inbox: Inbox[Any] | None = None

    # Starting and waking.

    def begin(self, why: Start) -> None:
        if self.table.own_run or self.table.hooks or not isinstance(self.factory, type):
            self._start_task(self._main, why)
            return
        try:
            self.construct()
        except BaseException as error:
            self.start_failed(error)
            return
        self.has_started()
        self.asleep = 1
        if self.items or self.attention:
            self.on_mail()

    def _start_task(self, function: Any, *args: object) -> None:
        self.asleep = 0
        self.runtime.busy_count += 1
        self.coroutine = coroutine = function(*args)
        self.runtime.backend.spawn(lambda: coroutine, context=self.context, name=self.path)

    def on_mail(self) -> None:
        waiter = self.waiter
        if waiter is not None:
            self.asleep = 0
            self.runtime.busy_count += 1
            waiter.wake()
        elif self.scope is None:
            self._start_task(self._main, None)
        else:  # an overridden `run` that is not waiting at its inbox
            self.asleep = 0
            self.runtime.busy_count += 1

    # The task.

    async def _main(self, why: Start | None) -> None:
        current_cell.set(self)
        exit_: Exit | None
        self.task = self.runtime.backend.current_task()
        self.runtime.tasks[self] = None
        try:
            exit_ = await self._live(why)
        except BaseException as error:
            item, self.running = self.running, None
            if self._is_ours(error):
                exit_ = Killed("its task was cancelled from outside")
                self.handle_interrupted(item, "its task was cancelled from outside")
            else:
                exit_ = self.handle_crash(self.as_failure(error), item)
        self.scope = self.turn_scope = self.waiter = self.coroutine = self.task = None
        self.runtime.tasks.pop(self, None)
        if exit_ is not None:
            self.runtime.forget_idle_task(self)
            self.handle_interrupted(self.running, "the actor ended")
            self.running = None
            if not self.asleep:
                self.runtime.mark_idle()
            self.end_incarnation(exit_)

    async def _live(self, why: Start | None) -> Exit | None:
        """Serve until the incarnation is over. Return its exit, or None if there is nothing more to do."""
        if why is not None:
            exit_ = await self._start_incarnation(why)
            if exit_ is not None:
                return exit_
        if self.table.own_run:
            exit_ = None
            with anyio.CancelScope() as scope:
                self.scope = scope
                exit_ = await self._run_own()
            return exit_ or self.process_signals() or Killed(self.why_cancelled)
        while True:
            exit_ = None
            with anyio.CancelScope() as scope:
                self.scope = self.turn_scope = scope
                self.cancelling = False
                exit_ = await self._serve()
            if exit_ is not None or not self.cancelling:
                return exit_
            item, self.running = self.running, None
            if self.sent:
                self.withdraw_asks(interrupted=True)
            if scope.cancelled_caught:
                self.handle_interrupted(item, self.why_cancelled)
            else:  # the handler ended before the cancellation reached it
                self.handled += 1

    async def _start_incarnation(self, why: Start) -> Exit | None:
        try:
            self.cancelling = False
            with anyio.CancelScope() as scope:
                self.scope = scope
                if type(why) is WasRestarted and self.actor is not None:
                    await self._hook("restarting", why.after)
                started = self.construct().started(why)
                if inspect.isawaitable(started):
                    await started
        except BaseException as error:
            if self._is_ours(error):
                raise
            self.actor = None
            return Crashed(self.as_failure(error))
        if scope.cancelled_caught:
            self.actor = None
            return self.process_signals() or Killed(self.why_cancelled)
        self.has_started()
        return None

    async def _run_own(self) -> Exit | None:
        actor = self.actor
        assert actor is not None  # noqa: S101 - it has started
        self.asleep = 1  # it counts as busy only from the arrival of a message to the next empty receive
        self.runtime.mark_idle()
        try:
            if self.items:
                self.on_mail()
            await actor.run()
        except BaseException as error:
            if self._is_ours(error):
                raise
            # A closed mailbox tells a receive loop to stop, also a loop in a task group.
            if not (self.closed and control_error(error, ChannelClosed)):
                item, self.running = self.running, None
                return self.handle_crash(self.as_failure(error), item)
        item, self.running = self.running, None
        if isinstance(item, PendingAsk):
            self.handle_interrupted(item, "its run ended without a reply")
        return (self.process_signals() if self.attention else None) or self._stopped()

    async def _serve(self) -> Exit | None:  # noqa: C901, PLR0912 - a call for each message costs as much as one
        """Handle messages until the incarnation is over.

        Return its exit, or None if the task has been idle too long or its scope was cancelled.
        """
        actor, async_calls, plain_calls = self.actor, self.table.async_calls, self.table.plain_calls
        checkpoint = self.runtime.backend.checkpoint
        pause_at = self.handled + BUDGET
        while True:
            if self.attention and (exit_ := self.process_signals()) is not None:
                self.running = None
                return exit_
            items = self.items
            if not items:
                item = value = None  # an idle actor keeps no message alive
                await self._prepare_sleep()
                self.waiter = None
                if self.idle_too_long and self.asleep:
                    return None
                pause_at = self.handled + BUDGET
                continue
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
                    if not item.timed:
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
            if self.cancelling:
                return None
            self.handled = handled = self.handled + 1
            if handled >= pause_at:
                self.running = None
                pause_at = handled + BUDGET
                await checkpoint()

    def failed(self, error: BaseException, item: Any) -> Exit | None:
        if self.cancelling and consists_of(error, self.runtime.backend.cancelled, GeneratorExit):
            # A task group wraps cancellations, and exceptions of generators that are closed during them.
            self.handle_interrupted(item, self.why_cancelled)
            return None
        return Cell.failed(self, error, item)

    def _is_ours(self, error: BaseException) -> bool:
        """Return whether the error is a cancellation of this task, by its system or from outside.

        Otherwise it is an error of user code.
        """
        backend = self.runtime.backend
        return isinstance(error, backend.cancelled) and (self.cancelling or backend.cancellation_pending())

    def _prepare_sleep(self) -> Waiter:
        """Return a waiter that wakes when there is something to do, or when the task has been idle long enough."""
        self.running = self.items = None
        self.asleep = 1
        runtime = self.runtime
        runtime.mark_idle()
        runtime.keep_idle_task(self)
        self.idle_too_long = False
        waiter = self.waiter = runtime.backend.waiter()
        return waiter

    def end_idle_task(self) -> None:
        """End the idle task. The next message starts another one."""
        if self.waiter is not None:
            self.idle_too_long = True
            self.waiter.wake()

    async def _handle_uncommon(self, actor: Any, item: Any) -> None:
        asked = isinstance(item, PendingAsk)
        message = item
        if asked:
            if item.state == DONE:
                self.cancelled_count = max(0, self.cancelled_count - 1)
                return
            message = item.message
        kind: type[Any] = type(message)
        call = self.table.calls.get(kind) or self.table.find(kind)
        if call is None or (kind in self.table.streaming) != isinstance(item, StreamSlot):
            self.reject_unhandled(item)
        elif isinstance(item, StreamSlot):
            item.state = RUNNING
            await item.feed(call(actor, message))
        elif asked:
            item.state = RUNNING
            item.start_clock()
            value = await call(actor, message) if kind in self.table.async_calls else call(actor, message)
            if self.running is item:
                item.succeed(value)
        elif kind in self.table.async_calls:
            await call(actor, message)
        else:
            call(actor, message)

    async def handle(self, message: Any) -> None:
        """Pass a message that `run` received to its `@on` handler. The handler can be interrupted."""
        item = self.running
        if item is None or self.content(item) is not message:
            item = message
        outside, self.sent = self.sent, None  # only the handler's own requests end with it
        with anyio.CancelScope() as scope:
            self.turn_scope = scope
            try:
                await self._handle_uncommon(self.actor, item)
            except BaseException as error:
                refusal = control_error(error, ReplyError)
                if refusal is None:
                    raise
                self.reject(refusal, item)
            finally:
                self.turn_scope = None
                if self.sent:
                    self.withdraw_asks(interrupted=sys.exception() is not None)
                self.sent = outside
        if scope.cancelled_caught:
            self.cancelling = False
            self.handle_interrupted(item, self.why_cancelled)
        if self.running is item:
            self.running = None

    @property
    def cancel_requested(self) -> bool:
        """Whether the code of its task was cancelled, by a kill or because a hook took too long."""
        return self.cancelling or (self.scope is not None and self.scope.cancel_called)

    @property
    def idle(self) -> bool:
        return bool(self.coroutine is None and self.asleep and not self.items and not self.attention)

    # Cancelling.

    def interrupt(self, why: str) -> bool:
        if self.running is None or self.turn_scope is None:
            return False
        self._cancel(self.turn_scope, why)
        return True

    def cancel_running(self, ask: PendingAsk) -> None:
        if self.running is ask and self.turn_scope is not None:
            self._cancel(self.turn_scope, "its asker gave up")

    def cancel_turn(self) -> None:
        if self.scope is not None and (self.running is not None or self.table.own_run or self.state == STARTING):
            forced = None if self.extras is None else self.extras.exit_forced
            if forced is None:
                why = "the actor is being ended"
            else:
                why = f"it {'was ' if isinstance(forced, Killed) else ''}{forced.describe()}"
            self._cancel(self.scope, why)

    def cancel_ending(self) -> None:
        if self.scope is not None:
            self._cancel(self.scope, "the actor is being killed")

    def _cancel(self, scope: anyio.CancelScope, why: str) -> None:
        self.cancelling = True
        self.why_cancelled = why
        scope.cancel()

    def waits_in_asks(self) -> bool:
        if self.state == STARTING:
            return True
        return self.running is not None and not (self.table.own_run and self.running is SET_ASIDE)

    def runs(self, task: Any) -> bool:
        return task is not None and task is self.task

    # Ending.

    async def _hook(self, name: str, argument: object) -> None:
        """Run a hook of the old incarnation, within the time allowed for a stop."""
        outside = self.scope
        try:
            with anyio.move_on_after(min(self.options.shutdown, self.runtime.longest_hook)) as scope:
                self.scope = scope
                result = getattr(self.actor, name)(argument)
                if inspect.isawaitable(result):
                    await result
        except BaseException as error:
            if self._is_ours(error):
                raise
            self.runtime.hook_failed(self.path, self.class_name, name, self.as_failure(error))
        else:
            if not scope.cancelled_caught:
                return
            overrun = TimeoutError(f"it was cancelled after {self.options.shutdown} s (shutdown), or by a kill")
            self.runtime.hook_failed(self.path, self.class_name, name, overrun)
        finally:
            self.scope = outside

    def finalize(self, exit_: Exit) -> None:
        if self.actor is None or "stopped" not in self.table.hooks:
            self.mark_dead(exit_)
            return
        self.state = STOPPING_HOOK
        self._start_task(self._run_stopped_hook, exit_)

    async def _run_stopped_hook(self, exit_: Exit) -> None:
        current_cell.set(self)
        self.task = self.runtime.backend.current_task()
        self.cancelling = False
        self.runtime.tasks[self] = None
        try:
            await self._hook("stopped", exit_)
        except BaseException as error:
            self.runtime.hook_failed(self.path, self.class_name, "stopped", error)
        self.runtime.tasks.pop(self, None)
        self.coroutine = self.task = None
        self.runtime.mark_idle()
        self.mark_dead(exit_)


# The mailbox from the view of an actor with its own receive loop: receive, iterate, select.


M = TypeVar("M")

URGENT_SIGNALS = KILL | FAIL | END_FOR_RESTART
"""Signals that take effect before the queue is finished."""


class Inbox(Generic[M]):
    """The source of messages for `run`, or for an actor made from a function. Also a case of `select`.

    Each received request must be answered (`reply`), deferred or passed to `handle`. Otherwise it fails when the next
    message is received, so that no asker waits for ever.
    """

    __slots__ = ("_cell", "_waiters")

    def __init__(self, cell: TaskCell) -> None:
        self._cell = cell
        self._waiters: deque[CaseWaiter] = deque()

    def __len__(self) -> int:
        return len(self._cell)

    def _take(self) -> Any:
        """Return the next message, `NOT_READY` or `CLOSED`."""
        cell = self._cell
        self._fail_unanswered()
        if cell.attention and (cell.signals & URGENT_SIGNALS or cell.process_signals() is not None):
            return CLOSED
        while cell.items:
            item = cell.items.popleft()
            if isinstance(item, PendingAsk):
                if item.state == DONE:
                    cell.cancelled_count = max(0, cell.cancelled_count - 1)
                    continue
                item.state = RUNNING
                item.start_clock()
            cell.running = item
            cell.handled += 1
            return cell.content(item)
        cell.items = None
        if not cell.asleep:
            cell.asleep = 1
            cell.runtime.mark_idle()
        return NOT_READY if cell.state in (LIVE, DRAINING) and not cell.closed else CLOSED

    def _fail_unanswered(self) -> None:
        cell = self._cell
        last, cell.running = cell.running, None
        if isinstance(last, PendingAsk) and last.state == RUNNING:
            last.fail(Interrupted(f"{cell.path} took {last.message!r} and went on without a reply"))

    def _closed(self) -> ChannelClosed:
        return ChannelClosed(f"{self._cell.path} is stopping, and its mailbox is empty")

    async def receive(self) -> M:
        """Receive the next message. A checkpoint only if it has to wait.

        Raises:
            ChannelClosed: the actor is stopping, and all messages in its mailbox were received.
            anyio.BusyResourceError: another task already waits for the next message.
        """
        cell = self._cell
        while True:
            message = self._take()
            if message is CLOSED:
                raise self._closed()
            if message is not NOT_READY:
                taken: M = message
                return taken
            if cell.waiter is not None:
                raise anyio.BusyResourceError("receiving from")
            cell.waiter = waiter = cell.runtime.backend.waiter()
            try:
                await waiter
            finally:
                cell.waiter = None

    def receive_nowait(self) -> M:
        """Receive the next message if there is one. Not a checkpoint.

        Raises:
            anyio.WouldBlock: there is none.
            ChannelClosed: the actor is stopping, and all messages in its mailbox were received.
        """
        message = self._take()
        if message is CLOSED:
            raise self._closed()
        if message is NOT_READY:
            raise anyio.WouldBlock
        taken: M = message
        return taken

    def reply(self, value: Any) -> None:
        """Answer the request that was received last. Do nothing if that message was told, not asked.

        Args:
            value: the answer, of the type that the request declares.
        """
        cell = self._cell
        last, cell.running = cell.running, None
        if isinstance(last, PendingAsk):
            last.succeed(value)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> M:
        try:
            return await self.receive()
        except ChannelClosed:
            raise StopAsyncIteration from None

    # As a case of select.

    def case_poll(self) -> Any:
        """Take the next message.

        Raises:
            ChannelClosed: the actor is stopping, and all messages in its mailbox were received. The inbox does not just
                drop out of the select, because a loop that selects on its inbox and on timers must notice the stop.
        """
        message = self._take()
        if message is CLOSED:
            raise self._closed()
        return message

    def case_enroll(self, waiter: CaseWaiter, /) -> None:
        """Claim the select when a message arrives."""
        self._waiters.append(waiter)
        self._cell.waiter = self

    def case_withdraw(self, waiter: CaseWaiter, /) -> None:
        """Forget the waiter of a select that is over."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)
        if not self._waiters:
            self._cell.waiter = None

    def case_put_back(self, item: Any, /) -> bool:
        """Put the message of a cancelled select back at the front."""
        cell = self._cell
        back = cell.running if cell.running is not None else item
        cell.running = None
        cell.requeue(back)
        if cell.asleep:
            cell.on_mail()
        return True

    def wake(self) -> None:
        """Give new messages to the waiting select."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if waiter.done():
                continue
            message = self._take()
            waiter.set_result(message)
            if message is not CLOSED:
                return
