"""The settings of a client, from its URL and the other arguments."""

# redis-py types the result of its URL parser as a dictionary of anything.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import unquote, urlsplit

from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.credentials import CredentialProvider
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from cuelight._text import safe_repr, safe_str

Address = tuple[str, int] | str
"""A host and a port, or the path of a Unix socket."""

Kind = Literal["cluster", "sentinel", "single"]

_parse_url: Final[Callable[[str], dict[str, Any]]] = parse_url
_SCHEMES: Final[Mapping[str, tuple[Kind, str]]] = {
    "redis": ("single", "redis"),
    "rediss": ("single", "rediss"),
    "unix": ("single", "unix"),
    "valkey": ("single", "redis"),
    "valkeys": ("single", "rediss"),
    "redis+cluster": ("cluster", "redis"),
    "rediss+cluster": ("cluster", "rediss"),
    "redis+sentinel": ("sentinel", "redis"),
    "rediss+sentinel": ("sentinel", "rediss"),
}
_FORMS: Final = (
    "give redis://[user:password@]host[:port][/db], rediss:// for TLS, unix://[user:password@]/path[?db=0], "
    "redis+sentinel://host:port,host:port/service[/db] or redis+cluster://host:port,host:port"
)
_ESCAPES: Final = "in a user or a password, write %2F for a slash, %3F for a question mark, %23 for # and %40 for @"
_TLS: Final = frozenset(
    {
        "ssl_ca_certs",
        "ssl_ca_data",
        "ssl_ca_path",
        "ssl_cert_reqs",
        "ssl_certfile",
        "ssl_check_hostname",
        "ssl_ciphers",
        "ssl_keyfile",
        "ssl_min_version",
        "ssl_password",
    }
)
_KNOWN: Final = _TLS | {
    "client_name",
    "db",
    "encoding",
    "encoding_errors",
    "health_check_interval",
    "max_connections",
    "password",
    "protocol",
    "sentinel_password",
    "sentinel_username",
    "socket_connect_timeout",
    "socket_timeout",
    "username",
}


@dataclass(frozen=True)
class Settings:
    """The addresses of the servers and the parameters of the connections. Durations are in seconds."""

    kind: Kind
    addresses: tuple[Address, ...]
    service: str
    db: int
    timeout: float
    connect_timeout: float
    heartbeat: float
    username: str | None = field(repr=False)
    password: str | None = field(repr=False)
    credentials: CredentialProvider | None = field(repr=False)
    sentinel: tuple[str | None, str | None] = field(repr=False)
    client_name: str | None
    encoding: tuple[str, str]
    decode: bool
    tls: Mapping[str, Any] | None = field(repr=False)
    context: ssl.SSLContext | None = field(repr=False)
    max_connections: int | None

    @property
    def name(self) -> str:
        """The addresses and the database, without credentials."""
        places = ",".join(format_address(address) for address in self.addresses)
        if self.kind == "cluster":
            return f"the cluster of {places}"
        return f"{places}/{self.service}/{self.db}" if self.kind == "sentinel" else f"{places}/{self.db}"

    async def login(self) -> tuple[str, str] | None:
        """Return the user and the password. A credential provider is asked before each connection."""
        if self.credentials is not None:
            # The base class's get_credentials_async is made for asyncio and logs a warning if it is not overridden.
            provider: Any = self.credentials
            own = type(provider).get_credentials_async is not CredentialProvider.get_credentials_async
            given = await provider.get_credentials_async() if own else provider.get_credentials()
            return (given[0], given[1]) if len(given) > 1 else ("default", given[0])
        if self.password is None and self.username is None:
            return None
        return self.username or "default", self.password or ""

    def blocking(self) -> dict[str, Any]:
        """Return the options of redis-py's own connections, without the address."""
        options: dict[str, Any] = {
            "protocol": 3,
            "socket_timeout": self.timeout,
            "socket_connect_timeout": self.connect_timeout,
            "retry": Retry(NoBackoff(), 0),  # redis-py's default would repeat commands that must not run twice
            "client_name": self.client_name,
            "max_connections": self.max_connections,
            # The supported servers send none, and redis-py 7 cannot request them over Unix sockets.
            "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        }
        if self.credentials is not None:
            options["credential_provider"] = self.credentials
        else:
            options |= {"username": self.username, "password": self.password}
        if self.tls is not None:
            options |= self.tls
        return options


def format_address(address: Address) -> str:
    """Format an address for messages."""
    if isinstance(address, str):
        return address
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def settings_of(
    url: str,
    *,
    timeout: float | None = None,
    connect_timeout: float | None = None,
    health_check_interval: float | None = None,
    username: str | None = None,
    password: str | None = None,
    credential_provider: CredentialProvider | None = None,
    client_name: str | None = None,
    decode_responses: bool = False,
) -> Settings:
    """Parse a URL. Arguments override the values in the URL.

    Raises:
        ValueError: the URL or an argument is invalid. The message names the valid forms and contains no password.
    """
    kind, addresses, service, options = _parts(url)
    unknown = sorted(options.keys() - _KNOWN)
    if unknown:
        raise ValueError(
            f"{_safe(url)}: the option {safe_repr(unknown[0])} is not known; there are {', '.join(sorted(_KNOWN))}"
        )
    if int(options.get("protocol", 3)) != 3:
        raise ValueError(f"{_safe(url)}: protocol={options['protocol']}: only 3 is spoken here; leave it out")
    user = username if username is not None else options.get("username")
    secret = password if password is not None else options.get("password")
    if credential_provider is not None and (user is not None or secret is not None):
        raise ValueError(f"{_safe(url)}: give a user and a password, or a credential_provider, not both")
    for what, text in {"user": user, "password": secret}.items():
        if text is not None and not _is_text(text):
            raise ValueError(f"{_safe(url)}: the {what} has half a surrogate pair in it, which cannot be sent")
    db = _database(url, kind, options.get("db", 0))
    tls = {name: value for name, value in options.items() if name in _TLS} if _is_tls(url) else None
    if tls is None and options.keys() & _TLS:
        raise ValueError(f"{_safe(url)}: {min(options.keys() & _TLS)} is for TLS; begin the URL with rediss")
    return Settings(
        kind=kind,
        addresses=addresses,
        service=service,
        db=db,
        timeout=_seconds("timeout", timeout, options.get("socket_timeout"), 5.0),
        connect_timeout=_seconds("connect_timeout", connect_timeout, options.get("socket_connect_timeout"), 5.0),
        heartbeat=_seconds("health_check_interval", health_check_interval, options.get("health_check_interval"), 10.0),
        username=user,
        password=secret,
        credentials=credential_provider,
        sentinel=(options.get("sentinel_username"), options.get("sentinel_password")),
        client_name=client_name or options.get("client_name"),
        encoding=(options.get("encoding", "utf-8"), options.get("encoding_errors", "strict")),
        decode=decode_responses,
        tls=tls,
        context=None if tls is None else _context(url, tls),
        max_connections=options.get("max_connections"),
    )


def _parts(url: str) -> tuple[Kind, tuple[Address, ...], str, dict[str, Any]]:
    """Return the kind, the addresses, the sentinels' service, and the options that redis-py finds in a URL."""
    scheme, found, rest = str(url).partition("://")
    if not found or scheme.lower() not in _SCHEMES:
        raise ValueError(f"{_safe(url)} is no URL of Redis: {_FORMS}")
    kind, base = _SCHEMES[scheme.lower()]
    _check_escapes(url, rest)
    if base == "unix":
        options = _parsed(url, url)
        if not options.get("path"):
            raise ValueError(f"{_safe(url)}: the path of the socket is missing: {_FORMS}")
        return kind, (str(options.pop("path")),), "", options
    rest, _, query = rest.partition("?")
    netloc, _, path = rest.partition("/")
    login, at, hosts = netloc.rpartition("@")
    addresses = tuple(_address(url, host, kind) for host in hosts.split(","))
    service = ""
    if kind == "sentinel":
        service, _, path = path.partition("/")
        if not service:
            raise ValueError(f"{_safe(url)}: the name of the service is missing: {_FORMS}")
    if kind == "single" and len(addresses) > 1:
        raise ValueError(f"{_safe(url)} names several servers: begin it with redis+sentinel or redis+cluster")
    if path.strip("/") and not path.strip("/").isdecimal():
        raise ValueError(f"{_safe(url)}: what follows the host is not the number of a database: {_FORMS}")
    options = _parsed(url, f"{base}://{login}{at}h/{path}" + (f"?{query}" if query else ""))
    options.pop("host", None)
    return kind, addresses, unquote(service), options


def _check_escapes(url: str, rest: str) -> None:
    """Reject a URL in which part of a password would be parsed as something else.

    The text before the last @ is a user and a password, unless that @ is in the value of an option.

    Raises:
        ValueError: the user or the password is not escaped.
    """
    bare, _, query = rest.partition("?")
    place = bare.partition("#")[0]
    if not place.startswith("/"):  # the path of a socket may contain an @
        place = place.partition("/")[0]
    names = [option.partition("=")[0] for option in query.split("&")] if "@" in query else []
    if bare.count("@") > place.count("@") or not _KNOWN.issuperset(names):
        raise ValueError(f"{_safe(url)}: {_ESCAPES}")


def _parsed(url: str, part: str) -> dict[str, Any]:
    problem = ""
    options: dict[str, Any] = {}
    try:
        options = dict(_parse_url(part))
        if "ssl_min_version" in options:  # redis-py 7 leaves it as text
            options["ssl_min_version"] = ssl.TLSVersion(int(options["ssl_min_version"]))
    except ValueError as error:  # some messages contain the password, so they are not passed on
        problem = (
            safe_str(error) if safe_str(error).startswith("Invalid value for '") else f"it cannot be read: {_FORMS}"
        )
    if problem:
        raise ValueError(f"{_safe(url)}: {problem}")
    options.pop("connection_class", None)
    return options


def _address(url: str, text: str, kind: Kind) -> Address:
    host, port = None, None
    try:
        parts = urlsplit(f"//{text}")
        host, port, readable = parts.hostname, parts.port, True
    except ValueError:
        readable = False
    if not readable:
        raise ValueError(f"{_safe(url)}: the host or the port of a server cannot be read; {_ESCAPES}")
    return unquote(host or "localhost"), port or (26379 if kind == "sentinel" else 6379)


def _database(url: str, kind: Kind, db: Any) -> int:
    number = int(db)
    if number < 0:
        raise ValueError(f"{_safe(url)}: db={number}: databases are counted from 0")
    if kind == "cluster" and number:
        raise ValueError(f"{_safe(url)}: db={number}: a cluster has only database 0")
    return number


def _seconds(name: str, given: float | None, written: Any, default: float) -> float:
    value = default if given is None and written is None else float(written if given is None else given)
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name}={value:g}: give seconds, more than 0")
    return value


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_tls(url: str) -> bool:
    return url.lower().startswith(("rediss", "valkeys"))


def _safe(url: object) -> str:
    """Return a URL for messages. No part of it can belong to a password, however the URL is written."""
    scheme, found, rest = str(url).partition("://")
    if not found:
        scheme, rest = "", str(url)
    login, _, place = rest.rpartition("@")
    if "?" in login or "#" in login:  # the @ may belong to an option
        return safe_repr(f"{scheme}{found}...")
    place = re.split("[?#]", place)[0]
    hosts, slash, path = place.partition("/")
    odd = re.search(r":[^:,\]]*[^:,\]\d][^:,\]]*|^:", hosts)  # a port that is not a number
    if odd is not None:
        return safe_repr(f"{scheme}{found}{hosts[: odd.start()]}:...")
    return safe_repr(f"{scheme}{found}{hosts}{slash}{path}")


def _context(url: str, options: Mapping[str, Any]) -> ssl.SSLContext:
    """Return the TLS context for options with the names and defaults of redis-py."""
    try:
        context = ssl.create_default_context(
            cafile=options.get("ssl_ca_certs"), capath=options.get("ssl_ca_path"), cadata=options.get("ssl_ca_data")
        )
        needs = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}
        need = needs[str(options.get("ssl_cert_reqs", "required")).lower()]
        context.check_hostname = bool(options.get("ssl_check_hostname", True)) and need != ssl.CERT_NONE
        context.verify_mode = need
        if options.get("ssl_certfile"):
            context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"), options.get("ssl_password"))
        if options.get("ssl_min_version"):
            context.minimum_version = options["ssl_min_version"]
        if options.get("ssl_ciphers"):
            context.set_ciphers(options["ssl_ciphers"])
    except KeyError:
        raise ValueError(f"{_safe(url)}: ssl_cert_reqs is one of none, optional and required") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{_safe(url)}: the options of TLS do not fit: {error}") from error
    return context
