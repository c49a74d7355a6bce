"""Awaiting a coroutine in another context (`contextvars`) than that of the awaiting task, without a new task.

A coroutine may be advanced in any context. A worker advances submitted work in the context of the submitter. Whatever
the work yields is passed on to the event loop unchanged.
"""

# Coroutines and the values that they yield are Any here: they belong to users and to event loops.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import types
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, copy_context
from typing import Any, Final

from cuelight.actors import current_cell
from cuelight.mailbox import drivers


class Abandoned(GeneratorExit):
    """Thrown into work when the coroutine of its worker is closed, because the event loop has ended.

    A class of its own, so that it differs from a `GeneratorExit` that the work itself raises.
    """


def submission_context() -> Context:
    """A copy of the current context, for work that is submitted here.

    The work is not part of the handler that submits it, because the handler may end first. In particular, requests
    that the work sends do not belong to the handler.
    """
    context = copy_context()
    if current_cell.get() is not None:
        context.run(current_cell.set, None)
    return context


@types.coroutine
def in_context(context: Context, work: Coroutine[Any, Any, Any] | Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    run, send = context.run, work.send
    try:
        trap = run(send, None)
        while True:
            try:
                value = yield trap
            except GeneratorExit:
                _abandon(run, work)
                raise
            except BaseException as error:
                trap = run(work.throw, error)
            else:
                trap = run(send, value)
    except StopIteration as stop:
        return stop.value


def _abandon(run: Callable[..., Any], work: Any) -> None:
    try:
        run(work.throw, Abandoned())
    except (StopIteration, GeneratorExit):
        pass
    except RuntimeError:  # the garbage collector closes it while the same context is entered elsewhere
        work.close()


CALL_DONE: Final = object()
"""Yielded by the coroutine of `ContextCalls` when it waits for its next argument."""


class ContextCalls:
    """Awaits one function call after another in one coroutine, each call in its own context.

    The coroutine does not end with a call, and an exception of a call does not leave it. Starting and ending a
    coroutine, and raising, would take more time than all other steps here.

    Attributes:
        function: the function to call next.
        value: the value that the last call returned.
        error: the exception that the last call raised; None if it returned.
        send: advances the coroutine. The caller runs it in the context of the call. Returns `CALL_DONE` when the call
            is over.
        throw: as `send`, with an exception.
    """

    __slots__ = ("_coroutine", "error", "function", "send", "throw", "value")

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function
        self.value: Any = None
        self.error: BaseException | None = None
        self._coroutine: Any = self._run()
        self.send: Callable[[Any], Any] = self._coroutine.send
        self.throw: Callable[[BaseException], Any] = self._coroutine.throw
        self.send(None)

    def close(self) -> None:
        self._coroutine.close()

    @types.coroutine
    def perform(self, context: Context, function: Callable[[Any], Any], argument: Any) -> Generator[Any, Any, None]:
        """Await `function(argument)` in a context, and set `value` and `error`. Raises only `GeneratorExit`."""
        self.function = function
        run = context.run
        trap = run(self.send, argument)
        if trap is not CALL_DONE:
            yield from self.wait(run, trap)

    def wait(self, run: Callable[..., Any], trap: Any) -> Generator[Any, Any, None]:
        """Pass everything that the call yields on to the event loop, until the call is over.

        Args:
            run: runs a function in the context of the call.
            trap: the first yielded value.
        """
        send, throw = self.send, self.throw
        while trap is not CALL_DONE:
            try:
                value = yield trap
            except GeneratorExit:
                run(throw, Abandoned())
                raise
            except BaseException as error:
                trap = run(throw, error)
            else:
                trap = run(send, value)

    @types.coroutine
    def _run(self) -> Generator[Any, Any, None]:
        while True:
            argument = yield CALL_DONE
            self.error = None
            try:
                made = self.function(argument)
                coroutine: Any = made if type(made) is types.CoroutineType else _awaited(made)
                self.value = yield from coroutine
            except BaseException as error:
                self.error = error
            argument = made = coroutine = None


# Lets an observer of a task see the await of the work that the task advances.
drivers[in_context.__code__] = lambda variables: variables["work"]
drivers[ContextCalls.wait.__code__] = lambda variables: variables["self"]._coroutine


async def _awaited(made: Any) -> Any:
    """Wrap an awaitable that is not a native coroutine."""
    return await made
