"""Accepts the direct connections of a node, and keeps those that have not proved their identity yet.

Invariants:
1. At most `MAX_UNPROVED` connections have not proved their identity, each for at most `PROOF_TIMEOUT` seconds.
2. A failure of one connection, or a lack of descriptors, ends neither the other connections nor the node.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

import anyio

from cuelight._log import get_log
from cuelight._text import safe_str
from cuelight.redis._actors._connection import Tls, connection_on, tune
from cuelight.redis._actors._direct import Incoming
from cuelight.redis._actors._endpoint import VERSION, Endpoint, machine, new_secret
from cuelight.redis._actors._frames import FORMAT
from cuelight.redis._actors._socket_file import SUPPORTED, SocketFile, open_socket_file
from cuelight.redis._actors._transport import TcpTransport, Transport

if TYPE_CHECKING:
    from cuelight.redis._actors._direct import IncomingHost

log = get_log("cuelight.redis")

MAX_UNPROVED: Final = 64

PROOF_TIMEOUT: Final = 2.0

MAX_ACCEPTS: Final = 32
"""Connections that are accepted in one pass of the loop."""

ACCEPT_RETRY: Final = 0.2
"""Seconds until the next attempt to accept after a failure."""

_NOTHING_TO_ACCEPT: Final = (BlockingIOError, InterruptedError)
_PEER_ERRORS: Final = frozenset({errno.ECONNABORTED, errno.EPROTO, errno.EPERM})


class DirectListener:
    """Listens for one membership.

    Attributes:
        endpoint: the address for other nodes; None if they cannot connect.
    """

    def __init__(self, membership: IncomingHost, transport: Transport) -> None:
        self.endpoint: Endpoint | None = None
        self._membership, self._transport = membership, transport
        self._secret = new_secret()
        self._file: SocketFile | None = None
        self._sockets: list[tuple[socket.socket, Callable[[], Tls | None]]] = []
        self._unproved: dict[Incoming, None] = {}
        self._sweeping = False

    async def open(self) -> None:
        """Start listening. A checkpoint with TCP.

        Raises:
            OSError: listening at the given TCP address is not possible.
        """
        transport = self._transport
        if transport == "redis":
            return
        path, host, port, tls = "", "", 0, False
        try:
            self._file = open_socket_file()
        except OSError as error:
            say = log.warning if SUPPORTED else log.info
            say("no Unix socket for direct connections: %s", safe_str(error))
        else:
            path = self._file.path
            self._sockets.append((self._file.socket, _no_tls))
        if isinstance(transport, TcpTransport):
            host, port = await self._listen(transport)
            tls = not transport.insecure
        if path or host:
            self.endpoint = Endpoint(VERSION, FORMAT, self._secret, machine(), path, host, port, tls)

    async def _listen(self, transport: TcpTransport) -> tuple[str, int]:
        try:
            found = await anyio.getaddrinfo(
                transport.host, transport.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            family, _, _, _, address = found[0]
            listening = socket.create_server(tuple(address), family=family, backlog=128)
        except OSError as error:
            raise OSError(
                error.errno, f"cannot listen on {transport.host}, port {transport.port}: {safe_str(error)}"
            ) from error
        listening.setblocking(False)
        self._sockets.append((listening, partial(_server_tls, transport)))
        everywhere = transport.host in {"0.0.0.0", "::"}  # noqa: S104 - only compared
        return transport.advertise or (socket.gethostname() if everywhere else transport.host), address_port(listening)

    def start(self) -> None:
        """Start accepting connections."""
        for listening, tls in self._sockets:
            self._membership.start_beside(partial(self._accept, listening, tls))

    async def _accept(self, listening: socket.socket, tls: Callable[[], Tls | None]) -> None:
        while True:
            await anyio.wait_readable(listening)
            for _ in range(MAX_ACCEPTS):
                try:
                    connected, _ = listening.accept()
                except _NOTHING_TO_ACCEPT:
                    break
                except OSError as error:  # most likely, there are no descriptors left
                    if error.errno not in _PEER_ERRORS:
                        log.warning("%s cannot accept connections now: %s", self._membership.identity, safe_str(error))
                        await anyio.sleep(ACCEPT_RETRY)
                    break
                self._accept_one(connected, tls)

    def _accept_one(self, connected: socket.socket, tls: Callable[[], Tls | None]) -> None:
        connected.setblocking(False)
        tune(connected)
        if len(self._unproved) >= MAX_UNPROVED:
            next(iter(self._unproved)).end("too many connect at once")
        incoming = Incoming(self._membership, self, connection_on(self._membership, connected, tls()), self._secret)
        if not incoming.has_ended:
            self._unproved[incoming] = None
            self._sweep_soon()

    def _sweep_soon(self) -> None:
        if not self._sweeping:
            self._sweeping = True
            self._membership.runtime.call_later(PROOF_TIMEOUT / 4, self._sweep)

    def _sweep(self) -> None:
        """End the connections that have not proved their identity in time."""
        self._sweeping = False
        oldest = self._membership.runtime.backend.time() - PROOF_TIMEOUT
        for incoming in [one for one in self._unproved if one.since <= oldest]:
            incoming.end("it did not say in time who it is")
        if self._unproved:
            self._sweep_soon()

    def has_greeted(self, incoming: Incoming) -> None:
        """Note that a connection has proved its identity."""
        self._unproved.pop(incoming, None)

    def has_ended(self, incoming: Incoming) -> None:
        """Note that a connection has ended."""
        self._unproved.pop(incoming, None)

    def withdraw(self) -> None:
        """Remove the file of the Unix socket, so that no node connects any more."""
        if self._file is not None:
            self._file.remove()

    def close(self) -> None:
        """Stop listening, after no task waits for connections any more."""
        self.withdraw()
        for listening, _ in self._sockets:
            listening.close()
        self._sockets.clear()


def address_port(listening: socket.socket) -> int:
    """Return the port on which a socket listens."""
    port: int = listening.getsockname()[1]
    return port


def _no_tls() -> None:
    return None


def _server_tls(transport: TcpTransport) -> Tls | None:
    context = transport.ssl_server
    return None if context is None else Tls(context, server=True, hostname=None)
