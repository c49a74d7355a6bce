"""What goes wrong between here and a server, as the errors that callers of the seam get."""

from __future__ import annotations

from typing import Final

from redis import exceptions as redis_errors

from cuelight.errors import StoreRefused, StoreUnavailable

__all__ = ["refusal", "translated"]

_REFUSALS: Final = (
    "CROSSSLOT",
    "DENIED",
    "MISCONF",
    "NOAUTH",
    "NOPERM",
    "NOPROTO",
    "NOREPLICAS",
    "OOM",
    "READONLY",
    "WRONGPASS",
    "WRONGTYPE",
)
"""The first words of replies that will be the same until somebody changes something."""

_PASSING: Final = ("BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "TRYAGAIN", "UNBLOCKED")
"""The first words of replies of a server that will soon answer otherwise. Nothing was done."""


def refusal(error: Exception) -> bool:
    """Whether a server will go on to say this until somebody changes something."""
    return isinstance(error, redis_errors.AuthenticationError) or _first_word(error) in _REFUSALS


def translated(error: Exception, server: str) -> Exception:
    """The error that a caller of the seam gets.

    Args:
        error: of redis-py, of anyio or of the operating system, or a reply that is an error.
        server: where it is, for the message.
    """
    if isinstance(error, (StoreUnavailable, StoreRefused)):
        return error
    if refusal(error):
        return StoreRefused(f"{server} refused: {error}")
    if isinstance(error, redis_errors.ResponseError) and _first_word(error) not in _PASSING:
        return error
    return StoreUnavailable(f"{server} is not to be reached: {error or type(error).__name__}")


def _first_word(error: Exception) -> str:
    return str(error).partition(" ")[0]
