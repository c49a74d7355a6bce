"""Fenced values: writes with an old fencing token are rejected. Only this makes a lock over a network safe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import ResponseError

from cuelight._text import safe_repr, safe_str
from cuelight.errors import LeaseLost, StoreRefused
from cuelight.redis._client import Script, read_reply
from cuelight.redis._locks._lease import LockLease

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cuelight.redis._client import Argument, Server
from cuelight.tasks._stores._checks import check_text

_FENCE: Final = Script.load("cuelight.redis._locks", "fence.lua")


def fence_key(key: str) -> str:
    """Return the key that stores the fencing token of a value; it is in the same cluster slot as the value.

    Args:
        key: the key of the value.

    Raises:
        ValueError: the key has braces but no hash tag, so no other key can share its slot; or it is
            not Unicode text.
    """
    check_text("fence_key", key=key)
    opening = key.find("{")
    closing = key.find("}", opening + 1)
    if opening >= 0 and closing > opening + 1:
        return f"{key}:fence"
    if not key or "}" in key:
        raise ValueError(f"key={safe_repr(key)}: give it no braces, or a hash tag such as '{{order:17}}:total'")
    return f"{{{key}}}:fence"


async def fenced_set(
    server: Server, key: str, value: bytes | str, fence: int | LockLease, *, ttl: float | None = None
) -> None:
    """Set a value in Redis, unless it was set with a greater fencing token. A checkpoint.

    The comparison and the change are one atomic step. The value can be read as usual, with GET.

    Args:
        server: the server of the value.
        key: the key of the value.
        value: the new value.
        fence: the holder's lease, which is also checked, or its fencing token.
        ttl: seconds after which the value and its token are deleted; None keeps both.

    Raises:
        LeaseLost: the value was set with a greater token, or the lease is over. Nothing was changed.
        StoreUnavailable: the server cannot be reached.
        StoreRefused: the server rejects the call, or the stored token is not a number.
        ValueError: the token or `ttl` is invalid.
    """
    keys, args = _call(key, value, fence, ttl)
    try:
        reply = await server.run(_FENCE, keys, args)
    except ResponseError as error:
        raise _refused(server, key, error) from error
    _check_fence(server, key, fence, reply)


def fenced_set_blocking(
    server: Server, key: str, value: bytes | str, fence: int | LockLease, *, ttl: float | None = None
) -> None:
    """Like `fenced_set`, but blocks the thread: for threads without an event loop."""
    keys, args = _call(key, value, fence, ttl)
    try:
        reply = server.run_blocking(_FENCE, keys, args)
    except ResponseError as error:
        raise _refused(server, key, error) from error
    _check_fence(server, key, fence, reply)


def _call(
    key: str, value: bytes | str, fence: int | LockLease, ttl: float | None
) -> tuple[Sequence[Argument], Sequence[Argument]]:
    if isinstance(fence, LockLease):
        fence.check()
    if ttl is not None and not ttl >= 0.001:
        raise ValueError(f"ttl={safe_repr(ttl)}: give seconds, 0.001 or more, or None to keep it")
    token = _fence_value(fence)
    if token < 1:
        raise ValueError(f"fence={safe_repr(fence)}: give the fencing token of a lease, which is 1 or more")
    return (key, fence_key(key)), (token, value, 0 if ttl is None else round(ttl * 1000))


def _refused(server: Server, key: str, error: ResponseError) -> StoreRefused:
    return StoreRefused(
        f"{server.name} did not set {safe_repr(key)}: {safe_str(error)}. What is at {safe_repr(fence_key(key))} is no "
        f"fencing token: something else wrote to that key"
    )


def _check_fence(server: Server, key: str, fence: int | LockLease, reply: Any) -> None:
    done, known = read_reply(server.name, f"the setting of {safe_repr(key)}", lambda it: (it[0], int(it[1])), reply)
    if done != 1:
        raise LeaseLost(
            f"{safe_repr(key)} was set under fence {known} already, which is greater than {_fence_value(fence)}: "
            f"somebody else holds the lock now, or did since. Nothing was changed"
        )


def _fence_value(fence: int | LockLease) -> int:
    return fence.fence if isinstance(fence, LockLease) else fence
