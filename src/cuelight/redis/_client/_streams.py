"""A connection over an anyio stream, for trio, where tasks read and write."""

from __future__ import annotations

import contextvars
import socket
from collections.abc import Callable
from typing import Any, Final

import anyio
import anyio.abc
from redis import exceptions as redis_errors

from cuelight.mailbox import Backend, TaskGroup
from cuelight.redis._client._wire import Wire

_CHUNK: Final = 65536


class StreamWire(Wire):
    """A connection that is served by two tasks."""

    def __init__(
        self,
        backend: Backend,
        timeout: float,
        heartbeat: float,
        *,
        watched: bool = True,
        on_push: Callable[[Any], bool] | None = None,
    ) -> None:
        super().__init__(backend, timeout, heartbeat, watched=watched, on_push=on_push)
        self._wake = anyio.Event()
        self._scope = anyio.CancelScope()
        self._socket: socket.socket | None = None
        self._sending = False

    def start(self, stream: anyio.abc.ByteStream) -> None:
        """Start reading and writing, in background tasks that end with the connection or with the loop."""
        if isinstance(stream, anyio.abc.SocketStream):  # without TLS
            self._socket = stream.extra(anyio.abc.SocketAttribute.raw_socket)  # noqa: S610 - not Django
        self._backend.spawn(self._serve, stream, context=contextvars.copy_context(), name="cuelight redis connection")

    def _schedule(self) -> None:
        # If other replies are pending, more commands are likely in this pass; all are sent in one write.
        if len(self._waiting) > 1 or not self._write_now():
            self._wake.set()

    def _write_now(self) -> bool:
        """Write as much as the socket accepts. Returns whether that was all; `_write` handles the rest and errors."""
        if self._socket is None or self._sending:
            return False
        batch = self._take_out()
        try:
            sent = self._socket.send(batch)
        except OSError:
            sent = 0
        if sent == len(batch):
            self._make_room()
            return True
        rest = batch[sent:]
        self._out.append(rest)
        self._out_size = len(rest)
        return False

    def _abort(self) -> None:
        self._scope.cancel()

    async def _serve(self, stream: anyio.abc.ByteStream) -> None:
        try:
            with self._scope:
                async with TaskGroup() as group:
                    group.start_soon(self._write, stream)
                    group.start_soon(self._read, stream)
        finally:
            self.end(redis_errors.ConnectionError("the connection was closed"))
            with anyio.CancelScope(shield=True):
                await anyio.aclose_forcefully(stream)
            self.closed.set()

    async def _read(self, stream: anyio.abc.ByteStream) -> None:
        try:
            while True:
                self.data_received(await stream.receive(_CHUNK))
        except anyio.EndOfStream:
            self.end(redis_errors.ConnectionError("the server closed the connection"))
        except (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            self.end(redis_errors.ConnectionError(str(error.__cause__ or error) or "the connection broke"))

    async def _write(self, stream: anyio.abc.ByteStream) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake = anyio.Event()
                self._sending = True
                while self._out:
                    batch = self._take_out()
                    self._make_room()
                    await stream.send(batch)
                self._sending = False
        except (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            self.end(redis_errors.ConnectionError(str(error.__cause__ or error) or "the connection broke"))
