"""Connects a node to another one while it has frames to send, at longer intervals after each failure."""

from __future__ import annotations

import math
import ssl
from typing import TYPE_CHECKING, Final, Protocol

import anyio
from redis.exceptions import ResponseError

from cuelight._log import get_log
from cuelight._text import safe_str
from cuelight.coordination._spread import spread
from cuelight.errors import StoreRefused, StoreUnavailable
from cuelight.redis._actors._connection import ConnectionHost, Tls, connect_socket, connection_on
from cuelight.redis._actors._direct import Outgoing, OutgoingUser
from cuelight.redis._actors._endpoint import Endpoint, Hello, decode_endpoint, machine, nonce
from cuelight.redis._actors._frames import FORMAT
from cuelight.redis._actors._transport import TcpTransport, Transport

if TYPE_CHECKING:
    from cuelight.redis._actors._directory import Directory

log = get_log("cuelight.redis")

FIRST_DELAY: Final = 0.05
LONGEST_DELAY: Final = 5.0
"""Seconds between two attempts."""

STABLE_AFTER: Final = 5.0
"""Seconds after which a connection counts as stable."""

ATTEMPT_TIMEOUT: Final = 2.0
"""Seconds that an attempt may take."""


class ConnectorHost(ConnectionHost, Protocol):
    """What a connector asks of the membership."""

    identity: str
    directory: Directory
    transport: Transport


class Connector:
    """Connects to one peer."""

    def __init__(self, user: OutgoingUser, identity: str, membership: ConnectorHost) -> None:
        self._user, self._identity, self._membership = user, identity, membership
        self._busy = False
        self._next = -math.inf if membership.transport != "redis" else math.inf
        self._delay = FIRST_DELAY
        self._connected = -math.inf

    def connect_soon(self) -> None:
        """Try to connect, unless an attempt is running or was made just before. Not a checkpoint."""
        if not self._busy and self._next <= self._membership.runtime.backend.time():
            self._busy = True
            self._membership.start_beside(self._connect)

    def give_up(self) -> None:
        """Never connect to this peer again: it has no endpoint for this node, or its state contradicts this node's."""
        self._next = math.inf

    def disconnected(self) -> None:
        """Delay the next attempt after a connection has ended; only briefly if that connection was stable."""
        now = self._membership.runtime.backend.time()
        if now - self._connected > STABLE_AFTER:
            self._delay = FIRST_DELAY
        self._next = max(self._next if self._next == math.inf else 0.0, now + self._delay * spread.uniform(0.5, 1.0))
        self._delay = min(self._delay * 2, LONGEST_DELAY)

    async def _connect(self) -> None:
        outgoing: Outgoing | None = None
        problem = "it took too long"
        try:
            with anyio.move_on_after(ATTEMPT_TIMEOUT):
                outgoing = await self._opened()
                if outgoing is None:
                    self.give_up()
                    return
                await outgoing.greeted.wait()
                problem = outgoing.problem
        except (OSError, ValueError, StoreUnavailable, StoreRefused, ResponseError) as error:  # TLS errors are OSErrors
            problem = safe_str(error)
        finally:
            self._busy = False
            self._connected = self._membership.runtime.backend.time()
            if problem:
                self.disconnected()
                if outgoing is not None:
                    outgoing.end(problem)
        if problem:
            log.info("no direct connection to %s, which is reached through the server: %s", self._identity, problem)

    async def _opened(self) -> Outgoing | None:
        """Return a connection that is not greeted yet; None if there will never be one."""
        membership, identity = self._membership, self._identity
        found = await membership.directory.endpoint_of(identity)
        endpoint = None if found is None else decode_endpoint(found)
        unix = route_to(endpoint, membership.transport)
        if endpoint is None or unix is None:
            return None
        tls = None if unix else client_tls(endpoint, membership.transport)
        connected = await connect_socket(endpoint, unix=unix)
        connection = connection_on(membership, connected, tls)
        hello = Hello(FORMAT, membership.directory.cluster, membership.identity, identity, nonce())
        return Outgoing(self._user, hello, connection, endpoint.secret)


def route_to(endpoint: Endpoint | None, transport: Transport) -> bool | None:
    """Return the route to an endpoint: True for its Unix socket, False for TCP, None if there is none."""
    if endpoint is None:
        return None
    if endpoint.path and endpoint.machine == machine():
        return True
    if endpoint.host and isinstance(transport, TcpTransport) and endpoint.tls is not transport.insecure:
        return False
    return None


def client_tls(endpoint: Endpoint, transport: Transport) -> Tls | None:
    """Return the TLS layer for a connection to an endpoint, or None."""
    context: ssl.SSLContext | None = transport.ssl_client if isinstance(transport, TcpTransport) else None
    if context is None or not isinstance(transport, TcpTransport):
        return None
    return Tls(context, server=False, hostname=transport.server_hostname or endpoint.host)
