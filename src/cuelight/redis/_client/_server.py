"""The seam under everything that runs on Redis: what the store, the locks, the limiters and the actors ask of a server.

`RedisClient` is one; a client of redis-py or coredis that a user has already becomes one by `use_redis_py` or
`use_coredis`. Keys of one call lie in one slot, by their hash tag.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from cuelight.redis._client._script import Script

__all__ = ["Argument", "Server", "Subscription"]

Argument = bytes | str | int | float
"""What a command is made of."""


class Subscription(Protocol):
    """A channel that is listened to, until it is closed."""

    def close(self) -> None:
        """Listen no more; callable from any thread, and more than once. Nothing is delivered after it in its loop."""
        ...


class Server(Protocol):
    """A Redis or Valkey server, or a cluster of them.

    All methods may be called from any event loop of any thread, the blocking ones from any thread that runs no loop.
    Replies are as the server sends them (RESP3): bytes, int, float, bool, None, list (of a set, too), dict.

    `timeout` is the time that a caller has left, in seconds, for connecting and all attempts together. A server has a
    time-out of its own, and goes by the shorter one. When it is over, the call raises `StoreUnavailable`.

    What they raise is one of three:

    * `StoreUnavailable`: the server could not be reached or did not answer in time: what was asked may have taken
      effect or not.
    * `StoreRefused`: it answered, and will go on to refuse until somebody changes something: credentials, rights, a
      replica that must not be written, no memory, a key of another type, a version that is too old. Nothing was done.
    * `redis.ResponseError`: what a script itself said, or a command that is wrong.
    """

    @property
    def name(self) -> str:
        """Where it is, for messages: host, port and database, without credentials."""
        ...

    async def execute(self, *command: Argument, timeout: float | None = None) -> Any:
        """Run one command once. A checkpoint.

        What is lost on the way is not sent again: nobody knows whether it took effect.
        """
        ...

    async def run(
        self,
        script: Script,
        keys: Sequence[Argument] = (),
        args: Sequence[Argument] = (),
        *,
        timeout: float | None = None,
    ) -> Any:
        """Run a script. A checkpoint.

        A script must be made so that running it again with the same arguments changes nothing more: it is sent again,
        for as long as the time-out of the client allows, when a connection was lost.
        """
        ...

    def execute_blocking(self, *command: Argument, timeout: float | None = None) -> Any:
        """As `execute`, on a connection of the calling thread, which blocks."""
        ...

    def run_blocking(
        self,
        script: Script,
        keys: Sequence[Argument] = (),
        args: Sequence[Argument] = (),
        *,
        timeout: float | None = None,
    ) -> Any:
        """As `run`, on a connection of the calling thread, which blocks."""
        ...

    async def subscribe(
        self,
        channel: str,
        on_message: Callable[[bytes], None],
        on_gap: Callable[[], None],
        *,
        timeout: float | None = None,
    ) -> Subscription:
        """Listen to a channel in the running loop. A checkpoint; returns when the server has begun to listen.

        Args:
            channel: with the hash tag of the keys that it belongs to: in a cluster it is a sharded channel.
            on_message: called in the loop with what was published; must neither block nor raise.
            on_gap: called in the loop after the connection was lost and is there again: messages may be missing.
            timeout: see above.
        """
        ...

    async def publish(self, channel: str, message: bytes) -> None:
        """Publish to a channel, sharded in a cluster. A checkpoint. A message may get lost: it is only a hint."""
        ...
