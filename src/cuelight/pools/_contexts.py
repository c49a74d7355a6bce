"""Awaiting work in another context (`contextvars`) than that of the task that awaits it, without a task for it.

A coroutine may be advanced in any context. Here a worker advances the work it was given in the context of whoever gave
it. What the work awaits goes on to the event loop as it is.
"""

# Coroutines and what they wait for are Any here: they belong to users and to event loops.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import types
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, copy_context
from typing import Any, Final

from cuelight.actors import handling
from cuelight.mailbox import drivers

__all__ = ["AWAY", "Abandoned", "Calls", "in_context", "submission_context"]


class Abandoned(GeneratorExit):
    """The coroutine of a worker was closed in the middle of its work: its event loop has ended.

    It is told in this way from a `GeneratorExit` that the work itself has raised.
    """


def submission_context() -> Context:
    """A copy of the current context, for work that is given away here.

    The work is not part of the handler that gives it away, which may end before: in particular its asks are its own.
    """
    context = copy_context()
    if handling.get() is not None:
        context.run(handling.set, None)
    return context


@types.coroutine
def in_context(context: Context, work: Coroutine[Any, Any, Any] | Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """Await a coroutine in a context."""
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
    except RuntimeError:  # the collector does this, in the midst of something else in the same context
        work.close()


AWAY: Final = object()
"""What a coroutine of `Calls` yields when it waits for its next argument."""


class Calls:
    """Awaits one function call after another, each in a context of its own, in one coroutine.

    That coroutine does not end with a call, and an exception of a call does not leave it: to start and to end a
    coroutine, and to raise, takes more time than everything else here.

    Attributes:
        function: what to call next.
        value: what the last call returned.
        error: what it raised; None if it returned.
        send: advances the coroutine; to be called in the context of the call. Returns `AWAY` when the call is over.
        throw: likewise, with an exception.
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
        """There will be no more calls."""
        self._coroutine.close()

    @types.coroutine
    def perform(self, context: Context, function: Callable[[Any], Any], argument: Any) -> Generator[Any, Any, None]:
        """Await `function(argument)` in a context. Raises nothing but `GeneratorExit`: see `value` and `error`."""
        self.function = function
        run = context.run
        trap = run(self.send, argument)
        if trap is not AWAY:
            yield from self.wait(run, trap)

    def wait(self, run: Callable[..., Any], trap: Any) -> Generator[Any, Any, None]:
        """Have the call wait for what it has yielded, and for what it yields then, until it is over.

        Args:
            run: runs a function in the context of the call.
            trap: what it has yielded.
        """
        send, throw = self.send, self.throw
        while trap is not AWAY:
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
            argument = yield AWAY
            self.error = None
            try:
                made = self.function(argument)
                coroutine: Any = made if type(made) is types.CoroutineType else _awaited(made)
                self.value = yield from coroutine
            except BaseException as error:
                self.error = error
            argument = made = coroutine = None


# So that a task can be seen from outside to wait for what its work waits for.
drivers[in_context.__code__] = lambda variables: variables["work"]
drivers[Calls.wait.__code__] = lambda variables: variables["self"]._coroutine


async def _awaited(made: Any) -> Any:
    """For what is no coroutine of Python, but may be awaited."""
    return await made
