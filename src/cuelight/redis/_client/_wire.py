"""One connection in one event loop: what is asked for in one pass of the loop is sent at once, replies come in order.

The invariants:

1. Replies belong to commands in the order in which these were sent. A command that nobody waits for any more keeps its
   place: its reply is dropped, never given to another.
2. When the connection ends, every command without a reply fails, and none is sent again.
"""

from __future__ import annotations

import contextvars
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import anyio
import anyio.abc
import hiredis
from redis import exceptions as redis_errors

from cuelight.mailbox import Slot, current_backend, new_slot

__all__ = ["Connect", "Wire"]

Connect = Callable[[], Any]
"""Opens a byte stream."""

_CHUNK: Final = 65536


class Wire:
    """A connection that many tasks of one loop share."""

    def __init__(self, stream: anyio.abc.ByteStream, on_push: Callable[[Any], None] | None = None) -> None:
        self._stream, self._on_push = stream, on_push
        self._reader = hiredis.Reader(replyError=_reply_error)
        self._waiting: deque[Slot] = deque()
        self._out: list[bytes] = []
        self._wake = anyio.Event()
        self.ended = anyio.Event()
        self.error: Exception | None = None

    def start(self) -> None:
        """Begin to read and write, in tasks of their own."""
        backend = current_backend()
        backend.spawn(self._run, context=contextvars.copy_context(), name="cuelight redis connection")

    async def _run(self) -> None:
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._write)
                await self._read()
        except* Exception as errors:
            self._fail(_first(errors))
        finally:
            self._fail(redis_errors.ConnectionError("the connection was closed"))
            self.ended.set()
            with anyio.CancelScope(shield=True):
                await anyio.aclose_forcefully(self._stream)

    async def _read(self) -> None:
        reader, waiting = self._reader, self._waiting
        while True:
            reader.feed(await self._stream.receive(_CHUNK))
            while (reply := reader.gets()) is not False:
                if isinstance(reply, hiredis.PushNotification):
                    if self._on_push is not None:
                        self._on_push(reply)
                    continue
                slot = waiting.popleft()
                if not slot.done():
                    slot.set_result(reply)

    async def _write(self) -> None:
        while True:
            if not self._out:
                self._wake = anyio.Event()
                await self._wake.wait()
            batch = b"".join(self._out)
            self._out.clear()
            await self._stream.send(batch)

    def _fail(self, error: Exception) -> None:
        if self.error is None:
            self.error = error
        while self._waiting:
            slot = self._waiting.popleft()
            if not slot.done():
                slot.set_result(self.error)

    def close(self) -> None:
        """End it; whoever waits fails."""
        self._fail(redis_errors.ConnectionError("the connection was closed"))

    async def call(self, packed: bytes) -> Any:
        """Send one command and wait for its reply, an exception if that is an error."""
        if self.error is not None:
            return self.error
        slot = new_slot()
        self._waiting.append(slot)
        self._out.append(packed)
        self._wake.set()
        return await slot


def pack(command: Sequence[Any]) -> bytes:
    """A command as bytes."""
    packed: bytes = hiredis.pack_command(tuple(command))
    return packed


def _reply_error(text: str) -> Exception:
    return redis_errors.ResponseError(text)


def _first(errors: BaseExceptionGroup[Any]) -> Exception:
    error: Any = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return redis_errors.ConnectionError(str(error) or type(error).__name__)
