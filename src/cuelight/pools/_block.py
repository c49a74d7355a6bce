"""The block of a pool: however it is left, nothing of the pool is left behind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from contextlib import AsyncExitStack
    from types import TracebackType

__all__ = ["PoolBlock"]


class PoolBlock(ABC):
    """Leaving it finishes what the pool has; leaving it by an exception or a cancellation cancels that.

    A pool puts what ends with the block onto `_stack`, and `_leave` on top.
    """

    _stack: AsyncExitStack | None = None

    @abstractmethod
    async def _end(self, *, now: bool) -> None:
        """Shut the pool down: finish what it has, or cancel it."""

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
