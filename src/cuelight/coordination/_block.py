"""The block of a lock or semaphore: `with` in any thread, `async with` in any event loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType


class Block(ABC):
    """Acquires on entering the block, and releases on leaving it."""

    __slots__ = ()

    @abstractmethod
    async def acquire(self) -> None:
        """Acquire it from an event loop."""

    @abstractmethod
    def acquire_blocking(self) -> None:
        """Acquire it from a thread."""

    @abstractmethod
    def release(self) -> None: ...

    def __enter__(self) -> Self:
        self.acquire_blocking()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    async def __aenter__(self) -> Self:
        await self.acquire()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
