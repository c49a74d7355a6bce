"""What the actors of one system share: the dispatcher, time, names, groups and dead letters.

The dispatcher is one task. It runs what supervisors have to decide first, then gives each plain actor that has mail
a turn. Supervision therefore never waits for a handler, and never runs inside one.
"""

from __future__ import annotations

import math
from collections import deque
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from cuelight._log import get_log
from cuelight.actors._dead_letters import DeadLetters
from cuelight.actors._plain_cell import PlainCell
from cuelight.actors._reply import Asked
from cuelight.actors._timers import Alarms, Later
from cuelight.mailbox import Waiter, current_backend

if TYPE_CHECKING:
    from collections.abc import Callable

    from cuelight.actors._cell import Cell
    from cuelight.actors._task_cell import TaskCell
    from cuelight.mailbox import Backend

__all__ = ["Dispatcher"]

log = get_log("cuelight")

TURNS_PER_PASS = 64
INLINE_ASKS_PER_PASS = 256
LINGER = 5.0
"""Seconds that an idle task is kept, at least; at most twice that."""

GRAIN = 64
"""Deadlines are rounded up to a 64th of the time-out, so that many share one timer."""


class Dispatcher:
    """Turns, decisions and time."""

    def __init__(self, *, ask_timeout: float, keep_dead_letters: int) -> None:
        self.ask_timeout = ask_timeout
        self.late_replies = 0
        self.inline = 0
        self.inline_timeout: float | None = None
        self.nested_starts = 0
        self.told = 0
        self.awake = 0
        self.restarting = 0
        self.turning: Cell | None = None
        self._keep_dead_letters = keep_dead_letters
        self._ready: deque[PlainCell] = deque()
        self._events: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._parked: Waiter | None = None
        self._open = False
        self._ended: Waiter | None = None
        self._dispatching = False
        self._idle_waiters: list[Waiter] = []
        self.tasks: dict[TaskCell, None] = {}
        self._warm: dict[TaskCell, None] = {}
        self._cooling: dict[TaskCell, None] = {}
        self._sweeping = False

    # The dispatcher.

    def open_runtime(self) -> None:
        """Bind to the running loop and start the dispatcher."""
        self.backend: Backend = current_backend()
        self.alarms = Alarms(self.backend)
        self.dead_letters = DeadLetters(self._keep_dead_letters, self.backend.time)
        self._open = self._dispatching = True
        self.backend.spawn(self._dispatch, context=copy_context(), name="cuelight dispatcher")

    async def close_runtime(self) -> None:
        """End the dispatcher and all time; every actor has ended."""
        self._open = False
        self.alarms.close()
        self.dead_letters.close()
        self._wake()
        while self._dispatching:
            self._ended = self.backend.waiter()
            await self._ended

    def schedule(self, cell: PlainCell) -> None:
        """Give a plain cell a turn soon."""
        self.awake += 1
        self._ready.append(cell)
        if self._parked is not None:
            self._wake()

    def post(self, function: Callable[..., object], *args: Any) -> None:
        """Have a decision of supervision taken soon, outside of all handlers."""
        self._events.append((function, args))
        if self._parked is not None:
            self._wake()

    def _wake(self) -> None:
        parked, self._parked = self._parked, None
        if parked is not None:
            parked.wake()

    async def _dispatch(self) -> None:
        try:
            while self._open or self._ready or self._events:
                try:
                    self._pass()
                    if self._ready or self._events:
                        await self.backend.checkpoint()
                    elif self._open:
                        if self._idle_waiters and self.is_idle:
                            self._tell_idle()
                        self._parked = waiter = self.backend.waiter()
                        await waiter
                except Exception:
                    log.exception("an internal error of Cuelight; please report it")
                except BaseException as error:
                    self.abort(error)
                    if self.backend.name == "trio" and isinstance(error, self.backend.cancelled):
                        return  # trio itself is ending; after a native cancellation actors are still to be ended
        finally:
            self._parked = None
            self._dispatching = False
            if self._ended is not None:
                self._ended.wake()

    def _pass(self) -> None:
        events, ready = self._events, self._ready
        self.inline = 0
        while events:
            function, args = events.popleft()
            function(*args)
        for _ in range(TURNS_PER_PASS):
            if not ready:
                break
            cell = ready.popleft()
            self.turning = cell
            if cell.context.run(cell.turn):
                ready.append(cell)
            if events:
                break
        self.turning = None
        self.inline = INLINE_ASKS_PER_PASS

    def is_inline(self, cell: Cell) -> bool:
        """Whether the handler of this plain cell runs inside an ask."""
        return type(cell) is PlainCell and self.turning is not cell

    def call_threadsafe(self, function: Callable[..., object], *args: object) -> None:
        """Run a function in the loop soon, from any thread; nothing happens once the system has ended.

        Raises:
            RuntimeError: the loop has ended.
        """
        if self._open:
            self.backend.call_threadsafe(function, *args)

    def busy_cells(self) -> list[Cell]:
        """The cells whose handlers run now; callable from any thread."""
        busy: list[Cell] = [cell for cell in self.tasks.copy() if cell.running is not None]
        turning = self.turning
        return busy if turning is None else [*busy, turning]

    # Idleness.

    @property
    def is_idle(self) -> bool:
        """Whether no actor handles, has or awaits a message, a restart or a background task."""
        return not (self.awake or self._ready or self._events or self.restarting)

    def dozed(self) -> None:
        """An actor or a background task has nothing to do any more."""
        self.awake -= 1
        if self._idle_waiters and self.is_idle:
            self._wake()

    def restart_settled(self) -> None:
        """A restart that was under way has begun, or was given up."""
        self.restarting -= 1
        if self._idle_waiters and self.is_idle:
            self._wake()

    async def wait_until_idle(self) -> None:
        """Wait until no actor handles or has a message and no restart or background task is under way.

        Timers that have not rung yet do not count. A checkpoint.
        """
        await self.backend.checkpoint()
        while not self.is_idle:
            waiter = self.backend.waiter()
            self._idle_waiters.append(waiter)
            try:
                await waiter
            finally:
                if waiter in self._idle_waiters:
                    self._idle_waiters.remove(waiter)

    def _tell_idle(self) -> None:
        waiters, self._idle_waiters = self._idle_waiters, []
        for waiter in waiters:
            waiter.wake()

    def keep_warm(self, cell: TaskCell) -> None:
        """Keep the idle task of a cell for a while."""
        self._warm[cell] = None
        if not self._sweeping:
            self._sweeping = True
            self.later(LINGER, self._sweep)

    def forget_warm(self, cell: TaskCell) -> None:
        """The task of a cell has ended."""
        self._warm.pop(cell, None)
        self._cooling.pop(cell, None)

    def _sweep(self) -> None:
        cooled, self._cooling, self._warm = self._cooling, self._warm, {}
        for cell in cooled:
            if cell.asleep and cell not in self._cooling:
                cell.retire()
        self._sweeping = bool(self._cooling)
        if self._sweeping:
            self.later(LINGER, self._sweep)

    # Time.

    def later(self, delay: float, function: Callable[..., object], *args: Any) -> Later:
        """Call a function after some seconds."""
        return Later(self.alarms, self.backend.time() + delay, function, *args)

    def due_in(self, timeout: float) -> float:
        """The deadline of an ask that may take `timeout` seconds, rounded up so that many share it."""
        if timeout == math.inf:
            return math.inf
        due = self.backend.time() + timeout
        grain = timeout / GRAIN
        return due - due % grain + grain if grain > 0 else due

    def inline_patience(self) -> float:
        """The time-out of the ask whose handler runs inline."""
        return self.ask_timeout if self.inline_timeout is None else self.inline_timeout

    def remaining(self, cell: Cell) -> float:
        """Seconds left to the request that a cell handles."""
        running = cell.running
        if not isinstance(running, Asked):
            return math.inf
        return max(0.0, (running.due or self.due_in(running.timeout)) - self.backend.time())

    def abort(self, error: BaseException) -> None:
        """Something that is no `Exception` came out of a handler: the whole system ends with it."""
        raise NotImplementedError
