"""A probe: an actor that a test controls, to inspect the messages of other actors and to answer them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

import anyio
import anyio.lowlevel

from cuelight.actors import Actor, Message, Ref, ReplyPort, Terminated
from cuelight.errors import ReplyError
from cuelight.mailbox import Channel

if TYPE_CHECKING:
    from cuelight.supervision import ActorSystem

T = TypeVar("T")

Arrival = tuple[Any, ReplyPort | None]


class _WatchActor(Message):
    """Tell the probe's actor to watch another."""

    ref: Any


class _ProbeActor(Actor[Any]):
    """Passes every message on to the test."""

    def __init__(self, arrivals: Channel[Arrival]) -> None:
        self._arrivals = arrivals

    async def run(self) -> None:
        async for message in self.inbox:
            if isinstance(message, _WatchActor):
                self.watch(message.ref)
                continue
            try:
                port: ReplyPort | None = self.defer_reply()
            except RuntimeError:  # the message was told, not asked
                port = None
            await self._arrivals.send((message, port))


class Probe:
    """An actor that a test controls. Give `probe.ref` to the tested code, then check the messages that arrive.

    Every `within` is in seconds of the loop's clock, so with a virtual clock no real time passes.
    """

    def __init__(self, ref: Ref[Any], arrivals: Channel[Arrival]) -> None:
        self.ref = ref
        self._arrivals = arrivals
        self._port: ReplyPort | None = None

    @classmethod
    async def start(cls, system: ActorSystem) -> Self:
        """Spawn a probe at the top of a system. A checkpoint only if its start takes time."""
        arrivals: Channel[Arrival] = Channel(math.inf)
        return cls(await system.spawn(_ProbeActor, arrivals), arrivals)

    async def _next(self, within: float, wanted: str) -> Any:
        message: Any = None
        with anyio.move_on_after(within) as scope:
            message, self._port = await self._arrivals.receive()
        if scope.cancelled_caught:
            raise AssertionError(f"the probe got nothing within {within} s; expected {wanted}")
        return message

    @overload
    async def expect(self, wanted: type[T], within: float = 3.0) -> T: ...
    @overload
    async def expect(self, wanted: T, within: float = 3.0) -> T: ...
    async def expect(self, wanted: Any, within: float = 3.0) -> Any:
        """Receive the next message and compare it. A checkpoint when it waits.

        Args:
            wanted: a class that the message must be an instance of, or a value that it must equal.
            within: the longest wait, in seconds.

        Returns:
            The message.

        Raises:
            AssertionError: the message is a different one, or none arrived in time.
        """
        message: Any = await self._next(within, repr(wanted))
        matches = isinstance(message, wanted) if isinstance(wanted, type) else message == wanted
        if not matches:
            raise AssertionError(f"the probe expected {wanted!r} and got {message!r}")
        return message

    async def expect_none(self, within: float = 0.1) -> None:
        """Check that no message arrives. A checkpoint when it waits.

        Args:
            within: seconds to wait.

        Raises:
            AssertionError: a message arrived.
        """
        with anyio.move_on_after(within):
            message, self._port = await self._arrivals.receive()
            raise AssertionError(f"the probe expected nothing and got {message!r}")

    async def expect_terminated(self, ref: Ref[Any], within: float = 3.0) -> Terminated:
        """Check that the next message reports the end of an actor; call `watch` first. A checkpoint when it waits.

        Raises:
            AssertionError: it is a different message, or none arrived in time.
        """
        terminated = await self.expect(Terminated, within)
        if terminated.ref != ref:
            raise AssertionError(f"the probe expected the end of {ref!r} and got that of {terminated.ref!r}")
        return terminated

    async def fish(self, wanted: Callable[[Any], bool], within: float = 3.0) -> Any:
        """Receive messages until one matches, and discard the others. A checkpoint when it waits.

        Args:
            wanted: returns whether a message matches.
            within: the longest wait for the match, in seconds.

        Returns:
            The message that matches.

        Raises:
            AssertionError: no message matched in time.
        """
        discarded: list[Any] = []
        with anyio.move_on_after(within):
            while True:
                message, self._port = await self._arrivals.receive()
                if wanted(message):
                    return message
                discarded.append(message)
        raise AssertionError(f"the probe fished for {within} s and caught only {discarded!r}")

    async def receive(self, count: int, within: float = 3.0) -> list[Any]:
        """Receive `count` messages. Each of them may take up to `within` seconds. A checkpoint when it waits.

        Raises:
            AssertionError: a message did not arrive in time.
        """
        return [await self._next(within, f"{count} messages") for _ in range(count)]

    def reply(self, value: Any) -> None:
        """Answer the request that was received last.

        Raises:
            AssertionError: the last message was told, not asked.
        """
        self._taken_port().send(value)

    def refuse(self, error: ReplyError) -> None:
        """Refuse the request that was received last.

        Raises:
            AssertionError: the last message was told, not asked.
        """
        self._taken_port().refuse(error)

    def _taken_port(self) -> ReplyPort:
        if self._port is None:
            raise AssertionError("the probe cannot reply: the last message was told, not asked")
        return self._port

    async def watch(self, ref: Ref[Any]) -> None:
        """Report the end of an actor to this probe. A checkpoint."""
        await self.ref.tell(_WatchActor(ref))
        await anyio.lowlevel.checkpoint()
