"""The `async with` block of a pool. However it is left, the pool has ended then."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from contextlib import AsyncExitStack
    from types import TracebackType


class PoolBlock(ABC):
    """Leaving the block finishes the work of the pool; leaving it by an exception or a cancellation cancels the work.

    A pool pushes onto `_stack` everything that ends with the block, and `_leave` last.
    """

    _stack: AsyncExitStack | None = None

    @abstractmethod
    async def _end(self, *, now: bool) -> None:
        """Shut the pool down: finish its work, or cancel it if `now`."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        assert self._stack is not None  # noqa: S101 - it was entered
        return await self._stack.__aexit__(kind, error, trace)

    async def _leave(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            try:
                await self._end(now=False)
            except BaseException:
                await self._end_now()
                raise
        else:
            await self._end_now()

    async def _end_now(self) -> None:
        with anyio.CancelScope(shield=True):
            await self._end(now=True)
