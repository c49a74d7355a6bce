"""The route of batches to other nodes: over direct connections where possible, else through the server."""

from __future__ import annotations

import ssl
from typing import Any, Final, Literal

from cuelight._text import safe_repr, type_name

HIGHEST_PORT: Final = 65535


class TcpTransport:
    """Direct connections over TCP to nodes on other machines, and over Unix sockets to nodes on the same machine.

    Connections use TLS with the given contexts. In addition, each side proves that it knows the secret of the accepting
    node, which that node keeps on the server.
    """

    __slots__ = ("advertise", "host", "insecure", "port", "server_hostname", "ssl_client", "ssl_server")

    def __init__(
        self,
        host: str,
        port: int = 0,
        *,
        ssl_server: ssl.SSLContext | None = None,
        ssl_client: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
        advertise: str | None = None,
        insecure: bool = False,
    ) -> None:
        """Configure the address to listen on, and TLS.

        Args:
            host: the address to listen on, such as "10.0.0.5", or "0.0.0.0" for all addresses of this machine.
            port: the port to listen on; 0 selects a free one.
            ssl_server: the context for connections from other nodes:
                `ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)` with a certificate loaded.
            ssl_client: the context for connections to other nodes: `ssl.create_default_context(cafile=...)`.
            server_hostname: the host name in the certificates of other nodes, if it is the same for all; by default the
                host that each node advertises.
            advertise: the host under which other nodes reach this one; by default `host`, or the name of this machine
                if that is "0.0.0.0" or "::".
            insecure: whether to connect without TLS. Anyone with access to the network can then read and change the
                messages.

        Raises:
            ValueError: TLS and `insecure` are both given, or neither; or a value is invalid.
            TypeError: a context is not an `ssl.SSLContext`.
        """
        if not isinstance(host, str) or not host:  # type: ignore[redundant-expr]  # pyright: ignore
            raise ValueError(f"host={safe_repr(host)}: give the address to listen on, such as '10.0.0.5' or '0.0.0.0'")
        if type(port) is not int or not 0 <= port <= HIGHEST_PORT:
            raise ValueError(f"port={safe_repr(port)}: give 1 to {HIGHEST_PORT}, or 0 for one that is free")
        for name, context in (("ssl_server", ssl_server), ("ssl_client", ssl_client)):
            if context is not None and not isinstance(context, ssl.SSLContext):  # pyright: ignore
                raise TypeError(f"{name} is a {type_name(context)}: give an ssl.SSLContext")
        if insecure and (ssl_server is not None or ssl_client is not None):
            raise ValueError("insecure=True switches TLS off: give it, or ssl_server and ssl_client, not both")
        if not insecure and (ssl_server is None or ssl_client is None):
            raise ValueError(
                "give ssl_server and ssl_client, the contexts of TLS for both directions, or say insecure=True"
            )
        self.host, self.port, self.insecure = host, port, insecure
        self.ssl_server, self.ssl_client, self.server_hostname = ssl_server, ssl_client, server_hostname
        self.advertise = advertise

    def __repr__(self) -> str:
        return f"TcpTransport({self.host!r}, {self.port}{', insecure=True' if self.insecure else ''})"


Transport = Literal["unix", "redis"] | TcpTransport
"""`"unix"`: over Unix sockets to nodes of the same user on the same machine; `"redis"`: all through the server."""


def check_transport(transport: Any) -> None:
    """Check that a transport is valid.

    Raises:
        ValueError: it is not a transport.
    """
    if not isinstance(transport, TcpTransport) and transport not in ("unix", "redis"):
        raise ValueError(f"transport={safe_repr(transport)}: give 'unix', 'redis' or a TcpTransport")
