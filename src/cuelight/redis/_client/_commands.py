"""redis-py's command methods over cuelight's connections, and pipelines of commands that are sent in one write."""

# The command methods of redis-py are only partly typed, its tables of callbacks and its encoder not at all.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Sequence
from typing import Any, Final, Literal, Self

import anyio
import redis
from redis import exceptions as redis_errors
from redis._parsers import Encoder
from redis.client import EMPTY_RESPONSE, NEVER_DECODE
from redis.commands import AsyncCoreCommands
from redis.typing import KeyT

from cuelight.redis._client._command_info import MAY_BLOCK, blocking_timeout, command_kind
from cuelight.redis._client._connection import RedisConnection, pack, pack_all
from cuelight.redis._client._errors import translate_error

Encoding = tuple[str, str]
SendCommands = Callable[[list[tuple[Any, ...]], bool], Any]
"""Sends commands in one write, as a transaction or not, and returns their replies."""


class _Replies(AsyncCoreCommands):
    """Converts replies as redis-py's own client does with RESP3."""

    # redis-py's annotations select the awaitable methods by these attributes; nothing reads them at run time.
    _is_async_client: Literal[True] = True
    _event_dispatcher: Any = None

    def __init__(self, encoding: Encoding, decode: bool) -> None:
        self._encoding, self._decode = encoding, decode
        self._callbacks = _callbacks()

    def get_encoder(self) -> Any:
        """Return the encoder of arguments; redis-py calls this."""
        make: Any = Encoder
        return make(*self._encoding, self._decode)

    def _finish(self, name: Any, reply: Any, options: dict[str, Any]) -> Any:
        if isinstance(reply, Exception):
            if EMPTY_RESPONSE in options and isinstance(reply, redis_errors.ResponseError):
                return options[EMPTY_RESPONSE]
            raise reply
        if self._decode and NEVER_DECODE not in options:
            reply = _decoded(reply, *self._encoding)
        callback = self._callbacks.get(name)
        if callback is None and isinstance(name, str) and not name.isupper():
            callback = self._callbacks.get(name.upper())
        if callback is None:
            return reply
        return callback(reply, **{key: value for key, value in options.items() if key not in _OURS})


class Commands(_Replies):
    """Commands that are sent immediately."""

    async def _call(self, command: Sequence[Any]) -> Any:
        """Send one command; its reply may be an exception."""
        raise NotImplementedError

    async def _send(self, commands: list[tuple[Any, ...]], transaction: bool) -> list[Any]:
        """Send commands in one write."""
        raise NotImplementedError

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run one command and return its reply, converted by redis-py. A checkpoint.

        All of redis-py's command methods (`get`, `xadd`, `eval`, ...) call this one.

        Args:
            args: the name of the command and its arguments.
            options: options for redis-py's callbacks.

        Raises:
            redis.RedisError: the errors of redis-py: `ResponseError` and its subclasses, `ConnectionError`,
                `TimeoutError`.
            ValueError: the command cannot be sent over a connection that is shared.
        """
        return self._finish(args[0], await self._call(args), options)

    def pipeline(self, transaction: bool = True) -> Pipeline:
        """Return a pipeline, which collects commands until `execute` sends them in one write.

        Args:
            transaction: whether the commands take effect together, with MULTI and EXEC. Without it, the server may run
                commands of other connections in between, but none of this connection.
        """
        return Pipeline(self._send, transaction, self._encoding, self._decode)


class Pipeline(_Replies):
    """Collects commands; made by `pipeline()`.

    async with client.pipeline() as pipe:
        pipe.set("a", 1).incr("a")
        print(await pipe.execute())     # [True, 2]
    """

    def __init__(self, send: SendCommands, transaction: bool, encoding: Encoding, decode: bool) -> None:
        super().__init__(encoding, decode)
        self._send_block, self._transaction = send, transaction
        self._stack: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stack.clear()

    def __len__(self) -> int:
        return len(self._stack)

    def __bool__(self) -> bool:
        return True

    def __await__(self) -> Generator[Any, Any, Self]:
        """Return the pipeline: awaiting a command method, as with redis-py, only collects the command."""
        return self
        yield

    def execute_command(self, *args: Any, **options: Any) -> Self:
        """Collect a command; it is sent by `execute`."""
        self._stack.append((args, options))
        return self

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send the collected commands and return their replies in the same order. A checkpoint.

        Args:
            raise_on_error: whether to raise the first error. Otherwise, errors are elements of the returned list.

        Raises:
            redis.WatchError: a watched key has changed; nothing was done.
            redis.RedisError: see `execute_command`; if the server refuses a transaction, the reason.
        """
        stack, self._stack = self._stack, []
        if not stack:
            return []
        # A command to which redis-py knows the reply is invalid for the server and would abort the transaction.
        sent = [args for args, options in stack if EMPTY_RESPONSE not in options]
        replies = iter(await self._send_block(sent, self._transaction) if sent else ())
        results: list[Any] = []
        for args, options in stack:
            if EMPTY_RESPONSE in options:
                results.append(options[EMPTY_RESPONSE])
                continue
            try:
                results.append(self._finish(args[0], next(replies), options))
            except redis_errors.RedisError as error:
                if raise_on_error:
                    error.add_note(f"command {len(results) + 1} of {len(stack)} of the pipeline: {args[0]}")
                    raise
                results.append(error)
        return results


def in_transaction(commands: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Enclose commands in MULTI and EXEC."""
    return [("MULTI",), *commands, ("EXEC",)]


def transaction_replies(replies: Sequence[Any]) -> list[Any]:
    """Return the replies to the commands of a transaction.

    Raises:
        redis.WatchError: a watched key has changed.
        redis.RedisError: the server rejected a command, or the connection was lost.
    """
    *queued, result = replies
    if isinstance(result, Exception):
        refused = [reply for reply in queued if isinstance(reply, Exception)]
        raise refused[0] if refused else result
    if result is None:
        raise redis_errors.WatchError("something that was watched has changed")
    done: list[Any] = result
    return done


_OURS: Final = frozenset({EMPTY_RESPONSE, NEVER_DECODE, "keys"})


def _decoded(reply: Any, encoding: str, errors: str) -> Any:
    if isinstance(reply, bytes):
        return reply.decode(encoding, errors)
    if isinstance(reply, list):
        return [_decoded(one, encoding, errors) for one in reply]
    if isinstance(reply, dict):
        return {_decoded(key, encoding, errors): _decoded(value, encoding, errors) for key, value in reply.items()}
    return reply


@functools.cache
def _callbacks() -> dict[str, Callable[..., Any]]:
    """Return redis-py's callbacks. They are read from a client, as their other names differ between versions."""
    client = redis.Redis(protocol=3)
    try:
        return {str(name).upper(): callback for name, callback in client.response_callbacks.items()}
    finally:
        client.close()


# A connection for one block, for commands that concern one connection and must not be mixed with other commands.


class Dedicated(Commands):
    """A connection for one block: `WATCH`, `SELECT`, `WAIT`, `CLIENT TRACKING` and so on; made by `dedicated()`.

    It is closed when a command on it is cancelled or times out. It is not reopened, because its state would be lost.
    """

    def __init__(
        self, connection: RedisConnection, server: str, timeout: float, encoding: Encoding, decode: bool
    ) -> None:
        super().__init__(encoding, decode)
        self._connection, self._server, self._timeout = connection, server, timeout

    async def execute(self, *command: Any) -> Any:
        """Run one command and return its reply as the server sent it. A checkpoint.

        Raises:
            StoreUnavailable, StoreRefused, redis.ResponseError: see `Server`.
        """
        reply = await self._call(command)
        if isinstance(reply, Exception):
            raise translate_error(reply, self._server) from reply
        return reply

    async def watch(self, *names: KeyT) -> None:  # type: ignore[override]
        """Make the next transaction of this connection fail if one of these keys changes. A checkpoint."""
        await self.execute_command("WATCH", *names)

    async def unwatch(self) -> None:  # type: ignore[override]
        """Stop watching keys. A checkpoint."""
        await self.execute_command("UNWATCH")

    async def _call(self, command: Sequence[Any]) -> Any:
        seconds: float | None = blocking_timeout(command) if command_kind(command[0]) == MAY_BLOCK else 0.0
        replies = await self._block([command], seconds)
        return replies[0]

    async def _send(self, commands: list[tuple[Any, ...]], transaction: bool) -> list[Any]:
        if not transaction:
            return await self._block(commands, 0.0)
        return transaction_replies(await self._block(in_transaction(commands), 0.0))

    async def _block(self, commands: Sequence[Sequence[Any]], seconds: float | None) -> list[Any]:
        packed = pack(commands[0]) if len(commands) == 1 else pack_all(commands)
        try:
            with anyio.move_on_after(None if seconds is None else seconds + self._timeout):
                return await self._connection.call_many(packed, len(commands))
        except BaseException:  # cancelled: the command may block for long, and its effect is unknown
            self._connection.end(redis_errors.ConnectionError("a command was cancelled on this connection"))
            raise
        late = redis_errors.TimeoutError(f"there was no reply within {(seconds or 0.0) + self._timeout:g} s")
        self._connection.end(late)
        return [late] * len(commands)
