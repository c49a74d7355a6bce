"""Injected crashes, and checks that a system leaves nothing behind."""

from __future__ import annotations

import inspect
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anyio

from cuelight._text import safe_repr
from cuelight.actors import Actor

if TYPE_CHECKING:
    from cuelight.supervision import ActorSystem


class InjectedCrash(Exception):
    """Raised in a handler by `crash_once`."""


@contextmanager
def crash_once(
    actor: type[Actor[Any]], kind: type[Any], error: Exception | None = None, *, times: int = 1
) -> Generator[None]:
    """Make the handlers of a class crash inside the block, before they do anything.

    Args:
        actor: the class of the actors.
        kind: the class of the messages.
        error: the exception to raise; an `InjectedCrash` by default.
        times: the number of crashes, over all actors of the class; after that the handlers work again.

    Raises:
        ValueError: the class has no handler for that kind of message.
    """
    table = actor.__table__
    original = table.calls.get(kind) or table.find(kind)
    if original is None:
        raise ValueError(f"{actor.__name__} has no handler for {kind.__name__}")
    handler: Any = original
    left = times

    def crash_if_due(message: object) -> None:
        nonlocal left
        if left:
            left -= 1
            raise error or InjectedCrash(f"{actor.__name__} on {safe_repr(message)}")

    async def streaming(self: Any, message: Any) -> Any:
        crash_if_due(message)
        async for chunk in handler(self, message):
            yield chunk

    async def suspending(self: Any, message: Any) -> Any:
        crash_if_due(message)
        return await handler(self, message)

    def plain(self: Any, message: Any) -> Any:
        crash_if_due(message)
        return handler(self, message)

    replacement: Any = plain
    if inspect.isasyncgenfunction(handler):
        replacement = streaming
    elif inspect.iscoroutinefunction(handler):
        replacement = suspending
    views = [calls for calls in (table.calls, table.async_calls, table.plain_calls) if kind in calls]
    for calls in views:
        calls[kind] = replacement
    try:
        yield
    finally:
        for calls in views:
            calls[kind] = original


async def wait_until_idle(system: ActorSystem) -> None:
    """Wait until no actor handles or has a message, and no restart or background task is pending.

    Timers that have not fired yet do not count. A checkpoint.
    """
    await system.wait_until_idle()


def assert_no_orphans(system: ActorSystem) -> None:
    """Check that a system whose block was left has no actors, tasks or timers left.

    Call it in the same loop, after the `async with` block.

    Raises:
        AssertionError: something is left; the message lists it.
    """
    left: list[str] = []
    if system.alive:
        left.append(f"{system.alive} actors")
    if len(system.timers):
        left.append(f"{len(system.timers)} timers")
    prefix = f"/{system.name}"
    for task in anyio.get_running_tasks():
        name = task.name or ""
        if name == prefix or name.startswith((f"{prefix}/", "cuelight dispatcher")):
            left.append(f"the task {name}")
    if left:
        raise AssertionError(f"the system {system.name!r} has ended and left behind: {', '.join(left)}")
