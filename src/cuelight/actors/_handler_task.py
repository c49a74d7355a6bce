"""Tasks that go on with `async def` handlers from their first wait on. On asyncio only.

The code that runs a handler up to its first wait makes such a task the current one meanwhile. What the handler binds to
its task, such as cancel scopes and time-outs, is therefore bound to the task that goes on with it.

Invariants:
1. Such a task serves one actor from the first wait of its handler on, until it ends. Before that, it may have been the
   current task of handlers of several actors, none of which waited.
2. It is not used again once it was cancelled, or a handler has left a cancel scope open in it.
"""

# Awaitables, scopes and tasks are those of asyncio and anyio: no annotation could say more.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import asyncio
import sys
import types
from collections.abc import Generator
from contextvars import Context
from typing import TYPE_CHECKING, Any

import anyio

from cuelight.mailbox import drivers, swap_current_task

if TYPE_CHECKING:
    from cuelight.actors._dispatcher import Dispatcher
    from cuelight.actors._eager_cell import EagerCell
    from cuelight.mailbox import Waiter

__all__ = ["HandlerTask", "resume"]


@types.coroutine
def resume(coroutine: Any, awaited: Any) -> Generator[Any, Any, Any]:
    """Await a coroutine that was begun elsewhere and waits for `awaited`, which it has yielded there."""
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
    """Go on in a context with a coroutine that was begun there and waits for `awaited`, or throw an error into it."""
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


# So that a task can be seen from outside to wait for what its handler waits for.
drivers[resume.__code__] = lambda variables: variables["coroutine"]
drivers[_drive.__code__] = lambda variables: variables["coroutine"]


@types.coroutine
def _begin() -> Generator[None, None, None]:
    yield


class HandlerTask:
    """A task that waits for a handler which it can go on with.

    Attributes:
        cell: the actor that it serves, once a handler of that had to wait.
        coroutine: what the task runs.
        scopes: what anyio knows of its scopes, to see whether a handler has left one open.
        scope: the cancel scope around the handlers. Cancelled, it is the last thing that the task does.
        task: the task itself.
    """

    __slots__ = ("_ending", "_in_scope", "_job", "_runtime", "_waiter", "cell", "coroutine", "scope", "scopes", "task")

    def __init__(self, runtime: Dispatcher) -> None:
        self._runtime = runtime
        self._job: tuple[Any, Any] | None = None
        self._waiter: Waiter | None = None
        self._ending = False
        self.cell: EagerCell | None = None
        self.coroutine = coroutine = self._run()
        coroutine.send(None)  # else a cancellation that comes before the task has begun would skip all of it
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
        """Whether it can be used again: it was not cancelled, and no scope was left open in it."""
        scope = self.scope
        return not (self.task.cancelling() or scope.cancel_called) and self.scopes.cancel_scope is scope

    def go_on(self, cell: EagerCell, coroutine: Any, awaited: Any) -> None:
        """Go on soon with what a cell has begun, and what waits for `awaited` now."""
        if self.cell is not cell:
            self.cell = cell
            self.task.set_name(cell.path)
        self._job = (coroutine, awaited)
        if self._waiter is not None:
            self._waiter.wake()

    def end(self) -> None:
        """It is not needed any more."""
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
                break  # cancelled by somebody
            job = error = None
            if self._ending:
                break
            pause = self._waiter = self._runtime.backend.waiter()
        self._has_ended()

    async def _perform(self, coroutine: Any, awaited: Any, error: BaseException | None) -> bool:
        """Go on with a handler, and with the mail behind it. Returns whether the task can be used again."""
        cell = self.cell
        assert cell is not None  # noqa: S101 - it came with the job
        if error is not None and isinstance(awaited, asyncio.Future) and awaited.cancel(*error.args):
            error = None  # cancelled before it began to wait here; as always, that goes through what it waits for
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
        cell.task_over(outcome, failure, caught=caught)
        return False

    def _leave_scope(self, failure: BaseException | None) -> bool:
        """Returns whether the scope takes this failure: it was cancelled, and this is that cancellation."""
        self._in_scope = False
        try:
            return self.scope.__exit__(None if failure is None else type(failure), failure, None) is True
        except BaseException:  # a handler has left a scope open, which is inside of this one
            return self.scope.cancel_called

    def _has_ended(self) -> None:
        runtime, cell = self._runtime, self.cell
        if self._in_scope:
            self._leave_scope(None)
        if cell is not None:
            self.cell = None
            cell.lost_task(self)
        if self in runtime.spare_tasks:
            runtime.spare_tasks.remove(self)
        if self._ending:
            runtime.ending_tasks -= 1
            runtime.handler_task_ended()


class _Unseen:
    """Stands for what cannot be seen."""

    def __init__(self, scope: anyio.CancelScope) -> None:
        self.cancel_scope = scope


def _scopes_of(task: asyncio.Task[Any], scope: anyio.CancelScope) -> Any:
    """What anyio knows of the cancel scopes of a task: its `cancel_scope` is the innermost one that is open."""
    states = getattr(sys.modules.get("anyio._backends._asyncio"), "_task_states", None)
    return _Unseen(scope) if states is None else states[task]
