"""The interface through which the store, the locks, the limiters and the actors use a server.

`RedisClient` implements it. All keys of one call are in one slot, by their hash tag.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any, Final, Protocol

# Lua scripts: their text and the hash by which a server identifies them.


class Script:
    """A Lua script.

    A changed text is another script with another hash, so workers of different versions never run each other's scripts.

    Attributes:
        text: the source text, encoded.
        sha: the hash for EVALSHA.
        name: the name for messages.
    """

    __slots__ = ("name", "sha", "text")

    def __init__(self, text: str, name: str = "script") -> None:
        """Create a script from its text.

        Args:
            text: the Lua source.
            name: the name for messages.
        """
        self.text: Final = text.encode()
        self.sha: Final = hashlib.sha1(self.text, usedforsecurity=False).hexdigest().encode()
        self.name: Final = name

    def __repr__(self) -> str:
        return f"Script({self.name!r}, {self.sha.decode()[:8]})"

    @classmethod
    def load(cls, package: str, *names: str) -> Script:
        """Read a script from files of a package. Several files are concatenated; the last one gives the name.

        Args:
            package: the package, such as "cuelight.redis._locks".
            names: the names of the files, such as "lease.lua".
        """
        text = "\n".join(files(package).joinpath(name).read_text("utf-8") for name in names)
        return cls(text, names[-1].removesuffix(".lua"))


Argument = bytes | str | int | float
"""The name of a command, or an argument."""


class Subscription(Protocol):
    """A subscription to a channel, until it is closed."""

    def close(self) -> None:
        """Stop listening. May be called from any thread, and more than once.

        After a call in the subscription's own loop, nothing is delivered.
        """
        ...


class Server(Protocol):
    """A Redis or Valkey server, or a cluster of them.

    All methods may be called from any event loop of any thread; the blocking ones, from any thread that runs no loop.
    Replies are returned as the server sends them (RESP3): bytes, int, float, bool, None, list (also for a set), dict.

    `timeout` is the time that the caller has left, in seconds, for connecting and all attempts together. The server has
    a time-out of its own; the shorter one applies. When it is over, the call raises `StoreUnavailable`.

    The methods raise one of three errors:

    * `StoreUnavailable`: the server could not be reached or did not answer in time. The command may have taken effect
      or not.
    * `StoreRefused`: the server rejected the command and will reject it again until something changes: credentials,
      rights, a replica that is read-only, no memory, a key of another type, a version that is too old. Nothing was
      done.
    * `redis.ResponseError`: an error raised by a script itself, or a command that is wrong.
    """

    @property
    def name(self) -> str:
        """The host, port and database of the server for messages, without credentials."""
        ...

    async def execute(self, *command: Argument, timeout: float | None = None) -> Any:
        """Run one command once. A checkpoint.

        If the reply is lost, the command is not sent again, because it may have taken effect.
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

        Running the script again with the same arguments must change nothing more: when a connection is lost, the script
        is sent again, for as long as the time-out of the client allows.
        """
        ...

    def execute_blocking(self, *command: Argument, timeout: float | None = None) -> Any:
        """Like `execute`, for threads that run no loop. It blocks the calling thread, which gets its own connection."""
        ...

    def run_blocking(
        self,
        script: Script,
        keys: Sequence[Argument] = (),
        args: Sequence[Argument] = (),
        *,
        timeout: float | None = None,
    ) -> Any:
        """Like `run`, for threads that run no loop. It blocks the calling thread, which gets its own connection."""
        ...

    async def subscribe(
        self,
        channel: str,
        on_message: Callable[[bytes], None],
        on_gap: Callable[[], None],
        *,
        timeout: float | None = None,
    ) -> Subscription:
        """Listen to a channel in the running loop. Returns when the server has confirmed it. A checkpoint.

        Args:
            channel: the channel, with the hash tag of the keys that it belongs to; in a cluster it is a sharded
                channel.
            on_message: called in the loop with each published message; must neither block nor raise.
            on_gap: called in the loop when a lost connection is restored: messages may be missing.
            timeout: see the class.
        """
        ...

    async def publish(self, channel: str, message: bytes) -> None:
        """Publish to a channel, which is sharded in a cluster. Delivery is not guaranteed. A checkpoint."""
        ...


# The command with which a script publishes to subscribers of `Server.subscribe`.


async def publishing_command(server: Server) -> str:
    """Return the command with which a script reaches subscribers.

    It is SPUBLISH in a cluster whose servers support it, else PUBLISH. A checkpoint.

    Raises:
        StoreUnavailable: the server does not answer.
    """
    if not re.search(r"cluster_enabled:1", _text(await server.execute("INFO", "cluster"))):
        return "PUBLISH"
    version = re.search(r"redis_version:(\d+)", _text(await server.execute("INFO", "server")))
    return "SPUBLISH" if version is not None and int(version[1]) >= 7 else "PUBLISH"


def _text(reply: Any) -> str:
    return reply.decode("utf-8", "replace") if isinstance(reply, bytes) else str(reply)
