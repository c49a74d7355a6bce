"""What goes wrong between here and a server, as the errors that callers of the seam get."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

from redis import exceptions as redis_errors

from cuelight._text import describe_error, safe_repr, safe_str
from cuelight.errors import StoreRefused, StoreUnavailable

__all__ = ["read_reply", "refusal", "translated"]

T = TypeVar("T")

_ODD: Final = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What reading a reply raises if it is none that was expected."""

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
"""The codes of replies that will be the same until somebody changes something, and what that could be."""

_PASSING: Final = frozenset({"ASK", "BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MOVED", "TRYAGAIN", "UNBLOCKED"})
"""The codes of replies of a server that will soon answer otherwise. Nothing was done.

ASK and MOVED come as far as this only while servers of a cluster send commands to and fro.
"""


def refusal(error: Exception) -> bool:
    """Whether a server will go on to say this until somebody changes something."""
    return isinstance(error, redis_errors.AuthenticationError) or _code(error) in _REFUSALS


def translated(error: Exception, server: str) -> Exception:
    """The error that a caller of the seam gets.

    Args:
        error: of redis-py, of anyio or of the operating system, or a reply that is an error.
        server: where it is, for the message.
    """
    if isinstance(error, (StoreUnavailable, StoreRefused)):
        return error
    if refusal(error):
        remedy = _REFUSALS.get(_code(error))
        return StoreRefused(f"{server} refused: {_text(error)}" + (f": {remedy}" if remedy else ""))
    if isinstance(error, redis_errors.DataError):
        return error
    if isinstance(error, redis_errors.ResponseError) and _code(error) not in _PASSING:
        return error
    return StoreUnavailable(f"{server} is not to be reached: {_text(error) or type(error).__name__}")


def read_reply(server: str, asked: str, read: Callable[[Any], T], reply: Any) -> T:
    """Make something of a reply.

    Args:
        server: where it came from, for the message.
        asked: what it answers, for the message.
        read: takes the reply apart.
        reply: as it came.

    Raises:
        StoreRefused: it is not what such a call is answered with.
    """
    try:
        return read(reply)
    except _ODD as error:
        raise StoreRefused(
            f"{server} answered {asked} with what no server of Redis or Valkey says, or what another version said: "
            f"{safe_repr(reply)} ({describe_error(error)})"
        ) from error


def _code(error: Exception) -> str:
    """The first word of an error reply; redis-py takes those that it knows off the text."""
    code: str | None = getattr(error, "status_code", None)
    return code or safe_str(error).partition(" ")[0]


def _text(error: Exception) -> str:
    code, text = _code(error), safe_str(error)
    return text if text.startswith(code) or code == "ERR" else f"{code} {text}"
