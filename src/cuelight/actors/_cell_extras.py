"""The state that only few actors need: timers, background tasks, watchers, links, stash, groups.

It is a separate object, so that an idle actor without it takes no memory for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Self

import anyio

from cuelight.actors._cell import withdraw
from cuelight.actors._messages import Crashed, Exit, Terminated
from cuelight.actors._ref import Ref
from cuelight.actors._reply import ASIDE, background_work, handling
from cuelight.errors import CuelightError, ends_the_program
from cuelight.mailbox import coroutine_of

if TYPE_CHECKING:
    from cuelight.actors._cell import Cell
    from cuelight.actors._messages import Killed
    from cuelight.actors._ref import Group
    from cuelight.actors._reply import Asked
    from cuelight.actors._timers import ActorTimer
    from cuelight.mailbox import Waiter


class LinkedExit(CuelightError):
    """A linked actor has ended abnormally."""

    @classmethod
    def of(cls, cell: Cell, exit_: Exit) -> Self:
        """Make the error for the actors that were linked to `cell`."""
        error = cls(f"{cell.path}, to which it is linked, {exit_.describe()}")
        error.__cause__ = exit_.error if isinstance(exit_, Crashed) else None
        return error


class Bonds:
    """The rarely used state of one cell. State bound to an incarnation ends with it, the rest with the cell."""

    __slots__ = (
        "background",
        "cell",
        "deferred",
        "deferred_now",
        "error_log",
        "exit_forced",
        "groups",
        "keyed_timers",
        "links",
        "retry",
        "stash",
        "timers",
        "watched",
        "watchers",
        "when_ended",
        "when_started",
    )

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        # Bound to the incarnation.
        self.exit_forced: Killed | Crashed | None = None
        self.timers: dict[ActorTimer, None] = {}
        self.keyed_timers: dict[int, list[ActorTimer]] = {}  # by the hash of the key
        self.background: dict[Background, None] = {}
        self.deferred: dict[Asked, list[Background]] = {}  # each with the work that serves it
        self.deferred_now: Asked | None = None  # by the running handler, or by an earlier one
        self.watched: dict[Cell, None] = {}
        # Bound to the cell.
        self.stash: deque[Any] = deque()
        self.retry: tuple[Any, int] | None = None
        self.error_log: list[BaseException] = []
        self.links: dict[Cell, None] = {}
        self.watchers: dict[Cell, None] = {}
        self.when_ended: dict[Waiter | Callable[[Exit], object], None] = {}
        self.when_started: dict[Callable[[], object], None] = {}
        self.groups: dict[Group[Any], None] = {}

    @property
    def busy(self) -> bool:
        """Whether background tasks still run."""
        return bool(self.background)

    def call_when_ended(self, callback: Waiter | Callable[[Exit], object]) -> None:
        """Call `callback(exit)`, or wake a waiter, when the cell has ended permanently."""
        self.when_ended[callback] = None

    def call_when_started(self, callback: Callable[[], object]) -> None:
        """Call `callback()` once, when the next incarnation has started or can no longer start."""
        self.when_started[callback] = None

    def has_started(self) -> None:
        """Call the `call_when_started` callbacks: the incarnation has started or can no longer start."""
        when_started, self.when_started = self.when_started, {}
        for tell in when_started:
            try:
                tell()
            except BaseException as error:
                self.cell.runtime.internal_error(error)

    def end_incarnation(self) -> None:
        """End the state bound to the incarnation. Background tasks are cancelled here and end a little later."""
        for timer in list(self.timers):
            timer.cancel()
        for task in list(self.background):
            task.cancel()
        deferred, self.deferred, self.deferred_now = self.deferred, {}, None
        for asked in deferred:
            self.cell.deserted(asked)
        for other in self.watched:
            if other.bonds is not None:
                other.bonds.watchers.pop(self.cell, None)
        self.watched.clear()
        self.unstash()

    def served_now(self) -> list[Background] | None:
        """Return the list of work for the request whose reply the running handler deferred, or None without one."""
        asked, running = self.deferred_now, self.cell.running
        return self.deferred.get(asked) if asked is not None and (running is ASIDE or running is asked) else None

    def unstash(self) -> None:
        """Put the stashed messages back at the front of the mailbox, oldest first."""
        if self.stash:
            if self.cell.items is None:
                self.cell.items = deque()
            self.cell.items.extendleft(reversed(self.stash))
            self.stash.clear()
            if self.cell.asleep:
                self.cell.woken()

    def try_again(self, item: Any, error: BaseException) -> bool:
        """Count a crash on this message, then requeue it at the front, or quarantine it after too many crashes.

        Returns:
            Whether the message was requeued.
        """
        cell, count = self.cell, 1
        if self.retry is not None and self.retry[0] is item:
            count += self.retry[1]
        else:
            self.error_log = []
        self.error_log.append(error)
        if count >= cell.options.redeliver:
            self.retry = (item, 0)
            message = cell.content(item)
            cell.runtime.dead_letters.add(message, cell, "quarantined", error, tuple(self.error_log))
            return False
        self.retry = (item, count)
        cell.requeue(item)
        return True

    def settle(self, cell: Cell, exit_: Exit) -> None:
        """Notify all waiters, watchers and linked actors that the cell has ended permanently."""
        self.has_started()
        for group in list(self.groups):
            group.discard(cell)
        terminated = Terminated(Ref(cell), exit_)
        for watcher in self.watchers:
            if watcher.bonds is not None:
                watcher.bonds.watched.pop(cell, None)
            watcher.put_control(terminated)
        for other in self.links:
            if other.bonds is not None:
                other.bonds.links.pop(cell, None)
            if exit_.abnormal:
                other.fail_with(LinkedExit.of(cell, exit_))
        when_ended, self.when_ended = self.when_ended, {}
        for waiting in when_ended:
            try:
                if callable(waiting):
                    waiting(exit_)
                else:
                    waiting.wake()
            except BaseException as error:
                cell.runtime.internal_error(error)


# Background work of an actor: a coroutine that runs beside the messages and whose result returns as a message.


class Background:
    """A task bound to an incarnation. It is cancelled and awaited when the incarnation ends."""

    __slots__ = ("_cell", "_scope", "_task", "_work", "cancelled", "sent")

    def __init__(self, cell: Cell, work: Awaitable[Any], done: Callable[[Any, BaseException | None], None]) -> None:
        try:
            cell.runtime.check_thread(cell)
            cell.must_live("background tasks")
        except RuntimeError:
            if isinstance(work, Coroutine):
                work.close()
            raise
        self._cell = cell
        self._work = work
        self._scope: anyio.CancelScope | None = None
        self._task: Any = None
        self.cancelled = False
        self.sent: dict[Asked, None] | None = None
        cell.bonds_made().background[self] = None
        cell.runtime.background[self] = None
        context = copy_context()
        context.run(handling.set, None)  # it does not block the mailbox and inherits no deadline
        context.run(background_work.set, self)
        cell.runtime.awake += 1
        cell.runtime.backend.spawn(self._run, done, context=context, name=f"{cell.path} background")

    @property
    def path(self) -> str:
        """The path of the actor, marked as background work."""
        return f"background work of {self._cell.path}"

    @property
    def task(self) -> Any:
        """The task that runs the work, or None before it has begun."""
        return self._task

    @property
    def coroutine(self) -> Any:
        """The coroutine of the task."""
        return coroutine_of(self._task)

    def cancel(self) -> None:
        """Cancel the work. It then sends no result."""
        self.cancelled = True
        if self._scope is not None:
            self._scope.cancel()

    def has_sent(self, asked: Asked) -> None:
        """Remember a request, to withdraw it if it is still open when the work ends."""
        if self._cell.runtime.backend.current_task() is self._task:
            if self.sent is None:
                self.sent = {}
            self.sent[asked] = None
            asked.sender = self

    async def _run(self, done: Callable[[Any, BaseException | None], None]) -> None:
        cell = self._cell
        self._task = cell.runtime.backend.current_task()
        result, error = None, None
        try:
            result, error = await self._attempt()
        finally:
            cell.bonds_made().background.pop(self, None)
            cell.runtime.background.pop(self, None)
            sent, self.sent = self.sent, None
            withdraw(sent, cell.runtime, cut_off=self.cancelled or error is not None)
            try:
                if not self.cancelled:
                    done(result, error)
            except BaseException as raised:
                cell.runtime.internal_error(raised)
            cell.runtime.dozed()
            cell.part_ended()

    async def _attempt(self) -> tuple[Any, BaseException | None]:
        """Return the result of the work or the exception that it raised, or neither if it was cancelled."""
        cell = self._cell
        try:
            with anyio.CancelScope() as self._scope:
                if self.cancelled:
                    self._scope.cancel()
                return await self._work, None
        except BaseException as raised:
            backend = cell.runtime.backend
            if isinstance(raised, backend.cancelled) and (self.cancelled or backend.cancellation_pending()):
                self.cancelled = True
                return None, None
            if ends_the_program(raised):
                self.cancelled = True
                cell.fail_with(cell.as_failure(raised))
                return None, None
            return None, cell.as_failure(raised)
        return None, None
