"""Tasks that continue `async def` handlers from their first wait on. On asyncio only.

The code that runs a handler up to its first wait makes such a task the current one in the meantime. So everything that
the handler binds to its task, such as cancel scopes and timeouts, is bound to the task that will continue it.

Invariants:
1. Such a task serves one actor from the first wait of its handler on, until it ends. Before that, it may have been the
   current task of handlers of several actors, none of which waited.
2. It is not reused after it was cancelled, or after a handler has left a cancel scope open in it.
"""

# Awaitables, scopes and tasks belong to asyncio and anyio: no annotation could say more.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import asyncio
import sys
import types
from collections.abc import Generator
from contextvars import Context
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from cuelight.mailbox import drivers, swap_current_task

if TYPE_CHECKING:
    from cuelight.mailbox import Backend, Waiter


class HandlerTaskRuntime(Protocol):
    """The runtime that handler tasks belong to."""

    backend: Backend
    context: Context
    spare_tasks: list[HandlerTask]
    ending_tasks: int

    def handler_task_ended(self) -> None:
        """Note that a task that was told to end has ended."""
        ...


class HandlerTaskOwner(Protocol):
    """The cell whose handlers a task continues."""

    context: Context

    @property
    def path(self) -> str:
        """The path of the actor in the tree."""
        ...

    def resumed(self, outcome: Any) -> None:
        """Take back the task after it has finished its work."""
        ...

    def task_ended(self, outcome: Any, failure: BaseException | None, *, caught: bool) -> None:
        """Handle the end of the task during its work."""
        ...

    def task_lost(self, worker: HandlerTask) -> None:
        """Handle the end of the task while it had no work."""
        ...


@types.coroutine
def resume(coroutine: Any, awaited: Any) -> Generator[Any, Any, Any]:
    """Await a coroutine that was begun elsewhere and waits for `awaited`, the object that it yielded there."""
    while True:
        try:
            yield awaited
        except BaseException as error:
            try:
                awaited = coroutine.throw(error)
            except StopIteration as end:
                return end.value
        else:
            break
    return (yield from coroutine)


@types.coroutine
def _drive(context: Context, coroutine: Any, awaited: Any, error: BaseException | None) -> Generator[Any, Any, Any]:
    """Continue a coroutine in the context where it was begun, or throw an error into it. It waits for `awaited`."""
    run, send, throw = context.run, coroutine.send, coroutine.throw
    try:
        if error is not None:
            awaited = run(throw, error)
        while True:
            try:
                yield awaited
            except GeneratorExit:
                coroutine.close()
                raise
            except BaseException as raised:
                awaited = run(throw, raised)
            else:
                awaited = run(send, None)
    except StopIteration as end:
        return end.value


# This makes visible from outside that a task waits for the object that its handler awaits.
drivers[resume.__code__] = lambda variables: variables["coroutine"]
drivers[_drive.__code__] = lambda variables: variables["coroutine"]


@types.coroutine
def _begin() -> Generator[None, None, None]:
    yield


class HandlerTask:
    """A task that waits for a handler to continue.

    Attributes:
        cell: the actor that it serves, set once a handler of that actor had to wait.
        coroutine: the coroutine that the task runs.
        scopes: anyio's record of the task's scopes, which shows whether a handler has left one open.
        scope: the cancel scope around the handlers. Once it is cancelled, the task ends after its current work.
        task: the task itself.
    """

    __slots__ = ("_ending", "_in_scope", "_job", "_runtime", "_waiter", "cell", "coroutine", "scope", "scopes", "task")

    def __init__(self, runtime: HandlerTaskRuntime) -> None:
        self._runtime = runtime
        self._job: tuple[Any, Any] | None = None
        self._waiter: Waiter | None = None
        self._ending = False
        self.cell: HandlerTaskOwner | None = None
        self.coroutine = coroutine = self._run()
        coroutine.send(None)  # otherwise a cancellation before the task begins would skip all of it
        backend = runtime.backend
        self.task: asyncio.Task[Any] = backend.spawn(
            lambda: coroutine, context=runtime.context.copy(), name="cuelight handlers"
        )
        before = swap_current_task(backend.loop, self.task)
        try:
            self.scope = anyio.CancelScope()
            self.scope.__enter__()
        finally:
            swap_current_task(backend.loop, before)
        self._in_scope = True
        self.scopes = _scopes_of(self.task, self.scope)

    @property
    def clean(self) -> bool:
        """Whether it can be reused: it was not cancelled, and no scope was left open in it."""
        scope = self.scope
        return not (self.task.cancelling() or scope.cancel_called) and self.scopes.cancel_scope is scope

    def continue_handler(self, cell: HandlerTaskOwner, coroutine: Any, awaited: Any) -> None:
        """Continue soon with a coroutine that a cell has begun, and that waits for `awaited` now."""
        if self.cell is not cell:
            self.cell = cell
            self.task.set_name(cell.path)
        self._job = (coroutine, awaited)
        if self._waiter is not None:
            self._waiter.wake()

    def end(self) -> None:
        """End the task, because it is no longer needed."""
        if not (self._ending or self.task.done()):
            self._ending = True
            self._runtime.ending_tasks += 1
            if self._waiter is not None:
                self._waiter.wake()

    async def _run(self) -> None:
        pause: Any = _begin()
        while True:
            error: BaseException | None = None
            try:
                await pause
            except BaseException as raised:
                error = raised
            self._waiter = None
            job, self._job = self._job, None
            if job is not None:
                if not await self._perform(*job, error):
                    break
            elif error is not None:
                break  # cancelled from outside
            job = error = None
            if self._ending:
                break
            pause = self._waiter = self._runtime.backend.waiter()
        self._has_ended()

    async def _perform(self, coroutine: Any, awaited: Any, error: BaseException | None) -> bool:
        """Continue a handler and the messages queued behind it. Return whether the task can be reused."""
        cell = self.cell
        assert cell is not None  # noqa: S101 - it came with the job
        if error is not None and isinstance(awaited, asyncio.Future) and awaited.cancel(*error.args):
            error = None  # cancelled before this wait began; as always, this arrives through the awaited future
        outcome: Any = True
        failure: BaseException | None = None
        try:
            outcome = await _drive(cell.context, coroutine, awaited, error)
        except BaseException as raised:
            failure = raised
        if failure is None and self.clean:
            cell.resumed(outcome)
            return True
        caught = self._leave_scope(failure)
        self.cell = None
        cell.task_ended(outcome, failure, caught=caught)
        return False

    def _leave_scope(self, failure: BaseException | None) -> bool:
        """Return whether the scope absorbs this failure: it was cancelled, and the failure is that cancellation."""
        self._in_scope = False
        try:
            return self.scope.__exit__(None if failure is None else type(failure), failure, None) is True
        except BaseException:  # a handler has left an inner scope open
            return self.scope.cancel_called

    def _has_ended(self) -> None:
        runtime, cell = self._runtime, self.cell
        if self._in_scope:
            self._leave_scope(None)
        if cell is not None:
            self.cell = None
            cell.task_lost(self)
        if self in runtime.spare_tasks:
            runtime.spare_tasks.remove(self)
        if self._ending:
            runtime.ending_tasks -= 1
            runtime.handler_task_ended()


class _UnknownScopes:
    """Stands for anyio's record when that is not accessible."""

    def __init__(self, scope: anyio.CancelScope) -> None:
        self.cancel_scope = scope


def _scopes_of(task: asyncio.Task[Any], scope: anyio.CancelScope) -> Any:
    """Return anyio's record of a task's cancel scopes. Its `cancel_scope` is the innermost open scope."""
    states = getattr(sys.modules.get("anyio._backends._asyncio"), "_task_states", None)
    return _UnknownScopes(scope) if states is None else states[task]
