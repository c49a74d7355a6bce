"""Cells of actors in which nothing can suspend. The dispatcher runs them, so they need no task."""

# Messages, factories and users' exceptions are Any here: no annotation could say more.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from typing import TYPE_CHECKING, Any

from cuelight.actors._cell import STARTING, STOPPING_HOOK, Cell
from cuelight.actors._messages import Exit, Start, WasRestarted
from cuelight.actors._reply import DONE, QUEUED, RUNNING, CompletedReply, PendingAsk, Reply, StreamSlot, current_cell
from cuelight.errors import ReplyError, control_error

if TYPE_CHECKING:
    from collections.abc import Callable

BUDGET = 128
"""The number of messages that one actor handles before the next actor has its turn."""

BUDGET_RANGE = range(BUDGET)

NESTED_STARTS = 20
"""The number of starts nested in each other's hooks. Further starts wait for the dispatcher."""

INLINE = 2
"""The value of `asleep` for an idle plain cell: an ask may run its handler at once."""


SPARE_QUEUES = 64
"""The number of empty queues kept for actors that get messages: making one costs as much as handling a message."""


class TurnCell(Cell):
    """An actor to which the dispatcher gives a turn when it has messages."""

    __slots__ = ()

    def put(self, item: Any) -> bool:
        runtime = self.runtime
        items = self.items
        if items is None:
            spares = runtime.spare_queues
            items = self.items = spares.pop() if spares else deque()
        if len(items) >= self.limit:
            return self._put_full(item)
        items.append(item)
        if self.asleep:  # `on_mail` inlined: a call costs as much as the rest
            self.asleep = 0
            runtime.busy_count += 1
            runtime._ready.append(self)
            if runtime._sleep is not None:
                runtime._wake()
        return True

    def on_mail(self) -> None:
        self.asleep = 0
        self.runtime.schedule(self)

    @abstractmethod
    def turn(self) -> bool:
        """Handle some messages in the cell's context. Return whether there are more."""


class PlainCell(TurnCell):
    """An actor with only `def` handlers and hooks."""

    __slots__ = ()

    def begin(self, why: Start) -> None:
        runtime = self.runtime
        if runtime.nested_starts >= NESTED_STARTS:
            runtime.post(self.begin, why)  # bounds the recursion of hooks that start children with hooks
            return
        try:
            if self.table.hooks:
                runtime.nested_starts += 1
                try:
                    self.context.run(self._start_incarnation, why)
                finally:
                    runtime.nested_starts -= 1
            else:
                self.construct()
        except BaseException as error:
            self.start_failed(error)
            return
        self.has_started()
        self.asleep = INLINE
        if self.items or self.attention:
            self.on_mail()

    def _start_incarnation(self, why: Start) -> None:
        if current_cell.get() is not self:  # already set after the first time
            current_cell.set(self)
        if type(why) is WasRestarted and self.actor is not None:
            try:
                self.actor.restarting(why.after)
            except BaseException as error:
                self.runtime.hook_failed(self.path, self.class_name, "restarting", error)
                self.abort_if_fatal(error)
        self.construct().started(why)

    def turn(self) -> bool:  # noqa: C901 - a call for each message costs as much as one
        """Handle some messages in the cell's context. Return whether there are more."""
        if not self.handled and current_cell.get() is not self:  # already set after the first time
            current_cell.set(self)
        actor, calls = self.actor, self.table.calls
        handled = 0  # added to `self.handled` only at the end, because each addition costs as much as a look-up
        for handled in BUDGET_RANGE:
            if self.attention:
                exit_ = self.process_signals()
                if exit_ is not None:
                    self._end_turn(handled, exit_)
                    return False
            items = self.items
            if not items:
                self.handled += handled
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
            call = calls.get(kind)
            try:
                if call is not None:
                    call(actor, item)
                elif (
                    kind is PendingAsk and item.state == QUEUED and (call := calls.get(type(item.message))) is not None
                ):
                    item.state = RUNNING
                    value = call(actor, item.message)
                    if self.running is item:
                        item.succeed(value)
                else:
                    self._handle_uncommon(item)
            except BaseException as error:
                exit_ = self.failed(error, item)
                if exit_ is not None:
                    self._end_turn(handled, exit_)
                    return False
        self.handled += BUDGET
        self.running = None
        return True

    def _end_turn(self, handled: int, exit_: Exit) -> None:
        """End the turn together with the incarnation."""
        self.handled += handled
        self.running = None
        self.runtime.mark_idle()
        self.end_incarnation(exit_)

    def _handle_uncommon(self, item: Any) -> None:
        message = item
        asked = isinstance(item, PendingAsk)
        if asked:
            if item.state == DONE:
                self.cancelled_count = max(0, self.cancelled_count - 1)
                return
            message = item.message
        kind: type[Any] = type(message)
        call: Callable[..., Any] | None = self.table.calls.get(kind) or self.table.find(kind)
        if call is None or isinstance(item, StreamSlot):
            self.reject_unhandled(item)
        elif asked:
            item.state = RUNNING
            value = call(self.actor, message)
            if self.running is item:
                item.succeed(value)
        else:
            call(self.actor, message)

    @property
    def inside_ask(self) -> bool:
        return self.runtime.turning is not self

    def ask_now(self, message: Any, call: Callable[..., Any]) -> Reply[Any]:
        """Run a handler inside the ask. This is safe because the cell is idle and a `def` handler cannot suspend."""
        runtime = self.runtime
        self.asleep = 0
        asks_left, runtime.inline = runtime.inline, -1  # its own asks queue
        reply, exit_ = self.context.run(self._answer, message, call)
        runtime.inline = asks_left
        self.handled += 1
        if exit_ is not None:
            self.end_incarnation(exit_)
        elif self.items or self.attention:
            self.on_mail()
        else:
            self.items = None
            self.asleep = INLINE
        return reply

    def _answer(self, message: Any, call: Callable[..., Any]) -> tuple[Reply[Any], Exit | None]:
        if not self.handled and current_cell.get() is not self:  # already set after the first time
            current_cell.set(self)
        self.running = message
        try:
            value = call(self.actor, message)
        except BaseException as error:
            slot = self.running
            refusal = control_error(error, ReplyError) if slot is message else None
            if refusal is not None:
                if self.sent:
                    self.withdraw_asks(interrupted=True)
                return CompletedReply(None, refusal), None
            asked: PendingAsk = (
                slot if type(slot) is PendingAsk else PendingAsk(message, self, self.runtime.inline_ask_timeout())
            )
            return asked, self.failed(error, asked)
        finally:
            slot, self.running = self.running, None
        if slot is not message:  # the handler deferred its reply, or stashed the request
            return slot, None
        return CompletedReply(value), None

    def runs(self, task: Any) -> bool:
        return self.state in (STARTING, STOPPING_HOOK) or (self.running is not None and not self.asleep)

    def interrupt(self, why: str) -> bool:
        return False

    def cancel_running(self, ask: PendingAsk) -> None:
        """Do nothing: no other code runs during a `def` handler, so none can cancel it."""

    def cancel_turn(self) -> None:
        """Do nothing, for the same reason as `cancel_running`."""

    def cancel_ending(self) -> None:
        """Do nothing: its `stopped` hook cannot suspend."""

    def finalize(self, exit_: Exit) -> None:
        actor = self.actor
        if actor is not None and "stopped" in self.table.hooks and self.state != STARTING:
            self.state = STOPPING_HOOK  # the hook may stop the cell or its parent, which must not give it up again
            try:
                if self.runtime.turning is self:  # it ended in its own turn, so this already runs in its context
                    actor.stopped(exit_)
                else:
                    self.context.run(actor.stopped, exit_)
            except BaseException as error:
                self.runtime.hook_failed(self.path, self.class_name, "stopped", error)
                self.abort_if_fatal(error)
        self.mark_dead(exit_)
