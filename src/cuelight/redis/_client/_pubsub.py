"""The connection for push messages. One task subscribes to the channels that have listeners, and to no others.

The invariants:

1. While any channel has a listener, there is a connection that answered recently, or the next one is being opened.
2. After each loss of its connection, a listener is notified of a gap once its channel is subscribed again.
3. A closed listener receives nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import anyio
from redis import exceptions as redis_errors

from cuelight._log import get_log
from cuelight.errors import StoreRefused, ends_the_program
from cuelight.mailbox import call_in_loop, running_loop
from cuelight.redis._client._connect import Opened
from cuelight.redis._client._connection import Wire, pack_all
from cuelight.redis._client._errors import refusal
from cuelight.redis._client._node import Pause

log = get_log("cuelight.redis")

_CONFIRMED: Final = frozenset({b"ssubscribe", b"subscribe", b"sunsubscribe", b"unsubscribe"})
_SHARDED_SINCE: Final = (7, 0)


class Topic:
    """A channel and its listeners.

    Attributes:
        line: the connection that is subscribed to the channel; in a cluster, the channel may move to another.
    """

    def __init__(self, name: bytes, line: PushLine) -> None:
        self.name, self.line = name, line
        self.listeners: list[Listener] = []


class Listener:
    """A listener of a channel."""

    def __init__(self, loop: Any, on_message: Callable[[bytes], None], on_gap: Callable[[], None]) -> None:
        self._loop, self._on_message, self._on_gap = loop, on_message, on_gap
        self.topic: Topic | None = None
        self.open = True
        self.error: Exception | None = None
        self.settled = anyio.Event()
        self._heard = False

    def close(self) -> None:
        """Stop listening. May be called from any thread."""
        if not self.open:
            return
        self.open = False
        if running_loop() is self._loop:
            self._leave()
        else:
            call_in_loop(self._loop, self._leave)

    def _leave(self) -> None:
        topic = self.topic
        if topic is not None and self in topic.listeners:
            topic.listeners.remove(self)
            topic.line.forget_if_idle(topic)

    def deliver(self, message: bytes) -> None:
        if self.open:
            _guard(self._on_message, message)

    def confirm(self) -> None:
        """Note that the channel is subscribed, for the first time or again."""
        if not self._heard:
            self._heard = True
            self.settled.set()
        elif self.open:
            _guard(self._on_gap)

    def fail(self, error: Exception) -> None:
        """Note that the channel will not be subscribed."""
        self.open, self.error = False, error
        self.settled.set()


def _guard(call: Callable[..., None], *args: object) -> None:
    try:
        call(*args)
    except BaseException as error:
        log.exception("a listener of a channel raised an error")
        if ends_the_program(error):
            raise


class PushLine:
    """A connection for the channels of one server in one loop."""

    def __init__(
        self,
        open_wire: Callable[[Callable[[Any], bool]], Awaitable[Opened]],
        *,
        sharded: bool = False,
        on_loss: Callable[[PushLine], Awaitable[None]] | None = None,
    ) -> None:
        """Create a line; `run` connects it.

        Args:
            open_wire: opens a connection that passes push messages to a function.
            sharded: whether the channels belong to slots of a cluster.
            on_loss: called before each connection; may move channels to other lines.
        """
        self._open, self._sharded, self._on_loss = open_wire, sharded, on_loss
        self.topics: dict[bytes, Topic] = {}
        self._there: set[bytes] = set()
        self._wake = anyio.Event()
        self._wire: Wire | None = None
        self._prefix = ""
        self.trouble: Exception | None = None

    def listen(self, channel: bytes, listener: Listener) -> None:
        """Add a listener. It is settled once the channel is subscribed."""
        topic = self.topics.get(channel)
        if topic is None:
            topic = self.topics[channel] = Topic(channel, self)
        topic.listeners.append(listener)
        listener.topic = topic
        if channel in self._there:
            listener.confirm()
        else:
            self._wake.set()

    def adopt(self, topic: Topic) -> None:
        """Take over a channel from another line."""
        topic.line = self
        known = self.topics.setdefault(topic.name, topic)
        if known is not topic:
            known.listeners += topic.listeners
            for listener in topic.listeners:
                listener.topic = known
        self._there.discard(topic.name)
        self._wake.set()

    def forget_if_idle(self, topic: Topic) -> None:
        """Unsubscribe from a channel that has no listeners."""
        if not topic.listeners and self.topics.get(topic.name) is topic:
            del self.topics[topic.name]
            self._wake.set()

    async def run(self) -> None:
        """Keep the connection open until the task is cancelled."""
        pause = Pause()
        while True:
            while not self.topics:
                await self._woken()
            try:
                await self._serve(pause)
            except (redis_errors.RedisError, StoreRefused) as error:
                self._lost(error)
            except Exception as error:  # any error: without this task nothing would subscribe again
                log.exception("the connection for push messages failed")
                self._there.clear()
                self.trouble = error
            await anyio.sleep(pause.next())

    async def _woken(self) -> None:
        await self._wake.wait()
        self._wake = anyio.Event()

    def _lost(self, error: Exception) -> None:
        self._there.clear()
        self.trouble = error
        if isinstance(error, StoreRefused) or refusal(error):
            # Listeners whose channel was subscribed before keep waiting, as the server accepted them. New listeners
            # fail.
            for topic in list(self.topics.values()):
                for listener in [one for one in topic.listeners if not one.settled.is_set()]:
                    topic.listeners.remove(listener)
                    listener.fail(error)
                self.forget_if_idle(topic)
        else:
            log.debug("the connection for push messages was lost: %s", error)

    async def _serve(self, pause: Pause) -> None:
        """Connect, and keep the subscriptions up to date until the connection ends."""
        if self._on_loss is not None:
            await self._on_loss(self)
        opened = await self._open(self._on_push)
        wire = self._wire = opened.wire
        self._prefix = "S" if self._sharded and opened.version >= _SHARDED_SINCE else ""
        ended = wire.on_end
        wake = self._wake_up

        def on_end(gone: Wire) -> None:
            ended(gone)
            wake()

        wire.on_end = on_end
        self._there.clear()
        try:
            while wire.error is None:
                if await self._settle(wire):
                    pause.reset()
                else:
                    await self._woken()
        finally:
            wire.end(redis_errors.ConnectionError("the connection for push messages was given up"))
        raise wire.error

    def _wake_up(self) -> None:
        self._wake.set()

    async def _settle(self, wire: Wire) -> bool:
        """Subscribe to missing channels, unsubscribe from unused ones. Returns whether there was anything to do."""
        wanted = [name for name in self.topics if name not in self._there]
        unwanted = [name for name in self._there if name not in self.topics]
        self._there.difference_update(unwanted)
        commands = [(f"{self._prefix}UNSUBSCRIBE", name) for name in unwanted]
        commands += [(f"{self._prefix}SUBSCRIBE", name) for name in wanted]
        if not commands:
            return False
        replies = await wire.call_block(pack_all(commands), len(commands))
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
        self._there.add(name)
        topic = self.topics.get(name)
        for listener in list(topic.listeners) if topic is not None else ():
            listener.confirm()

    def _refuse(self, name: bytes, error: Exception) -> None:
        topic = self.topics.pop(name, None)
        log.warning("the server refuses to let this client listen to %r: %s", name, error)
        for listener in topic.listeners if topic is not None else ():
            listener.fail(error)

    def _on_push(self, push: Any) -> bool:
        """Deliver a message. Returns whether the push message is the reply to a command."""
        match push:
            case [bytes(kind), bytes(name), *rest]:
                pass
            case _:
                return False  # it belongs to no subscription
        if kind in {b"message", b"smessage"}:
            topic = self.topics.get(name) if rest else None
            for listener in tuple(topic.listeners) if topic is not None else ():
                listener.deliver(rest[0])
            return False
        if kind == b"sunsubscribe" and self._wire is not None and name in self._there:
            # It was not requested: the slot has moved to another server.
            self._wire.end(redis_errors.ConnectionError("a slot moved"))
            return False
        return kind in _CONFIRMED
