"""The dispatcher, and the state that all actors of a system share: time, idleness and dead letters.

The dispatcher is one task. It first runs pending supervision decisions, then gives each plain actor that has messages a
turn. So supervision never waits for a handler and never runs inside one.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import deque
from contextvars import copy_context
from itertools import count
from threading import get_ident
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from cuelight._log import get_log
from cuelight._text import describe_error, safe_repr, type_name
from cuelight.actors._dead_letters import Addressee, DeadLetters
from cuelight.actors._timers import ScheduledCall, TimerHeap
from cuelight.errors import ends_the_program
from cuelight.mailbox import Waiter, current_backend

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context

    from cuelight.actors._handler_task import HandlerTask
    from cuelight.actors._messages import Exit
    from cuelight.mailbox import Backend

log = get_log("cuelight")

TURNS_PER_PASS = 64
INLINE_ASKS = 64
"""The number of asks answered inline between two clock checks."""

INLINE_CLOCK_CHECKS = 16
INLINE_SECONDS = 0.002
"""After this many clock checks, or this many seconds, other tasks run."""

IDLE_TASK_SECONDS = 5.0
"""The minimum time in seconds that an idle task is kept. The maximum is twice that."""

DEADLINE_RESOLUTION = 64
"""Deadlines are rounded up to a 64th of the timeout, so that many of them share one timer."""

WARNINGS_PER_KIND = 5
"""The number of warnings about messages without a handler, for each pair of actor class and message class."""

KINDS_OF_WARNINGS = 1000


class BusyCell(Protocol):
    """A cell that may be handling a message."""

    running: Any
    handled: int

    @property
    def path(self) -> str:
        """The path of the actor in the tree."""
        ...

    def content(self, item: Any) -> Any:
        """Return the message in an item."""
        ...

    def __len__(self) -> int:
        """Return the number of waiting messages."""
        ...


class Runnable(BusyCell, Protocol):
    """A cell that takes turns."""

    context: Context

    def turn(self) -> bool:
        """Handle some messages. Return whether there are more."""
        ...

    def handle_crash(self, error: BaseException, item: Any) -> Exit:
        """Settle the message of a handler that raised. Return the exit of the incarnation."""
        ...

    def end_incarnation(self, exit_: Exit) -> None:
        """End the incarnation."""
        ...


class TaskBound(Protocol):
    """An object whose code runs in a task of its own."""

    @property
    def path(self) -> str:
        """The path of the actor, or a description."""
        ...

    @property
    def task(self) -> Any:
        """The task, or None before it has begun."""
        ...

    @property
    def coroutine(self) -> Any:
        """The coroutine of the task."""
        ...


class CellWithTask(BusyCell, TaskBound, Protocol):
    """A cell whose handlers run in a task, which it may keep while it is idle."""

    asleep: int

    @property
    def cancel_requested(self) -> bool:
        """Whether the code of the task was cancelled."""
        ...

    def end_idle_task(self) -> None:
        """End the idle task."""
        ...


class Dispatcher:
    """Runs turns of actors, supervision decisions and timers."""

    def __init__(self, *, ask_timeout: float, keep_dead_letters: int) -> None:
        self.ask_timeout = ask_timeout
        self.late_replies = 0
        self.inline = -1
        """The number of asks that may be answered inline before the next clock check; -1 while none may be."""
        self._inline_clock_checks = 0
        self._inline_since = 0.0
        self.inline_timeout: float | None = None
        self.nested_starts = 0
        self.tells_since_yield = 0
        self.busy_count = 0
        self.restarting = 0
        self.turning: BusyCell | None = None
        self._keep_dead_letters = keep_dead_letters
        self._ready: deque[Runnable] = deque()
        self.turn_asks = 0
        """The number of asks that the turns of this pass may still answer inline."""
        self.nested_steps = 0
        """The number of handlers being run up to their first wait, each inside an ask of the previous one."""
        self.spare_queues: list[deque[Any]] = []
        self.spare_tasks: list[HandlerTask] = []
        self.ending_tasks = 0
        self._tasks_ended: Waiter | None = None
        self._events: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._sleep: Waiter | None = None
        self._open = False
        self.alive: int = 0
        self.next_serial: Callable[[], int] = count(1).__next__
        self._unhandled: dict[tuple[str, str], int] = {}
        self._ended: Waiter | None = None
        self._dispatching = False
        self._idle_waiters: dict[Waiter, None] = {}
        self._abandoned = False
        self.tasks: dict[CellWithTask, None] = {}
        self.background: dict[TaskBound, None] = {}
        self.longest_hook = math.inf
        """The longest time in seconds that a hook may take. It is finite once the shutdown time is over."""
        self._idle_tasks: dict[CellWithTask, None] = {}
        self._older_idle_tasks: dict[CellWithTask, None] = {}
        self._idle_check_scheduled = False

    # The dispatcher.

    def open_runtime(self) -> None:
        """Bind to the running loop and start the dispatcher."""
        self.backend: Backend = current_backend()
        self.thread = get_ident()
        self.context = copy_context()
        self.timers = TimerHeap(self.backend, self.internal_error)
        self.dead_letters = DeadLetters(self._keep_dead_letters, self.backend.time)
        self._open = self._dispatching = True
        self.backend.spawn(self._dispatch, context=copy_context(), name="cuelight dispatcher")

    async def close_runtime(self) -> None:
        """End the dispatcher and all timers. Every actor has already ended."""
        self._open = False
        self.timers.close()
        self.dead_letters.close()
        self._wake()
        while self._dispatching:
            self._ended = self.backend.waiter()
            await self._ended

    def schedule(self, cell: Runnable) -> None:
        """Give a cell a turn soon."""
        self.busy_count += 1
        self._ready.append(cell)
        if self._sleep is not None:
            self._wake()

    def post(self, function: Callable[..., object], *args: Any) -> None:
        """Have a supervision decision run soon, outside of all handlers."""
        self._events.append((function, args))
        if self._sleep is not None:
            self._wake()

    def schedule_again(self, cell: Runnable) -> None:
        """Give another turn to a cell that has just had one and still counts as busy."""
        self._ready.append(cell)
        if self._sleep is not None:
            self._wake()

    def _wake(self) -> None:
        parked, self._sleep = self._sleep, None
        if parked is not None:
            parked.wake()

    async def _dispatch(self) -> None:
        try:
            while (self._open and not (self._abandoned and self.all_ended)) or self._ready or self._events:
                try:
                    self._pass()
                    if self._ready or self._events:
                        await self.backend.checkpoint()
                    elif self._open and not (self._abandoned and self.all_ended):
                        if self._idle_waiters and self.is_idle:
                            self._tell_idle()
                        self._sleep = waiter = self.backend.waiter()
                        await waiter
                except self.backend.cancelled as error:
                    self.abort(error)
                    if self.backend.name == "trio":
                        return  # trio itself is ending
                    # All tasks of the loop are being cancelled, as asyncio.run does at its end. The actors must still
                    # be ended. After that, perhaps no task is left to leave the system's block.
                    self._abandoned = True
            await self._end_tasks()
        finally:
            self._sleep = None
            self._dispatching = False
            if self._ended is not None:
                self._ended.wake()
            elif self._abandoned:
                self._open = False
                self.timers.close()
                self.dead_letters.close()
                self.abandoned()

    async def _end_tasks(self) -> None:
        """End the unused handler tasks, and wait for the tasks that were told to end."""
        spares, self.spare_tasks = self.spare_tasks, []
        for task in spares:
            task.end()
        while self.ending_tasks:
            self._tasks_ended = waiter = self.backend.waiter()
            try:
                await waiter
            except self.backend.cancelled:
                pass  # the tasks end soon anyway

    def handler_task_ended(self) -> None:
        """Note that a task that was told to end has ended."""
        if not self.ending_tasks and self._tasks_ended is not None:
            self._tasks_ended.wake()

    @abstractmethod
    def abandoned(self) -> None:
        """End the resources that are not tasks: the loop is ending and the system's block was never left."""

    def _pass(self) -> None:
        events, ready = self._events, self._ready
        self.inline = -1
        self.turn_asks = INLINE_ASKS
        self._inline_clock_checks = 0
        while events:
            function, args = events.popleft()
            try:
                function(*args)
            except BaseException as error:
                self.internal_error(error)
        for _ in range(TURNS_PER_PASS):
            if not ready:
                break
            cell = ready.popleft()
            self.turning = cell
            try:
                if cell.context.run(cell.turn):
                    ready.append(cell)
            except BaseException as error:  # not from a handler: a turn catches those
                self._turn_failed(cell, error)
            if events:
                break
        self.turning = None
        self.inline = INLINE_ASKS
        self._inline_clock_checks = 0

    def more_inline(self) -> bool:
        """Return whether more asks may be answered inline before other tasks run, after `inline` has reached 0."""
        now = monotonic()  # real time, also under a virtual clock
        if not self._inline_clock_checks:
            self._inline_since = now
        self._inline_clock_checks += 1
        if self._inline_clock_checks < INLINE_CLOCK_CHECKS and now - self._inline_since < INLINE_SECONDS:
            self.inline = INLINE_ASKS
            return True
        self.inline = -1
        return False

    def _turn_failed(self, cell: Runnable, error: BaseException) -> None:
        self.internal_error(error)
        self.mark_idle()
        try:
            cell.end_incarnation(cell.handle_crash(error, cell.running))
        except BaseException as raised:
            self.internal_error(raised)

    @property
    @abstractmethod
    def all_ended(self) -> bool:
        """Whether every actor has ended."""

    def internal_error(self, error: BaseException) -> None:
        """Log an exception raised in code that must not raise, and continue."""
        log.error("an internal error of Cuelight; please report it", error=error)
        if ends_the_program(error):
            self.abort(error)

    def check_thread(self, used: Addressee | str = "the actor system") -> None:
        """Check that the code runs in the thread of this system's event loop.

        Args:
            used: the actor that the code uses, or a description of another object.

        Raises:
            RuntimeError: it runs in another thread.
        """
        if get_ident() != self.thread:
            raise self.wrong_thread(used)

    def wrong_thread(self, used: Addressee | str) -> RuntimeError:
        """Return the error for using an actor outside of the thread of its event loop."""
        name = used if isinstance(used, str) else used.path
        return RuntimeError(
            f"{name} lives in the event loop of another thread: use tell_threadsafe() here, or the blocking refs of "
            f"ActorSystem.blocking()"
        )

    def call_threadsafe(self, function: Callable[..., object], *args: object) -> None:
        """Run a function in the loop soon, from any thread. Do nothing once the system has ended.

        An exception of the function is logged.

        Raises:
            RuntimeError: the loop has ended, or it runs in the parent of this forked process.
        """
        if self._open:
            self.backend.call_threadsafe(self._call_for_thread, function, args)

    def _call_for_thread(self, function: Callable[..., object], args: tuple[Any, ...]) -> None:
        try:
            function(*args)
        except BaseException as error:  # it would end the trio run
            log.exception("a function that was given to call_threadsafe raised", kind="call_threadsafe")
            if ends_the_program(error):
                self.abort(error)

    def busy_cells(self) -> list[BusyCell]:
        """Return the cells whose handlers run now. Can be called from any thread."""
        busy: list[BusyCell] = [cell for cell in self.tasks.copy() if cell.running is not None]
        turning = self.turning
        return busy if turning is None else [*busy, turning]

    # Idleness.

    @property
    def is_idle(self) -> bool:
        """Whether no actor handles, has or awaits a message, a restart or a background task."""
        return not (self.busy_count or self._ready or self._events or self.restarting)

    def mark_idle(self) -> None:
        """Note that an actor or a background task has nothing more to do."""
        self.busy_count -= 1
        if self._idle_waiters and self.is_idle:
            self._wake()

    def wake_if_idle(self) -> None:
        """Wake the dispatcher if the system is idle: the rest of `mark_idle` when a task waits for idleness."""
        if self.is_idle:
            self._wake()

    def restart_finished(self) -> None:
        """Note that a pending restart has begun or was given up."""
        self.restarting -= 1
        if self._idle_waiters and self.is_idle:
            self._wake()

    async def wait_until_idle(self) -> None:
        """Wait until no actor handles or has a message and no restart or background task is pending.

        Timers that have not fired yet do not count. A checkpoint.
        """
        self.check_thread()
        await self.backend.checkpoint()
        while not self.is_idle:
            waiter = self.backend.waiter()
            self._idle_waiters[waiter] = None
            try:
                await waiter
            finally:
                self._idle_waiters.pop(waiter, None)

    def _tell_idle(self) -> None:
        waiters, self._idle_waiters = self._idle_waiters, {}
        for waiter in waiters:
            waiter.wake()

    def keep_idle_task(self, cell: CellWithTask) -> None:
        """Keep the idle task of a cell for a while."""
        self._idle_tasks[cell] = None
        if not self._idle_check_scheduled:
            self._idle_check_scheduled = True
            self.call_later(IDLE_TASK_SECONDS, self._end_older_idle_tasks)

    def forget_idle_task(self, cell: CellWithTask) -> None:
        """Forget the task of a cell, because it has ended."""
        self._idle_tasks.pop(cell, None)
        self._older_idle_tasks.pop(cell, None)

    def _end_older_idle_tasks(self) -> None:
        cooled, self._older_idle_tasks, self._idle_tasks = self._older_idle_tasks, self._idle_tasks, {}
        for cell in cooled:
            if cell.asleep and cell not in self._older_idle_tasks:
                cell.end_idle_task()
        self._idle_check_scheduled = bool(self._older_idle_tasks)
        if self._idle_check_scheduled:
            self.call_later(IDLE_TASK_SECONDS, self._end_older_idle_tasks)

    # Time.

    def call_later(self, delay: float, function: Callable[..., object], *args: Any) -> ScheduledCall:
        """Call a function after `delay` seconds."""
        return ScheduledCall(self.timers, self.backend.time() + delay, function, *args)

    def due_in(self, timeout: float) -> float:
        """Return the deadline of an ask with a timeout in seconds, rounded up so that many asks share it."""
        if timeout == math.inf:
            return math.inf
        due = self.backend.time() + timeout
        grain = timeout / DEADLINE_RESOLUTION
        return due - due % grain + grain if grain > 0 else due

    def inline_ask_timeout(self) -> float:
        """Return the timeout of the ask whose handler runs inline."""
        return self.ask_timeout if self.inline_timeout is None else self.inline_timeout

    # Problems.

    @abstractmethod
    def abort(self, error: BaseException) -> None:
        """End the whole system, because a handler raised an exception that is not an `Exception`."""

    def hook_failed(self, path: str, actor: str, hook: str, error: BaseException) -> None:
        """Log a failure of a `stopped` or `restarting` hook. No caller could receive the error."""
        log.error(
            "the %s hook of %s failed and was ignored: %s",
            hook,
            path,
            describe_error(error),
            error=error,
            kind=("hook", hook, actor),
        )

    def stream_failed(self, path: str, actor: str, message: Any, error: BaseException) -> None:
        """Log that the generator of a stream handler raised while it was closed."""
        log.error(
            "the stream handler of %s for %s failed in its cleanup, after its stream had ended: %s",
            path,
            safe_repr(message),
            describe_error(error),
            error=error,
            kind=("stream", actor, type_name(message)),
        )

    def policy_failed(self, path: str, policy: Any, error: BaseException) -> None:
        """Log that an overflow policy raised for a message whose sender, a timer or a thread, does not wait."""
        log.error(
            "the overflow policy of %s raised, so the message is a dead letter: %s",
            path,
            describe_error(error),
            error=error,
            kind=("policy", policy),
        )
        if ends_the_program(error):
            self.abort(error)

    def warn_of_unhandled(self, path: str, actor: str, message: Any, advice: str) -> None:
        """Warn about a message without a handler, for the first few of each pair of actor class and message class."""
        kind = (actor, type_name(message))
        seen = self._unhandled.get(kind, 0)
        if seen < WARNINGS_PER_KIND and (seen or len(self._unhandled) < KINDS_OF_WARNINGS):
            self._unhandled[kind] = seen + 1
            log.warning("%s has no handler for %s, which is a dead letter: %s", path, safe_repr(message), advice)

    # Cells.

    @abstractmethod
    def adapt(self, cell: Any, factory: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return an actor that a function returns, or one made from an async function."""

    @abstractmethod
    def forget_name(self, cell: Any) -> None:
        """Remove the name of an actor that has ended."""
