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

__all__ = ["AWAY", "Abandoned", "Call", "calls_of", "in_context", "submission_context"]


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


class Call:
    """What came of one call that `calls_of` has made; valid until the next."""

    __slots__ = ("error", "value")

    value: Any
    error: BaseException | None


AWAY: Final = object()
"""What a coroutine of `calls_of` yields when it waits for its next argument."""


@types.coroutine
def calls_of(function: Callable[[Any], Any], call: Call) -> Generator[Any, Any, None]:
    """A coroutine that awaits a function for one argument after another, each of which is sent to it.

    It does not end with a call, and an exception of a call does not leave it: to start and to end a coroutine, and to
    raise, takes more time than everything else here. Each call can be advanced in a context of its own.
    """
    while True:
        argument = yield AWAY
        call.error = None
        try:
            made = function(argument)
            call.value = yield from made if type(made) is types.CoroutineType else _awaited(made)
        except BaseException as error:
            call.error = error
        argument = made = None


async def _awaited(made: Any) -> Any:
    """For what is no coroutine of Python, but may be awaited."""
    return await made
