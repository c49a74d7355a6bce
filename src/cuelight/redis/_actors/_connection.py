"""One socket to another node. Writes are sent immediately as far as possible, and received data is passed on at once.

Invariants:
1. Bytes are sent in the order in which they were written.
2. `on_end` is called once, and no other callback after it.
3. `write` calls no callback: results are reported in a later pass of the loop.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, Protocol

import anyio

from cuelight._text import safe_str

if TYPE_CHECKING:
    from cuelight.actors import ActorRuntime
    from cuelight.redis._actors._endpoint import Endpoint

CHUNK: Final = 65536
"""Maximum bytes of one read."""

_LATER: Final = (BlockingIOError, InterruptedError)
_UNDER_WAY: Final = (0, errno.EINPROGRESS)


class Tls:
    """The TLS layer of a connection."""

    def __init__(self, context: ssl.SSLContext, *, server: bool, hostname: str | None) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(
            self._in, self._out, server_side=server, server_hostname=None if server else hostname
        )
        self._ready = False
        self._early = bytearray()

    def begin(self) -> bytes:
        """Return the first bytes to send."""
        self._shake_hands()
        return self._out.read()

    def _shake_hands(self) -> None:
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return
        self._ready = True
        if self._early:
            self._object.write(self._early)
            self._early.clear()

    def encrypt(self, data: bytes) -> bytes:
        """Return the bytes to send for `data`. Data written during the handshake is kept until its end."""
        if self._ready:
            self._object.write(data)
        else:
            self._early += data
        return self._out.read()

    def decrypt(self, data: bytes) -> tuple[bytes, bytes]:
        """Return the decrypted data, and the bytes to send in response.

        Raises:
            ssl.SSLError: the data is malformed, a certificate is invalid, or the other side has closed.
        """
        self._in.write(data)
        if not self._ready:
            try:
                self._shake_hands()
            except ssl.SSLError as error:
                raise _HandshakeFailed(self._out.read(), error) from error
        parts: list[bytes] = []
        with contextlib.suppress(ssl.SSLWantReadError):
            while self._ready and (part := self._object.read(CHUNK)):
                parts.append(part)
        return b"".join(parts), self._out.read()


class _HandshakeFailed(ssl.SSLError):
    """A TLS handshake failed. The alert tells the other side the reason."""

    def __init__(self, alert: bytes, error: ssl.SSLError) -> None:
        super().__init__(safe_str(error))
        self.alert = alert


class ConnectionHost(Protocol):
    """What a connection asks of the membership."""

    runtime: ActorRuntime
    over: bool
    connections: dict[NodeConnection, None]

    def start_beside(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None: ...

    def handle_error(self, error: BaseException) -> None: ...


class NodeConnection(ABC):
    """One connection of a membership. Subclasses implement the parts that differ between loops.

    Attributes:
        on_data: called with received data.
        on_end: called with the reason when the connection ends.
        on_room: called when all pending data has been sent.
        ended: whether the connection has ended.
        waiting: bytes that were written and are not sent yet.
    """

    def __init__(self, membership: ConnectionHost, connected: socket.socket, tls: Tls | None) -> None:
        self.on_data: Callable[[bytes], None] = _ignore
        self.on_end: Callable[[str], None] = _ignore
        self.on_room: Callable[[], None] = _do_nothing
        self.ended = False
        self.waiting = 0
        self._membership = membership
        self._socket = connected
        self._tls = tls
        self._out: deque[bytes | memoryview] = deque()

    def begin(self) -> None:
        """Start reading."""
        if self._membership.over:
            self.end("this node has left its cluster")
            return
        self._membership.connections[self] = None
        self._start()
        if self._tls is not None:
            try:
                self._send(self._tls.begin())
            except ssl.SSLError as error:
                self._end_soon(f"TLS: {safe_str(error)}")

    def write(self, data: bytes) -> None:
        """Send data after all data that was written before."""
        if self.ended:
            return
        if self._tls is not None:
            try:
                data = self._tls.encrypt(data)
            except ssl.SSLError as error:
                self._end_soon(f"TLS: {safe_str(error)}")
                return
        self._send(data)

    def _send(self, data: bytes) -> None:
        if not data:
            return
        sent = 0
        if not self._out:
            try:
                sent = self._socket.send(data)
            except _LATER:
                pass
            except OSError as error:
                self._end_soon(safe_str(error))
                return
            if sent == len(data):
                return
        self._out.append(memoryview(data)[sent:])
        self.waiting += len(data) - sent
        if len(self._out) == 1:
            self._watch_for_room()

    def _drain(self) -> bool:
        """Send pending data as far as possible. Returns whether all of it was sent."""
        out = self._out
        while out:
            data = out[0]
            try:
                sent = self._socket.send(data)
            except _LATER:
                return False
            except OSError as error:
                self.end(safe_str(error))
                return False
            self.waiting -= sent
            if sent < len(data):
                out[0] = data[sent:]
                return False
            out.popleft()
        return True

    def _receive(self) -> None:
        """Read once and pass the data on."""
        try:
            data = self._socket.recv(CHUNK)
        except _LATER:
            return
        except OSError as error:
            self.end(safe_str(error))
            return
        if not data:
            self.end("the other node closed it")
            return
        if self._tls is not None:
            try:
                data, reply = self._tls.decrypt(data)
            except ssl.SSLError as error:
                if isinstance(error, _HandshakeFailed):
                    self._send(error.alert)
                self.end(f"TLS: {safe_str(error)}")
                return
            self._send(reply)
        if data:
            self._call(self.on_data, data)

    def _call(self, function: Callable[..., None], *args: Any) -> None:
        try:
            function(*args)
        except BaseException as error:
            self.end("an internal error")
            self._membership.handle_error(error)

    def end(self, why: str) -> None:
        """End the connection now. Later calls do nothing."""
        if self.ended:
            return
        self.ended = True
        self._membership.connections.pop(self, None)
        self._out.clear()
        self.waiting = 0
        with contextlib.suppress(OSError):  # ends it even if a forked process has a copy of the socket
            self._socket.shutdown(socket.SHUT_RDWR)
        self._stop()
        self._call(self.on_end, why)

    def _end_soon(self, why: str) -> None:
        self.soon(lambda: self.end(why))

    @abstractmethod
    def soon(self, function: Callable[[], None]) -> None:
        """Call a function in the next pass of the loop, unless the connection has ended by then."""

    @abstractmethod
    def _start(self) -> None:
        """Start to read."""

    @abstractmethod
    def _stop(self) -> None:
        """Stop all callbacks and close the socket."""

    @abstractmethod
    def _watch_for_room(self) -> None:
        """Call `_drain` when the socket accepts more."""


class AsyncioConnection(NodeConnection):
    """On asyncio, the loop calls the connection: no task and no frame is between a socket and its user."""

    def __init__(self, membership: ConnectionHost, connected: socket.socket, tls: Tls | None) -> None:
        super().__init__(membership, connected, tls)
        self._loop = membership.runtime.backend.loop
        self._watching = False

    def soon(self, function: Callable[[], None]) -> None:
        self._loop.call_soon(self._call_unless_ended, function)

    def _call_unless_ended(self, function: Callable[[], None]) -> None:
        if not self.ended:
            self._call(function)

    def _start(self) -> None:
        self._loop.add_reader(self._socket, self._receive)

    def _stop(self) -> None:
        self._loop.remove_reader(self._socket)
        if self._watching:
            self._loop.remove_writer(self._socket)
        self._socket.close()

    def _watch_for_room(self) -> None:
        self._watching = True
        self._loop.add_writer(self._socket, self._writable)

    def _writable(self) -> None:
        if self._drain() and not self.ended:
            self._watching = False
            self._loop.remove_writer(self._socket)
            self._call(self.on_room)


class TrioConnection(NodeConnection):
    """On trio, two tasks serve the connection."""

    def __init__(self, membership: ConnectionHost, connected: socket.socket, tls: Tls | None) -> None:
        super().__init__(membership, connected, tls)
        self._lowlevel = sys.modules["trio"].lowlevel
        self._calls: list[Callable[[], None]] = []
        self._waiter = membership.runtime.backend.waiter
        self._sleeper = self._waiter()
        self._scope = anyio.CancelScope()
        self._served = False

    def soon(self, function: Callable[[], None]) -> None:
        self._calls.append(function)
        self._sleeper.wake()

    def _start(self) -> None:
        self._membership.start_beside(self._serve)

    def _stop(self) -> None:
        if self._served:
            self._scope.cancel()  # the tasks that use the socket must end first
        else:
            self._socket.close()

    def _watch_for_room(self) -> None:
        self._sleeper.wake()

    async def _serve(self) -> None:
        if self.ended:
            return
        self._served = True
        try:
            with self._scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(self._write)
                    while True:
                        await self._lowlevel.wait_readable(self._socket)
                        self._receive()
        finally:
            self._served = False
            self.end("this node closed it")
            self._socket.close()

    async def _write(self) -> None:
        while True:
            calls, self._calls = self._calls, []
            for call in calls:
                if not self.ended:
                    self._call(call)
            if self._out:
                await self._lowlevel.wait_writable(self._socket)
                if self._drain():
                    self._call(self.on_room)
            elif not self._calls:
                self._sleeper = self._waiter()
                await self._sleeper


def connection_on(membership: ConnectionHost, connected: socket.socket, tls: Tls | None) -> NodeConnection:
    """Return a connection over a connected socket."""
    kind = AsyncioConnection if membership.runtime.backend.name == "asyncio" else TrioConnection
    return kind(membership, connected, tls)


async def connect_socket(endpoint: Endpoint, *, unix: bool) -> socket.socket:
    """Connect to the address at which a node listens. A checkpoint.

    Raises:
        OSError: the connection failed.
    """
    if unix:
        return await _connect(socket.AF_UNIX, endpoint.path)
    problem: OSError | None = None
    for family, *_, address in await anyio.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM):
        try:
            return await _connect(family, address)
        except OSError as error:
            problem = error
    raise problem or OSError(f"{endpoint.host} has no address")


async def _connect(family: int, address: Any) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        code = made.connect_ex(address)
        if code not in _UNDER_WAY:
            raise OSError(code, os.strerror(code))
        await anyio.wait_writable(made)
        code = made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
        tune(made)
    except BaseException:
        made.close()
        raise
    return made


def tune(connected: socket.socket) -> None:
    """Send small batches without delay."""
    if connected.family != getattr(socket, "AF_UNIX", None):
        with contextlib.suppress(OSError):  # already broken: the reader gets the error
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _ignore(_: object) -> None: ...


def _do_nothing() -> None: ...
