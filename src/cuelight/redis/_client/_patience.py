"""Running a script until its reply has come: what is lost on the way is sent again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio
from redis import exceptions as redis_errors

from cuelight.errors import StoreUnavailable
from cuelight.mailbox import loop_time
from cuelight.redis._client._faults import translated
from cuelight.redis._client._node import Pause
from cuelight.redis._client._script import Script
from cuelight.redis._client._server import Argument

__all__ = ["run_patiently"]

Call = Callable[[Sequence[Any]], Awaitable[Any]]


async def run_patiently(
    call: Call,
    script: Script,
    keys: Sequence[Argument],
    args: Sequence[Argument],
    *,
    name: str,
    timeout: float,
    ended: Callable[[], bool],
) -> Any:
    """Run a script, by its name or by its text, until there is a reply or the time is over. A checkpoint.

    Args:
        call: sends a command; its reply may be an exception.
        script: what to run.
        keys: of it.
        args: of it.
        name: where, for messages.
        timeout: seconds for all attempts together.
        ended: whether not to try again.
    """
    tail = (len(keys), *keys, *args)
    command: Sequence[Any] = ("EVALSHA", script.sha, *tail)
    deadline = loop_time() + timeout
    failure, reply = await _attempt(call, command)
    if failure is None:
        return reply
    pause = Pause()
    while True:
        if isinstance(failure, redis_errors.NoScriptError):
            command = ("EVAL", script.text, *tail)
        else:
            fault = translated(failure, name)
            left = deadline - loop_time()
            if not isinstance(fault, StoreUnavailable) or left <= 0 or ended():
                raise fault from failure
            await anyio.sleep(min(pause.next(), left))
            command = ("EVALSHA", script.sha, *tail)
        # What is late in the end failed as it did before.
        with anyio.move_on_after(max(deadline - loop_time(), 0.05)):
            later, reply = await _attempt(call, command)
            if later is None:
                return reply
            failure = later


async def _attempt(call: Call, command: Sequence[Any]) -> tuple[Exception | None, Any]:
    """How a command failed, or its reply."""
    try:
        reply = await call(command)
    except redis_errors.RedisError as error:
        return error, None
    return (reply, None) if isinstance(reply, Exception) else (None, reply)
