"""Runs a script until its reply arrives: after a lost connection or reply, the script is sent again."""

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
from cuelight.redis._client._errors import translate_error
from cuelight.redis._client._server import Argument, Script
from cuelight.redis._client._server_connections import RetryDelay

SendCommand = Callable[[Sequence[Any]], Awaitable[Any]]

LEAST: Final = 0.05
"""Minimum seconds for one attempt."""


ROUND_TRIP: Final = 0.25
"""Minimum seconds for the server's answer, even if the caller's time-out is shorter."""

AT_ONCE: Final = 1.0
"""The same for the time-out 0, which means not to wait for other owners and does not limit the network."""


def answer_time(timeout: float, left: float) -> float:
    """Return the seconds that the server has to answer a caller that may also have to wait for other owners.

    Args:
        timeout: the caller's time-out in seconds.
        left: the seconds left of it.
    """
    return max(left, ROUND_TRIP if timeout else AT_ONCE)


async def run_with_retry(
    call: SendCommand,
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
    """Run a script by its hash or its text until there is a reply or the time is over. A checkpoint.

    Args:
        call: sends a command; its reply may be an exception.
        script: the script.
        keys: the keys of the script.
        args: the other arguments of the script.
        name: the name of the server, for messages.
        timeout: the client's time-out in seconds, for all attempts together.
        limit: the caller's time-out in seconds, or None; one longer than `timeout` does not extend it.
        ended: whether to stop trying.
        first: the error of the first attempt and the time at which it began; None if there was no attempt.
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
        deadline = loop_time() + shorter_timeout(limit, timeout)
        failure = late(limit)
        with anyio.move_on_after(limit):
            failure, reply = await _attempt(call, command)
    if failure is None:
        return reply
    backoff = RetryDelay()
    while True:
        if isinstance(failure, redis_errors.NoScriptError):
            if command[0] == "EVAL":
                raise no_script(name) from failure
            command = ("EVAL", script.text, *tail)
        else:
            fault = translate_error(failure, name)
            left = deadline - loop_time()
            if not isinstance(fault, StoreUnavailable) or left <= 0 or ended():
                raise fault from failure
            await anyio.sleep(min(backoff.next(), left))
            command = ("EVALSHA", script.sha, *tail)
        # If this attempt times out, the error of the previous one is reported.
        with anyio.move_on_after(max(deadline - loop_time(), LEAST)):
            later, reply = await _attempt(call, command)
            if later is None:
                return reply
            failure = later


@interruptible
def run_with_retry_blocking(
    call: Callable[..., Any],
    script: Script,
    keys: Sequence[Argument],
    args: Sequence[Argument],
    *,
    name: str,
    timeout: float,
    ended: Callable[[], bool],
) -> Any:
    """Run a script like `run_with_retry`, but block the calling thread.

    Args:
        call: sends a command within `timeout` seconds; raises the errors that callers of a `Server` get.
        script: the script.
        keys: the keys of the script.
        args: the other arguments of the script.
        name: the name of the server, for messages.
        timeout: seconds for all attempts together.
        ended: whether to stop trying.
    """
    tail = (len(keys), *keys, *args)
    deadline, backoff = time.monotonic() + timeout, RetryDelay()
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
            time.sleep(min(backoff.next(), left))
            left = max(deadline - time.monotonic(), LEAST)


def no_script(name: str) -> StoreRefused:
    """Return the error for a server that answers NOSCRIPT to EVAL. It would answer the same again."""
    return StoreRefused(f"{name} answers NOSCRIPT to EVAL: it is no Redis or Valkey server, or runs no scripts")


async def _attempt(call: SendCommand, command: Sequence[Any]) -> tuple[Exception | None, Any]:
    """Return the error of a command, or None and its reply."""
    try:
        reply = await call(command)
    except redis_errors.RedisError as error:
        return error, None
    return (reply, None) if isinstance(reply, Exception) else (None, reply)


async def call_within(call: SendCommand, command: Sequence[Any], seconds: float) -> Any:
    """Send a command and wait at most `seconds`; return its reply or an exception. A checkpoint."""
    with anyio.move_on_after(shorter_timeout(seconds, math.inf)):
        return await call(command)
    return late(seconds)


def shorter_timeout(timeout: float | None, own: float) -> float:
    """Return the time-out of a call: the caller's or the client's own, whichever is shorter.

    Raises:
        ValueError: the caller's time-out is negative or not a number.
    """
    if timeout is None:
        return own
    if not timeout >= 0:
        raise ValueError(f"timeout={safe_repr(timeout)}: give seconds, 0 or more, or None for the client's own")
    return min(timeout, own)


def late(seconds: float) -> redis_errors.TimeoutError:
    """Return the error for a reply that did not arrive in time."""
    return redis_errors.TimeoutError(f"there was no reply within {seconds:.3g} s")
