"""What tests of limiters share, whether a limit is that of one process or of all."""

from __future__ import annotations

import inspect
import secrets
from collections.abc import Callable
from typing import Any

import anyio

__all__ = ["done", "unique", "until"]


def unique() -> str:
    """A name that nobody has on the server that tests share."""
    return secrets.token_hex(6)


async def done(value: Any) -> Any:
    """What a limiter of one process says at once, and one over Redis when it is awaited."""
    return await value if inspect.isawaitable(value) else value


async def until(condition: Callable[[], Any]) -> None:
    """Ask again until it is so. Only a failing test waits long."""
    with anyio.fail_after(15):
        while not await done(condition()):  # noqa: ASYNC110 - others bring it about
            await anyio.sleep(0.002)
