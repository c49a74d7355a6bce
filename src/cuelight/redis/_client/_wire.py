"""One connection in one event loop, which many tasks share; replies come in the order of the commands.

The first command of a pass of the loop is written at once, on trio if no other reply is owed, so that the server works
while the other tasks of the pass run; what they ask for leaves in one piece in the next pass.

The invariants:

1. Replies belong to commands in the order in which these were sent. A command that nobody waits for any more keeps its
   place: its reply is dropped, never given to another.
2. When the connection ends, every command without a reply fails, and none is sent again.
3. A connection that is owed replies and over which nothing comes for half of the time-out ends; one that is idle is
   asked for a sign of life every so often, so a dead one does not stay unnoticed.

Nothing is set up for a single command: one alarm per connection counts ticks, a tenth of the time-out each. What was
sent ten ticks ago and has no reply is late.
"""

# hiredis tells the type checkers nothing of what its functions return.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Final, TypeVar

import anyio
import hiredis
from redis import exceptions as redis_errors
from redis._parsers.base import BaseParser

from cuelight._text import describe_error, safe_repr, safe_str
from cuelight.errors import CuelightError
from cuelight.mailbox import Backend, Slot, new_slot

__all__ = ["AsyncioWire", "Block", "Wire", "fresh", "pack", "pack_all", "reply_error"]

E = TypeVar("E", bound=BaseException)

BUFFER: Final = 1 << 20
"""Bytes that wait to be sent; who comes then waits until they are gone."""

_TICKS: Final = 10
_SILENT: Final = 6  # half of the ticks, and one that may have been short
_NOTHING: Final = object()
_Push: Final = hiredis.PushNotification


class Block:
    """Collects the replies of commands that are sent in one piece: a slot for all of them together."""

    __slots__ = ("_missing", "_replies", "_slot")

    def __init__(self, slot: Slot, size: int) -> None:
        self._slot, self._missing = slot, size
        self._replies: list[Any] = []

    def done(self) -> bool:
        return self._slot.done()

    def set_result(self, reply: Any) -> None:
        self._replies.append(reply)
        self._missing -= 1
        if not self._missing:
            self._slot.set_result(self._replies)

    def fail(self, error: Exception) -> None:
        """Give up on those that are missing."""
        self._slot.set_result(self._replies + [error] * self._missing)


class Wire:
    """A connection that many tasks of one loop share; what differs between loops is left to subclasses.

    Attributes:
        error: why it ended; None while it works.
        full: whether to wait for `room` before anything is posted.
        closed: set when nothing of it is left in the loop.
    """

    def __init__(
        self,
        backend: Backend,
        timeout: float,
        heartbeat: float,
        *,
        watched: bool = True,
        on_push: Callable[[Any], bool] | None = None,
    ) -> None:
        """Make one that is not connected yet.

        Args:
            backend: of the running loop, for this connection alone: it has one alarm.
            timeout: seconds that a command may take.
            heartbeat: seconds without traffic after which it is asked for a sign of life.
            watched: whether the time of commands is limited here.
            on_push: gets push messages, and says whether that was the reply to a command.
        """
        self.error: Exception | None = None
        self.full = False
        self.closed = anyio.Event()
        self.on_end: Callable[[Wire], object] = lambda _: None
        self._backend, self._on_push = backend, on_push
        self._tick_length, self._heartbeat, self._watched = timeout / _TICKS, heartbeat, watched
        self._reader = hiredis.Reader(replyError=reply_error, notEnoughData=_NOTHING)
        self._waiting: deque[Slot | Block | _Nobody] = deque()
        self._out: list[bytes] = []
        self._out_size = 0
        self._slot: Callable[[], Slot] = new_slot
        self._room = anyio.Event()
        # The watch: see `_tick`.
        self._ticking = False
        self._heard = False
        self._silent = 0
        self._answered = 0
        self._posted: deque[int] = deque()

    @property
    def owed(self) -> int:
        """How many replies are to come."""
        return len(self._waiting)

    def post(self, packed: bytes) -> Slot:
        """Send one command. The caller must await the slot before anything else: that gives the reply.

        The reply is an exception if the server sent an error, or if the connection ended or was too slow.
        """
        slot = self._slot()
        self._waiting.append(slot)
        self._send(packed)
        return slot

    def post_block(self, packed: bytes, size: int) -> Slot:
        """Send several commands in one piece; awaiting the slot gives the list of their replies."""
        slot = self._slot()
        block = Block(slot, size)
        self._waiting.extend([block] * size)
        self._send(packed)
        return slot

    async def call(self, packed: bytes) -> Any:
        """Send one command and return its reply, an exception if that is an error."""
        await self._ready()
        return self.error if self.error is not None else await self.post(packed)

    async def call_block(self, packed: bytes, size: int) -> list[Any]:
        """Send several commands in one piece and return their replies."""
        await self._ready()
        if self.error is not None:
            return [self.error] * size
        replies: list[Any] = await self.post_block(packed, size)
        return replies

    async def _ready(self) -> None:
        while self.full and self.error is None:
            await self._room.wait()

    def _send(self, packed: bytes) -> None:
        self._out.append(packed)
        self._out_size += len(packed)
        if self._out_size > BUFFER:
            self.full = True
        if len(self._out) == 1:
            if not self._ticking and self._watched:
                self._start_ticking()
            self._schedule()

    def _take_out(self) -> bytes:
        """What is to be sent."""
        out = self._out
        batch = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        self._out_size = 0
        return batch

    def _make_room(self) -> None:
        if self.full:
            self.full = False
            self._room.set()
            self._room = anyio.Event()

    def data_received(self, data: bytes) -> None:
        """Hand out what came."""
        self._heard = True
        waiting, gets = self._waiting, self._reader.gets
        before = len(waiting)
        reply: Any = None
        try:
            self._reader.feed(data)
            while (reply := gets()) is not _NOTHING:
                if type(reply) is _Push and not self._is_reply(reply):
                    continue
                slot = waiting.popleft()
                if not slot.done():
                    slot.set_result(reply)
        except IndexError:
            self.end(redis_errors.ConnectionError(f"a reply that nobody asked for: {safe_repr(reply)}"))
        except Exception as error:  # whatever it is, the replies that follow cannot be told apart any more
            self.end(redis_errors.InvalidResponse(f"what came is not RESP: {describe_error(error)}"))
        else:
            self._answered += before - len(waiting)

    def _is_reply(self, push: Any) -> bool:
        return self._on_push is not None and self._on_push(push)

    def end(self, error: Exception) -> None:
        """End it: whoever waits for a reply fails with an error like this. Again, it does nothing."""
        if self.error is not None:
            return
        self.error = error
        self._backend.clear_alarm()
        self._out.clear()
        waiting, self._waiting = self._waiting, deque()
        for slot in waiting:
            if not slot.done():
                slot.set_result(fresh(error))
        self._make_room()
        self._abort()
        self.on_end(self)

    def abandon(self) -> None:
        """Let go of it after its loop was closed: nobody can be told, nothing can be called there."""
        self.error = redis_errors.ConnectionError("the loop was closed")
        self._waiting.clear()

    def _start_ticking(self) -> None:
        self._ticking = True
        self._silent = 0
        self._posted.clear()
        self._backend.set_alarm(self._backend.time() + self._tick_length, self._tick)

    def _tick(self) -> None:
        """Look whether replies are late, or the other side is silent; when nothing is owed, rest until a heartbeat."""
        waiting = self._waiting
        self._silent = 0 if self._heard else self._silent + 1
        heard, self._heard = self._heard, False
        if not waiting and not heard:
            self._ticking = False
            self._backend.set_alarm(self._backend.time() + self._heartbeat, self._beat)
            return
        if waiting and self._silent >= _SILENT:
            seconds = self._silent * self._tick_length
            self.end(
                redis_errors.TimeoutError(f"nothing came for {seconds:.3g} s, and {len(waiting)} replies are owed")
            )
            return
        self._posted.append(self._answered + len(waiting))
        if len(self._posted) > _TICKS:
            self._give_up(self._posted.popleft() - self._answered)
        self._backend.set_alarm(self._backend.time() + self._tick_length, self._tick)

    def _give_up(self, late: int) -> None:
        """Fail the oldest commands that wait; their replies will be dropped."""
        for slot in list(islice(self._waiting, max(late, 0))):
            if not slot.done():
                seconds = _TICKS * self._tick_length
                error = redis_errors.TimeoutError(f"there was no reply within {seconds:g} s")
                slot.fail(error) if isinstance(slot, Block) else slot.set_result(error)

    def _beat(self) -> None:
        self._waiting.append(_Nobody())
        self._send(_PING)

    def _schedule(self) -> None:
        """Write what is to be sent, now or in the next pass of the loop."""
        raise NotImplementedError

    def _abort(self) -> None:
        """End the transport, without waiting for anything."""
        raise NotImplementedError


class AsyncioWire(Wire, asyncio.Protocol):
    """On asyncio the loop calls it, so that there is no task, and no frame, between a reply and who waits for it."""

    def connection_made(self, transport: Any) -> None:
        """Called by the loop."""
        self._transport: asyncio.Transport = transport
        loop = asyncio.get_running_loop()
        self._slot = loop.create_future
        self._call_soon = loop.call_soon
        transport.set_write_buffer_limits(BUFFER)

    def _schedule(self) -> None:
        if not self._wrote:
            self._wrote = True
            self._call_soon(self._flush_rest)
            self._flush()

    def _flush_rest(self) -> None:
        self._wrote = False
        self._flush()

    def _flush(self) -> None:
        if self._out:
            held = self.full
            self._transport.write(self._take_out())
            # The transport calls pause_writing from within write.
            if held and not self._paused:
                self._make_room()

    _paused = _wrote = False

    def pause_writing(self) -> None:
        """Called by the loop."""
        self._paused = self.full = True

    def resume_writing(self) -> None:
        """Called by the loop."""
        self._paused = False
        self._make_room()

    def eof_received(self) -> None:
        """Called by the loop."""
        self.end(redis_errors.ConnectionError("the server closed the connection"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop."""
        self.end(redis_errors.ConnectionError(safe_str(exc) if exc else "the connection was closed"))
        self.closed.set()

    def _abort(self) -> None:
        self._transport.abort()

    def abandon(self) -> None:
        """End the connection as the server sees it; Python frees the rest, and warns of it."""
        super().abandon()
        with contextlib.suppress(OSError, TypeError):  # uvloop has closed it with itself
            self._transport.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


class _Nobody:
    """Has the place of a sign of life among those who wait."""

    def done(self) -> bool:
        return False

    def set_result(self, reply: Any) -> None:
        """What it is does not matter: that something came was noted."""


def pack(command: Sequence[Any]) -> bytes:
    """A command as bytes; a name of two words is two.

    Raises:
        redis.DataError: an argument is of a type that cannot be sent.
    """
    name = command[0]
    if isinstance(name, str) and " " in name:
        command = (*name.split(), *command[1:])
    try:
        packed: bytes = hiredis.pack_command(tuple(command))
    except (TypeError, hiredis.HiredisError):
        packed = hiredis.pack_command(tuple(_plain(argument) for argument in command))
    return packed


def pack_all(commands: Sequence[Sequence[Any]]) -> bytes:
    """Several commands as bytes."""
    return b"".join([pack(command) for command in commands])


def _plain(argument: Any) -> Any:
    if isinstance(argument, (bytearray, memoryview)):
        return bytes(argument)
    if isinstance(argument, (bytes, str, int, float)) and not isinstance(argument, bool):
        return argument
    kind = type(argument).__name__
    raise redis_errors.DataError(f"{argument!r:.100} is a {kind}: give bytes, a str, an int or a float")


def reply_error(text: str) -> Exception:
    """The exception of redis-py for an error reply."""
    try:
        return _parse_error(text)
    except Exception:  # such as MOVED to nowhere
        return redis_errors.ResponseError(text)


def fresh(error: E) -> E:
    """One like it: an exception that is raised in several tasks would collect the traces of all."""
    if not isinstance(error, redis_errors.RedisError | CuelightError):
        return error  # of a user: its class may be made of anything
    copy = type(error)(*error.args)
    copy.__dict__.update(error.__dict__)
    copy.__cause__ = error.__cause__
    return copy


_PING: Final = pack(("PING",))
_parse_error: Final[Callable[[str], Exception]] = BaseParser.parse_error
