"""The entry point of a service: one actor system, ended by signals."""

from __future__ import annotations

import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from typing import Any, TypeVar

import anyio

from cuelight.actors import ChildSpec
from cuelight.supervision._system import ActorSystem

T = TypeVar("T")


def run(
    app: Callable[[ActorSystem], Awaitable[T]] | ChildSpec[Any],
    *,
    name: str = "app",
    backend: str = "asyncio",
    backend_options: dict[str, Any] | None = None,
    **options: Any,
) -> T | None:
    """Run an application in an actor system until it ends or a signal ends it.

    The first SIGTERM or SIGINT cancels `app` and shuts the system down by its phases: actors handle their queued
    messages and stop in order. A second signal kills all actors. Signals are handled only in the main thread.

    Args:
        app: an async function that takes the system; when it returns, the system ends. Or a spec, as made by
            `child` or `supervisor`: the system ends when that actor does.
        name: the first part of all paths.
        backend: "asyncio" or "trio".
        backend_options: passed to anyio, as in `{"use_uvloop": True}`.
        **options: as for `ActorSystem`.

    Returns:
        The result of `app`, or None if a signal ended it.

    Raises:
        SystemExit: with 128 + the signal's number, after a second signal.
        ExceptionGroup: actors at the top crashed more often than the restart limit allows.
    """
    system = ActorSystem(name, **options)
    given: Any = app
    body: Any = _supervise(given) if isinstance(app, ChildSpec) else app
    result: T | None = anyio.run(_serve, system, body, backend=backend, backend_options=backend_options)
    return result


def _supervise(spec: ChildSpec[Any]) -> Callable[[ActorSystem], Awaitable[None]]:
    async def supervise(system: ActorSystem) -> None:
        ref = await system.spawn(spec)
        await ref.ended()

    return supervise


async def _serve(system: ActorSystem, body: Callable[[ActorSystem], Awaitable[Any]]) -> Any:
    result: Any = None
    forced: list[int] = []
    failure: BaseException | None = None
    with ExitStack() as stack:
        signals: AsyncIterator[signal.Signals] | None = None
        if threading.current_thread() is threading.main_thread():
            signals = stack.enter_context(anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT))
        async with anyio.create_task_group() as tasks:
            scope = anyio.CancelScope()
            if signals is not None:
                tasks.start_soon(_watch, signals, scope, system, forced)
            try:
                async with system:
                    with scope:
                        result = await body(system)
            except (Exception, SystemExit, KeyboardInterrupt) as error:
                failure = error  # raised below, because the task group would wrap it in another group
            tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if forced:
        raise SystemExit(128 + forced[0])
    return result


async def _watch(
    signals: AsyncIterator[signal.Signals], scope: anyio.CancelScope, system: ActorSystem, forced: list[int]
) -> None:
    async for number in signals:
        if not scope.cancel_called:
            scope.cancel()
        else:
            forced.append(number)
            system.root.kill(f"a second signal ({number.name})")
