"""Work beside the messages of an actor, bound to an incarnation: timers, and coroutines in the background."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

import anyio

from cuelight.actors._cell import withdraw
from cuelight.actors._reply import background_work, current_cell
from cuelight.errors import ends_the_program
from cuelight.mailbox import coroutine_of

if TYPE_CHECKING:
    from cuelight.actors._cell import Cell
    from cuelight.actors._cell_extras import CellExtras
    from cuelight.actors._reply import PendingAsk


class ActorTimer:
    """A message that an actor sends itself after a delay, once or periodically, while its incarnation lives."""

    __slots__ = ("_cell", "_due", "_hash", "_key", "_message", "_period")

    def __init__(self, cell: Cell, key: object, message: Any, delay: float, period: float | None) -> None:
        cell.runtime.check_thread(cell)
        cell.check_not_ending("timers")
        self._cell, self._message, self._period = cell, message, period
        # Hashing and comparing keys runs code of users, so both are done only here.
        self._key, self._hash = key, 0 if key is None else hash(key)
        self._due = cell.runtime.backend.time() + delay
        extras = cell.ensure_extras()
        if key is not None:
            alike = extras.keyed_timers.get(self._hash, ())
            earlier = next((timer for timer in alike if timer._key is key or timer._key == key), None)
            if earlier is not None:
                earlier.cancel()
            extras.keyed_timers.setdefault(self._hash, []).append(self)
        extras.timers[self] = None
        cell.runtime.timers.add(self._due, self)

    def _forget(self, extras: CellExtras[Cell]) -> None:
        extras.timers.pop(self, None)
        alike = None if self._key is None else extras.keyed_timers.get(self._hash)
        if alike is not None:
            alike[:] = [timer for timer in alike if timer is not self]
            if not alike:
                del extras.keyed_timers[self._hash]

    @property
    def active(self) -> bool:
        """Whether it will send its message (again)."""
        extras = self._cell.extras
        return extras is not None and self in extras.timers

    def cancel(self) -> None:
        """Stop the timer. A message that is already in the mailbox stays there. Do nothing if the timer is over."""
        if self.active and self._cell.extras is not None:
            self._forget(self._cell.extras)
            self._cell.runtime.timers.remove(self._due, self)

    def fire(self) -> None:
        """Send the message, and schedule the next one of a periodic timer."""
        cell = self._cell
        if self._period is None:
            if cell.extras is not None:
                self._forget(cell.extras)
        else:
            # Missed periods, for example after the loop was blocked, are skipped, without a burst and without drift.
            now = cell.runtime.backend.time()
            missed = max(0.0, (now - self._due) // self._period)
            self._due += (missed + 1) * self._period
            cell.runtime.timers.add(self._due, self)
        cell.put_or_drop(self._message)


class Background:
    """A task bound to an incarnation. It is cancelled and awaited when the incarnation ends."""

    __slots__ = ("_cell", "_scope", "_task", "_work", "cancelled", "sent")

    def __init__(self, cell: Cell, work: Awaitable[Any], done: Callable[[Any, BaseException | None], None]) -> None:
        try:
            cell.runtime.check_thread(cell)
            cell.check_not_ending("background tasks")
        except RuntimeError:
            if isinstance(work, Coroutine):
                work.close()
            raise
        self._cell = cell
        self._work = work
        self._scope: anyio.CancelScope | None = None
        self._task: Any = None
        self.cancelled = False
        self.sent: dict[PendingAsk, None] | None = None
        cell.ensure_extras().background[self] = None
        cell.runtime.background[self] = None
        context = copy_context()
        context.run(current_cell.set, None)  # it does not block the mailbox and inherits no deadline
        context.run(background_work.set, self)
        cell.runtime.busy_count += 1
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

    def has_sent(self, asked: PendingAsk) -> None:
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
            cell.ensure_extras().background.pop(self, None)
            cell.runtime.background.pop(self, None)
            sent, self.sent = self.sent, None
            withdraw(sent, cell.runtime, interrupted=self.cancelled or error is not None)
            try:
                if not self.cancelled:
                    done(result, error)
            except BaseException as raised:
                cell.runtime.internal_error(raised)
            cell.runtime.mark_idle()
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
