"""A connection of one's own: for what concerns one connection, and must not be mixed with what others ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
from redis import exceptions as redis_errors
from redis.typing import KeyT

from cuelight.redis._client._commands import Commands, Encoding, in_transaction, of_transaction
from cuelight.redis._client._faults import translated
from cuelight.redis._client._wire import Wire, pack, pack_all
from cuelight.redis._client._words import MAY_BLOCK, blocking_time, kind_of

__all__ = ["Dedicated"]


class Dedicated(Commands):
    """A connection for one block: `WATCH`, `SELECT`, `WAIT`, `CLIENT TRACKING` and so on; made by `dedicated()`.

    It ends when a command on it is cancelled or late, and is not made anew: what was set up on it would be lost, too.
    """

    def __init__(self, wire: Wire, server: str, timeout: float, encoding: Encoding, decode: bool) -> None:
        super().__init__(encoding, decode)
        self._wire, self._server, self._timeout = wire, server, timeout

    async def execute(self, *command: Any) -> Any:
        """Run one command and return its reply as the server sent it. A checkpoint.

        Raises:
            StoreUnavailable: as for a `Server`, and StoreRefused and redis.ResponseError.
        """
        reply = await self._call(command)
        if isinstance(reply, Exception):
            raise translated(reply, self._server) from reply
        return reply

    async def watch(self, *names: KeyT) -> None:  # type: ignore[override]
        """Have the next transaction of this connection fail if one of these keys changes. A checkpoint."""
        await self.execute_command("WATCH", *names)

    async def unwatch(self) -> None:  # type: ignore[override]
        """Forget what is watched. A checkpoint."""
        await self.execute_command("UNWATCH")

    async def _call(self, command: Sequence[Any]) -> Any:
        seconds: float | None = blocking_time(command) if kind_of(command[0]) == MAY_BLOCK else 0.0
        replies = await self._block([command], seconds)
        return replies[0]

    async def _send(self, commands: list[tuple[Any, ...]], transaction: bool) -> list[Any]:
        if not transaction:
            return await self._block(commands, 0.0)
        return of_transaction(await self._block(in_transaction(commands), 0.0))

    async def _block(self, commands: Sequence[Sequence[Any]], seconds: float | None) -> list[Any]:
        packed = pack(commands[0]) if len(commands) == 1 else pack_all(commands)
        try:
            with anyio.move_on_after(None if seconds is None else seconds + self._timeout):
                return await self._wire.call_block(packed, len(commands))
        except BaseException:  # cancelled: it may block for long yet, and nobody knows what it did
            self._wire.end(redis_errors.ConnectionError("a command was cancelled on this connection"))
            raise
        late = redis_errors.TimeoutError(f"there was no reply within {(seconds or 0.0) + self._timeout:g} s")
        self._wire.end(late)
        return [late] * len(commands)
