"""How batches travel to other nodes: over direct connections where there can be some, else through the server."""

from __future__ import annotations

import ssl
from typing import Any, Final, Literal

from cuelight._text import safe_repr, type_name

__all__ = ["TcpTransport", "Transport", "check_transport"]

HIGHEST_PORT: Final = 65535


class TcpTransport:
    """Direct connections over TCP to nodes on other machines, and over Unix sockets to those on the same.

    Connections use TLS with the contexts that are given. Besides, each side proves that it knows the secret of the node
    that is connected to, which that node keeps in the server.
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
        """Say where to listen, and with which certificates.

        Args:
            host: the address to listen on, such as "10.0.0.5", or "0.0.0.0" for all of this machine.
            port: to listen on; 0 takes one that is free.
            ssl_server: for connections of other nodes: `ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)` with a
                certificate loaded.
            ssl_client: for connections to other nodes: `ssl.create_default_context(cafile=...)`.
            server_hostname: the name that certificates of other nodes must have, if all have the same; else it is the
                host that they advertise.
            advertise: the host under which other nodes reach this one: by default `host`, or the name of this machine
                if that is "0.0.0.0" or "::".
            insecure: connect without TLS. All who can read the network then read the messages, and can change them.

        Raises:
            ValueError: TLS and `insecure` are both given, or neither; or a value makes no sense.
            TypeError: a context is none.
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
    """Refuse what is none.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(transport, TcpTransport) and transport not in ("unix", "redis"):
        raise ValueError(f"transport={safe_repr(transport)}: give 'unix', 'redis' or a TcpTransport")
