"""Maps failures of a connection or a server to the errors that callers of `Server` get."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

from redis import exceptions as redis_errors

from cuelight._text import describe_error, safe_repr, safe_str
from cuelight.errors import StoreRefused, StoreUnavailable

T = TypeVar("T")

_ODD: Final = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""The errors that reading an unexpected reply raises."""

_REFUSALS: Final = {
    "CROSSSLOT": "give the keys of one call the same hash tag",
    "DENIED": "",
    "MISCONF": "",
    "NOAUTH": "give a user and a password",
    "NOPERM": "",
    "NOPROTO": "",
    "NOREPLICAS": "",
    "OOM": "the memory of the server is full",
    "READONLY": "give the address of the primary, or of its sentinels (redis+sentinel://)",
    "WRONGPASS": "",
    "WRONGTYPE": "",
}
"""The codes of errors that stay the same until the configuration or data changes, each with a remedy."""

_PASSING: Final = frozenset({"ASK", "BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MOVED", "TRYAGAIN", "UNBLOCKED"})
"""The codes of errors from a server that will soon answer differently. Nothing was done.

ASK and MOVED get here only while the servers of a cluster keep redirecting a command.
"""


def is_permanent(error: Exception) -> bool:
    """Return whether a server will repeat this error until its configuration or data changes."""
    return isinstance(error, redis_errors.AuthenticationError) or _code(error) in _REFUSALS


def translate_error(error: Exception, server: str) -> Exception:
    """Return the error that a caller of `Server` gets.

    Args:
        error: an error of redis-py, of anyio or of the operating system, or an error reply.
        server: the name of the server, for the message.
    """
    if isinstance(error, (StoreUnavailable, StoreRefused)):
        return error
    if is_permanent(error):
        remedy = _REFUSALS.get(_code(error))
        return StoreRefused(f"{server} refused: {_text(error)}" + (f": {remedy}" if remedy else ""))
    if isinstance(error, redis_errors.DataError):
        return error
    if isinstance(error, redis_errors.ResponseError) and _code(error) not in _PASSING:
        return error
    return StoreUnavailable(f"{server} is not to be reached: {_text(error) or type(error).__name__}")


def read_reply(server: str, asked: str, read: Callable[[Any], T], reply: Any) -> T:
    """Convert a reply.

    Args:
        server: the name of the server, for the message.
        asked: the command, for the message.
        read: converts the reply.
        reply: the reply as it was received.

    Raises:
        StoreRefused: the reply does not fit the command.
    """
    try:
        return read(reply)
    except _ODD as error:
        raise StoreRefused(
            f"{server} answered {asked} with what no server of Redis or Valkey says, or what another version said: "
            f"{safe_repr(reply)} ({describe_error(error)})"
        ) from error


def _code(error: Exception) -> str:
    """Return the first word of an error reply. redis-py removes the codes that it knows from the text."""
    code: str | None = getattr(error, "status_code", None)
    return code or safe_str(error).partition(" ")[0]


def _text(error: Exception) -> str:
    code, text = _code(error), safe_str(error)
    return text if text.startswith(code) or code == "ERR" else f"{code} {text}"
