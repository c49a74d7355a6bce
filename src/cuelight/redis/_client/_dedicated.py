"""A connection for one block, for commands that concern one connection and must not be mixed with other commands."""

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


class Dedicated(Commands):
    """A connection for one block: `WATCH`, `SELECT`, `WAIT`, `CLIENT TRACKING` and so on; made by `dedicated()`.

    It is closed when a command on it is cancelled or times out. It is not reopened, because its state would be lost.
    """

    def __init__(self, wire: Wire, server: str, timeout: float, encoding: Encoding, decode: bool) -> None:
        super().__init__(encoding, decode)
        self._wire, self._server, self._timeout = wire, server, timeout

    async def execute(self, *command: Any) -> Any:
        """Run one command and return its reply as the server sent it. A checkpoint.

        Raises:
            StoreUnavailable, StoreRefused, redis.ResponseError: see `Server`.
        """
        reply = await self._call(command)
        if isinstance(reply, Exception):
            raise translated(reply, self._server) from reply
        return reply

    async def watch(self, *names: KeyT) -> None:  # type: ignore[override]
        """Make the next transaction of this connection fail if one of these keys changes. A checkpoint."""
        await self.execute_command("WATCH", *names)

    async def unwatch(self) -> None:  # type: ignore[override]
        """Stop watching keys. A checkpoint."""
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
        except BaseException:  # cancelled: the command may block for long, and its effect is unknown
            self._wire.end(redis_errors.ConnectionError("a command was cancelled on this connection"))
            raise
        late = redis_errors.TimeoutError(f"there was no reply within {(seconds or 0.0) + self._timeout:g} s")
        self._wire.end(late)
        return [late] * len(commands)
