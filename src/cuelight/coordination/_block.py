"""The block of whatever can be taken and given back: `with` in any thread, `async with` in any event loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Block"]


class Block(ABC):
    """Entering takes it, leaving gives it back."""

    __slots__ = ()

    @abstractmethod
    async def acquire(self) -> None:
        """Take it, from an event loop."""

    @abstractmethod
    def acquire_blocking(self) -> None:
        """Take it, from a thread."""

    @abstractmethod
    def release(self) -> None:
        """Give it back."""

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
