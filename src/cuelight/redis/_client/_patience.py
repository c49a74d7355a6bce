"""Running a script until its reply has come: what is lost on the way is sent again."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import anyio
from redis import exceptions as redis_errors

from cuelight._text import safe_repr
from cuelight.errors import StoreRefused, StoreUnavailable
from cuelight.mailbox import interruptible, loop_time
from cuelight.redis._client._faults import translated
from cuelight.redis._client._node import Pause
from cuelight.redis._client._script import Script
from cuelight.redis._client._server import Argument

__all__ = ["answer_time", "call_within", "late", "run_patiently", "run_patiently_blocking", "shorter"]

Call = Callable[[Sequence[Any]], Awaitable[Any]]

LEAST: Final = 0.05
"""Seconds that an attempt has at least."""


ROUND_TRIP: Final = 0.25
"""Seconds that the server has for an answer, however short the time-out of a caller is."""

AT_ONCE: Final = 1.0
"""The same for a caller that does not wait for others: its time-out is 0, which says nothing of the network."""


def answer_time(timeout: float, left: float) -> float:
    """Seconds that the server has for an answer to a caller who is to wait for others as well.

    Args:
        timeout: that the caller gave.
        left: what is left of it.
    """
    return max(left, ROUND_TRIP if timeout else AT_ONCE)


async def run_patiently(
    call: Call,
    script: Script,
    keys: Sequence[Argument],
    args: Sequence[Argument],
    *,
    name: str,
    timeout: float,
    limit: float | None,
    ended: Callable[[], bool],
    first: tuple[Exception, float] | None = None,
) -> Any:
    """Run a script, by its name or by its text, until there is a reply or the time is over. A checkpoint.

    Args:
        call: sends a command; its reply may be an exception.
        script: what to run.
        keys: of it.
        args: of it.
        name: where, for messages.
        timeout: seconds for all attempts together, as the client was told.
        limit: seconds that the caller has, if it says so; a longer one than `timeout` does not lengthen that.
        ended: whether not to try again.
        first: how the first attempt failed, and when that began; None if there was none.
    """
    tail = (len(keys), *keys, *args)
    command: Sequence[Any] = ("EVALSHA", script.sha, *tail)
    failure: Exception | None
    reply: Any = None
    if first is not None:
        failure, began = first
        deadline = began + timeout
    elif limit is None:
        deadline = loop_time() + timeout
        failure, reply = await _attempt(call, command)
    else:
        deadline = loop_time() + shorter(limit, timeout)
        failure = late(limit)
        with anyio.move_on_after(limit):
            failure, reply = await _attempt(call, command)
    if failure is None:
        return reply
    pause = Pause()
    while True:
        if isinstance(failure, redis_errors.NoScriptError):
            if command[0] == "EVAL":
                raise no_script(name) from failure
            command = ("EVAL", script.text, *tail)
        else:
            fault = translated(failure, name)
            left = deadline - loop_time()
            if not isinstance(fault, StoreUnavailable) or left <= 0 or ended():
                raise fault from failure
            await anyio.sleep(min(pause.next(), left))
            command = ("EVALSHA", script.sha, *tail)
        # What is late in the end failed as it did before.
        with anyio.move_on_after(max(deadline - loop_time(), LEAST)):
            later, reply = await _attempt(call, command)
            if later is None:
                return reply
            failure = later


@interruptible
def run_patiently_blocking(
    call: Callable[..., Any],
    script: Script,
    keys: Sequence[Argument],
    args: Sequence[Argument],
    *,
    name: str,
    timeout: float,
    ended: Callable[[], bool],
) -> Any:
    """The same in a thread, which blocks.

    Args:
        call: sends a command within `timeout` seconds; raises the errors that callers of a `Server` get.
        script: what to run.
        keys: of it.
        args: of it.
        name: where, for messages.
        timeout: seconds for all attempts together.
        ended: whether not to try again.
    """
    tail = (len(keys), *keys, *args)
    deadline, pause = time.monotonic() + timeout, Pause()
    left = timeout
    while True:
        try:
            try:
                return call("EVALSHA", script.sha, *tail, timeout=left)
            except redis_errors.NoScriptError:
                left = max(deadline - time.monotonic(), LEAST)
                try:
                    return call("EVAL", script.text, *tail, timeout=left)
                except redis_errors.NoScriptError as error:
                    raise no_script(name) from error
        except StoreUnavailable:
            left = deadline - time.monotonic()
            if left <= 0 or ended():
                raise
            time.sleep(min(pause.next(), left))
            left = max(deadline - time.monotonic(), LEAST)


def no_script(name: str) -> StoreRefused:
    """A server was given a script, and says that it does not know it: asked again it would say so again."""
    return StoreRefused(f"{name} answers NOSCRIPT to EVAL: it is no Redis or Valkey server, or runs no scripts")


async def _attempt(call: Call, command: Sequence[Any]) -> tuple[Exception | None, Any]:
    """How a command failed, or its reply."""
    try:
        reply = await call(command)
    except redis_errors.RedisError as error:
        return error, None
    return (reply, None) if isinstance(reply, Exception) else (None, reply)


async def call_within(call: Call, command: Sequence[Any], seconds: float) -> Any:
    """Send a command, and wait so many seconds at most; its reply, or an exception. A checkpoint."""
    with anyio.move_on_after(shorter(seconds, math.inf)):
        return await call(command)
    return late(seconds)


def shorter(timeout: float | None, own: float) -> float:
    """The time that a call has: what its caller gives it, or the client's own, whichever is less.

    Raises:
        ValueError: the caller gave a negative time, or no number.
    """
    if timeout is None:
        return own
    if not timeout >= 0:
        raise ValueError(f"timeout={safe_repr(timeout)}: give seconds, 0 or more, or None for the client's own")
    return min(timeout, own)


def late(seconds: float) -> redis_errors.TimeoutError:
    """There was no reply in time."""
    return redis_errors.TimeoutError(f"there was no reply within {seconds:.3g} s")
