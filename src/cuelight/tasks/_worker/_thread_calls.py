"""Runs async functions in a worker's event loop on behalf of the threads of its tasks."""

from __future__ import annotations

from concurrent.futures import CancelledError, Future
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Self

from cuelight.mailbox import TaskGroup

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

    from cuelight.mailbox import Backend


class ThreadCalls:
    """Runs async functions in the loop for threads that wait for them to end, while its block is open."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._group = TaskGroup()
        self._open = False
        self._pending: set[Future[None]] = set()

    def call(self, function: Callable[..., Awaitable[None]], *args: object) -> None:
        """Run `function(*args)` in the loop and wait until it ends. For threads other than the loop's.

        Raises:
            CancelledError: the block was left, or the loop has ended.
        """
        future: Future[None] = Future()
        self._pending.add(future)
        try:
            if not self._open:  # after the future was added, so __aexit__ cancels it or this check fails
                raise CancelledError
            try:
                self._backend.call_threadsafe(self._start, future, copy_context(), function, args)
            except RuntimeError:
                raise CancelledError from None
            future.result()
        finally:
            self._pending.discard(future)

    def _start(self, future: Future[None], context: Any, function: Callable[..., Awaitable[None]], args: Any) -> None:
        if self._open:
            context.run(self._group.start_soon, self._run, future, function, args)
        else:
            future.cancel()

    async def _run(self, future: Future[None], function: Callable[..., Awaitable[None]], args: Any) -> None:
        try:
            await function(*args)
        except BaseException as error:
            if isinstance(error, self._backend.cancelled):
                future.cancel()
            elif not future.done():
                future.set_exception(error)
            if not isinstance(error, Exception):
                raise
        else:
            if not future.done():
                future.set_result(None)

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self._open = False
        self._group.cancel_scope.cancel()
        try:
            return await self._group.__aexit__(kind, error, trace)
        finally:
            for future in tuple(self._pending):
                future.cancel()
