"""The connection for push messages. One task subscribes to the channels that have subscribers, and to no others.

The invariants:

1. While any channel has a subscriber, there is a connection that answered recently, or the next one is being opened.
2. After each loss of its connection, a subscriber is notified of a gap once its channel is subscribed again.
3. A closed subscriber receives nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import anyio
from redis import exceptions as redis_errors

from cuelight._log import get_log
from cuelight.errors import StoreRefused, ends_the_program
from cuelight.mailbox import call_in_loop, running_loop
from cuelight.redis._client._connect import OpenedConnection
from cuelight.redis._client._connection import RedisConnection, pack_all
from cuelight.redis._client._errors import is_permanent
from cuelight.redis._client._server_connections import RetryDelay

log = get_log("cuelight.redis")

_CONFIRMED: Final = frozenset({b"ssubscribe", b"subscribe", b"sunsubscribe", b"unsubscribe"})
_SHARDED_SINCE: Final = (7, 0)


class PubSubChannel:
    """A channel and its subscribers.

    Attributes:
        pubsub: the connection that is subscribed to the channel; in a cluster, the channel may move to another.
    """

    def __init__(self, name: bytes, pubsub: PubSubConnection) -> None:
        self.name, self.pubsub = name, pubsub
        self.subscribers: list[Subscriber] = []


class Subscriber:
    """A subscriber of a channel."""

    def __init__(self, loop: Any, on_message: Callable[[bytes], None], on_gap: Callable[[], None]) -> None:
        self._loop, self._on_message, self._on_gap = loop, on_message, on_gap
        self.pubsub_channel: PubSubChannel | None = None
        self.open = True
        self.error: Exception | None = None
        self.confirmed = anyio.Event()
        self._heard = False

    def close(self) -> None:
        """Unsubscribe. May be called from any thread."""
        if not self.open:
            return
        self.open = False
        if running_loop() is self._loop:
            self._leave()
        else:
            call_in_loop(self._loop, self._leave)

    def _leave(self) -> None:
        pubsub_channel = self.pubsub_channel
        if pubsub_channel is not None and self in pubsub_channel.subscribers:
            pubsub_channel.subscribers.remove(self)
            pubsub_channel.pubsub.unsubscribe_if_unused(pubsub_channel)

    def deliver(self, message: bytes) -> None:
        if self.open:
            _guard(self._on_message, message)

    def confirm(self) -> None:
        """Note that the channel is subscribed, for the first time or again."""
        if not self._heard:
            self._heard = True
            self.confirmed.set()
        elif self.open:
            _guard(self._on_gap)

    def fail(self, error: Exception) -> None:
        """Note that the channel will not be subscribed."""
        self.open, self.error = False, error
        self.confirmed.set()


def _guard(call: Callable[..., None], *args: object) -> None:
    try:
        call(*args)
    except BaseException as error:
        log.exception("a subscriber of a channel raised an error")
        if ends_the_program(error):
            raise


class PubSubConnection:
    """A connection for the channels of one server in one loop."""

    def __init__(
        self,
        open_connection: Callable[[Callable[[Any], bool]], Awaitable[OpenedConnection]],
        *,
        sharded: bool = False,
        on_loss: Callable[[PubSubConnection], Awaitable[None]] | None = None,
    ) -> None:
        """Create a connection; `run` opens it.

        Args:
            open_connection: opens a connection that passes push messages to a function.
            sharded: whether the channels belong to slots of a cluster.
            on_loss: called before each connection; may move channels to other connections.
        """
        self._open, self._sharded, self._on_loss = open_connection, sharded, on_loss
        self.channels: dict[bytes, PubSubChannel] = {}
        self._subscribed: set[bytes] = set()
        self._wake = anyio.Event()
        self._connection: RedisConnection | None = None
        self._prefix = ""
        self.last_error: Exception | None = None

    def listen(self, channel: bytes, subscriber: Subscriber) -> None:
        """Add a subscriber. It is confirmed once the channel is subscribed."""
        pubsub_channel = self.channels.get(channel)
        if pubsub_channel is None:
            pubsub_channel = self.channels[channel] = PubSubChannel(channel, self)
        pubsub_channel.subscribers.append(subscriber)
        subscriber.pubsub_channel = pubsub_channel
        if channel in self._subscribed:
            subscriber.confirm()
        else:
            self._wake.set()

    def adopt(self, pubsub_channel: PubSubChannel) -> None:
        """Take over a channel from another connection."""
        pubsub_channel.pubsub = self
        known = self.channels.setdefault(pubsub_channel.name, pubsub_channel)
        if known is not pubsub_channel:
            known.subscribers += pubsub_channel.subscribers
            for subscriber in pubsub_channel.subscribers:
                subscriber.pubsub_channel = known
        self._subscribed.discard(pubsub_channel.name)
        self._wake.set()

    def unsubscribe_if_unused(self, pubsub_channel: PubSubChannel) -> None:
        """Unsubscribe from a channel that has no subscribers."""
        if not pubsub_channel.subscribers and self.channels.get(pubsub_channel.name) is pubsub_channel:
            del self.channels[pubsub_channel.name]
            self._wake.set()

    async def run(self) -> None:
        """Keep the connection open until the task is cancelled."""
        backoff = RetryDelay()
        while True:
            while not self.channels:
                await self._wait_for_change()
            try:
                await self._serve(backoff)
            except (redis_errors.RedisError, StoreRefused) as error:
                self._on_lost(error)
            except Exception as error:  # any error: without this task nothing would subscribe again
                log.exception("the connection for push messages failed")
                self._subscribed.clear()
                self.last_error = error
            await anyio.sleep(backoff.next())

    async def _wait_for_change(self) -> None:
        await self._wake.wait()
        self._wake = anyio.Event()

    def _on_lost(self, error: Exception) -> None:
        self._subscribed.clear()
        self.last_error = error
        if isinstance(error, StoreRefused) or is_permanent(error):
            # Subscribers whose channel was subscribed before keep waiting, as the server accepted them. New ones
            # fail.
            for pubsub_channel in list(self.channels.values()):
                for subscriber in [one for one in pubsub_channel.subscribers if not one.confirmed.is_set()]:
                    pubsub_channel.subscribers.remove(subscriber)
                    subscriber.fail(error)
                self.unsubscribe_if_unused(pubsub_channel)
        else:
            log.debug("the connection for push messages was lost: %s", error)

    async def _serve(self, backoff: RetryDelay) -> None:
        """Connect, and keep the subscriptions up to date until the connection ends."""
        if self._on_loss is not None:
            await self._on_loss(self)
        opened = await self._open(self._on_push)
        connection = self._connection = opened.connection
        self._prefix = "S" if self._sharded and opened.version >= _SHARDED_SINCE else ""
        ended = connection.on_end
        wake = self._wake_up

        def on_end(gone: RedisConnection) -> None:
            ended(gone)
            wake()

        connection.on_end = on_end
        self._subscribed.clear()
        try:
            while connection.error is None:
                if await self._update_subscriptions(connection):
                    backoff.reset()
                else:
                    await self._wait_for_change()
        finally:
            connection.end(redis_errors.ConnectionError("the connection for push messages was given up"))
        raise connection.error

    def _wake_up(self) -> None:
        self._wake.set()

    async def _update_subscriptions(self, connection: RedisConnection) -> bool:
        """Subscribe to missing channels, unsubscribe from unused ones. Returns whether there was anything to do."""
        wanted = [name for name in self.channels if name not in self._subscribed]
        unwanted = [name for name in self._subscribed if name not in self.channels]
        self._subscribed.difference_update(unwanted)
        commands = [(f"{self._prefix}UNSUBSCRIBE", name) for name in unwanted]
        commands += [(f"{self._prefix}SUBSCRIBE", name) for name in wanted]
        if not commands:
            return False
        replies = await connection.call_many(pack_all(commands), len(commands))
        for name, reply in zip(wanted, replies[len(unwanted) :], strict=True):
            if not isinstance(reply, Exception):
                self._confirm(name)
            elif isinstance(reply, (redis_errors.ConnectionError, redis_errors.TimeoutError)):
                raise reply
            elif isinstance(reply, redis_errors.MovedError):
                raise redis_errors.ConnectionError(f"a channel moved: {reply}")
            else:
                self._refuse(name, reply)
        return True

    def _confirm(self, name: bytes) -> None:
        self._subscribed.add(name)
        pubsub_channel = self.channels.get(name)
        for subscriber in list(pubsub_channel.subscribers) if pubsub_channel is not None else ():
            subscriber.confirm()

    def _refuse(self, name: bytes, error: Exception) -> None:
        pubsub_channel = self.channels.pop(name, None)
        log.warning("the server refuses to let this client listen to %r: %s", name, error)
        for subscriber in pubsub_channel.subscribers if pubsub_channel is not None else ():
            subscriber.fail(error)

    def _on_push(self, push: Any) -> bool:
        """Deliver a message. Returns whether the push message is the reply to a command."""
        match push:
            case [bytes(kind), bytes(name), *rest]:
                pass
            case _:
                return False  # it belongs to no subscription
        if kind in {b"message", b"smessage"}:
            pubsub_channel = self.channels.get(name) if rest else None
            for subscriber in tuple(pubsub_channel.subscribers) if pubsub_channel is not None else ():
                subscriber.deliver(rest[0])
            return False
        if kind == b"sunsubscribe" and self._connection is not None and name in self._subscribed:
            # It was not requested: the slot has moved to another server.
            self._connection.end(redis_errors.ConnectionError("a slot moved"))
            return False
        return kind in _CONFIRMED
