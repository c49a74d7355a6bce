"""One connection in one event loop, shared by many tasks. Replies arrive in the order of the commands.

The first command of a loop pass is written immediately (on trio, only if no other reply is pending), so that the server
works while the other tasks of the pass run. Their commands are sent in one write in the next pass.

The invariants:

1. Replies are assigned to commands in the order in which the commands were sent. A command whose caller has given up
   keeps its place: its reply is dropped, never given to another command.
2. When the connection ends, every command without a reply fails, and none is sent again.
3. A connection ends if replies are pending and nothing arrives for half of the time-out. An idle connection is checked
   with PING at intervals, so that a dead one is noticed.

No timer is set for a single command. One alarm per connection makes ten checks in a time-out. A command
that was sent ten checks ago and has no reply is late.
"""

# The functions of hiredis have no return types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import socket
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Final, TypeVar

import anyio
import anyio.abc
import hiredis
from redis import exceptions as redis_errors
from redis._parsers.base import BaseParser

from cuelight._text import describe_error, safe_repr, safe_str
from cuelight.errors import CuelightError
from cuelight.mailbox import Backend, Slot, TaskGroup, new_slot

E = TypeVar("E", bound=BaseException)

BUFFER: Final = 1 << 20
"""The number of unsent bytes above which new callers wait until they are sent."""

CHECKS_PER_TIMEOUT: Final = 10
MAX_SILENT_CHECKS: Final = 6  # half of the checks, plus one that may have been short
_NOTHING: Final = object()
_Push: Final = hiredis.PushNotification


class BatchReplies:
    """Collects the replies to commands that are sent in one write; one slot is for all of them."""

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
        """Set `error` as the reply to the commands that have none."""
        self._slot.set_result(self._replies + [error] * self._missing)


class RedisConnection:
    """A connection that many tasks of one loop share. Subclasses implement the parts that differ between loops.

    Attributes:
        error: the reason why the connection ended; None while it works.
        full: whether callers must wait before they post.
        closed: set when no part of the connection is left in the loop.
    """

    def __init__(
        self,
        backend: Backend,
        timeout: float,
        heartbeat: float,
        *,
        timed: bool = True,
        on_push: Callable[[Any], bool] | None = None,
    ) -> None:
        """Create a connection that is not connected yet.

        Args:
            backend: the backend of the running loop, for this connection alone: it has one alarm.
            timeout: seconds that a command may take.
            heartbeat: seconds without traffic after which PING is sent.
            timed: whether the time of commands is limited here.
            on_push: called with push messages; returns whether the message is the reply to a command.
        """
        self.error: Exception | None = None
        self.full = False
        self.closed = anyio.Event()
        self.on_end: Callable[[RedisConnection], object] = lambda _: None
        self._backend, self._on_push = backend, on_push
        self._check_interval, self._heartbeat, self._timed = timeout / CHECKS_PER_TIMEOUT, heartbeat, timed
        self._reader = hiredis.Reader(replyError=reply_error, notEnoughData=_NOTHING)
        self._waiting: deque[Slot | BatchReplies | _IgnoredReply] = deque()
        self._out: list[bytes] = []
        self._out_size = 0
        self._slot: Callable[[], Slot] = new_slot
        self._room = anyio.Event()
        # State of the watch: see `_check_timeouts`.
        self._checking = False
        self._heard = False
        self._silent_checks = 0
        self._answered = 0
        self._posted: deque[int] = deque()

    @property
    def pending(self) -> int:
        """The number of pending replies."""
        return len(self._waiting)

    def post(self, packed: bytes) -> Slot:
        """Send one command. The caller must await the returned slot, which gives the reply, before anything else.

        The reply is an exception if the server sent an error, or if the connection ended or was too slow.
        """
        slot = self._slot()
        self._waiting.append(slot)
        self._send(packed)
        return slot

    def post_many(self, packed: bytes, size: int) -> Slot:
        """Send several commands in one write; the returned slot gives the list of their replies."""
        slot = self._slot()
        batch = BatchReplies(slot, size)
        self._waiting.extend([batch] * size)
        self._send(packed)
        return slot

    async def call(self, packed: bytes) -> Any:
        """Send one command and return its reply; an error reply is returned as an exception."""
        await self._ready()
        return self.error if self.error is not None else await self.post(packed)

    async def call_many(self, packed: bytes, size: int) -> list[Any]:
        """Send several commands in one write and return their replies."""
        await self._ready()
        if self.error is not None:
            return [self.error] * size
        replies: list[Any] = await self.post_many(packed, size)
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
            if not self._checking and self._timed:
                self._start_checking()
            self._schedule()

    def _take_out(self) -> bytes:
        """Remove and return the unsent data."""
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
        """Assign the received replies to commands."""
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
        except Exception as error:  # any error: the replies that follow cannot be told apart
            self.end(redis_errors.InvalidResponse(f"what came is not RESP: {describe_error(error)}"))
        else:
            self._answered += before - len(waiting)

    def _is_reply(self, push: Any) -> bool:
        return self._on_push is not None and self._on_push(push)

    def end(self, error: Exception) -> None:
        """End the connection: pending commands fail with copies of `error`. Later calls do nothing."""
        if self.error is not None:
            return
        self.error = error
        self._backend.clear_alarm()
        self._out.clear()
        waiting, self._waiting = self._waiting, deque()
        for slot in waiting:
            if not slot.done():
                slot.set_result(copy_error(error))
        self._make_room()
        self._abort()
        self.on_end(self)

    def abandon(self) -> None:
        """Drop the connection after its loop was closed: no task can be notified, and nothing can be called there."""
        self.error = redis_errors.ConnectionError("the loop was closed")
        self._waiting.clear()

    def _start_checking(self) -> None:
        self._checking = True
        self._silent_checks = 0
        self._posted.clear()
        self._backend.set_alarm(self._backend.time() + self._check_interval, self._check_timeouts)

    def _check_timeouts(self) -> None:
        """Check for late replies and a silent server. If nothing is going on, set the alarm to the next heartbeat."""
        waiting = self._waiting
        self._silent_checks = 0 if self._heard else self._silent_checks + 1
        heard, self._heard = self._heard, False
        if not waiting and not heard:
            self._checking = False
            self._backend.set_alarm(self._backend.time() + self._heartbeat, self._send_heartbeat)
            return
        if waiting and self._silent_checks >= MAX_SILENT_CHECKS:
            seconds = self._silent_checks * self._check_interval
            self.end(
                redis_errors.TimeoutError(f"nothing came for {seconds:.3g} s, and {len(waiting)} replies are owed")
            )
            return
        self._posted.append(self._answered + len(waiting))
        if len(self._posted) > CHECKS_PER_TIMEOUT:
            self._expire(self._posted.popleft() - self._answered)
        self._backend.set_alarm(self._backend.time() + self._check_interval, self._check_timeouts)

    def _expire(self, late: int) -> None:
        """Fail the oldest pending commands; their replies will be dropped."""
        for slot in list(islice(self._waiting, max(late, 0))):
            if not slot.done():
                seconds = CHECKS_PER_TIMEOUT * self._check_interval
                error = redis_errors.TimeoutError(f"there was no reply within {seconds:g} s")
                slot.fail(error) if isinstance(slot, BatchReplies) else slot.set_result(error)

    def _send_heartbeat(self) -> None:
        self._waiting.append(_IgnoredReply())
        self._send(_PING)

    def _schedule(self) -> None:
        """Write the unsent data, now or in the next pass of the loop."""
        raise NotImplementedError

    def _abort(self) -> None:
        """Close the transport without waiting."""
        raise NotImplementedError


class AsyncioRedisConnection(RedisConnection, asyncio.Protocol):
    """On asyncio, the loop calls the connection: no task and no frame is between a reply and its caller."""

    def connection_made(self, transport: Any) -> None:
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
        self._paused = self.full = True

    def resume_writing(self) -> None:
        self._paused = False
        self._make_room()

    def eof_received(self) -> None:
        self.end(redis_errors.ConnectionError("the server closed the connection"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.end(redis_errors.ConnectionError(safe_str(exc) if exc else "the connection was closed"))
        self.closed.set()

    def _abort(self) -> None:
        self._transport.abort()

    def abandon(self) -> None:
        """Shut the socket down, so that the server notices. Python frees the rest and warns about it."""
        super().abandon()
        with contextlib.suppress(OSError, TypeError):  # uvloop closes it together with the loop
            self._transport.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


class _IgnoredReply:
    """Keeps the place of a PING among the pending commands."""

    def done(self) -> bool:
        return False

    def set_result(self, reply: Any) -> None:
        """Ignore the reply; its arrival was recorded already."""


def pack(command: Sequence[Any]) -> bytes:
    """Encode a command. A name of two words is sent as two arguments.

    Raises:
        redis.DataError: an argument has a type that cannot be sent.
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
    """Encode several commands."""
    return b"".join([pack(command) for command in commands])


def _plain(argument: Any) -> Any:
    if isinstance(argument, (bytearray, memoryview)):
        return bytes(argument)
    if isinstance(argument, (bytes, str, int, float)) and not isinstance(argument, bool):
        return argument
    kind = type(argument).__name__
    raise redis_errors.DataError(f"{argument!r:.100} is a {kind}: give bytes, a str, an int or a float")


def reply_error(text: str) -> Exception:
    """Return redis-py's exception for an error reply."""
    try:
        return _parse_error(text)
    except Exception:  # such as MOVED without an address
        return redis_errors.ResponseError(text)


def copy_error(error: E) -> E:
    """Return a copy of an error. An exception that is raised in several tasks would collect the tracebacks of all."""
    if not isinstance(error, redis_errors.RedisError | CuelightError):
        return error  # the class of a user's error may take any arguments
    copy = type(error)(*error.args)
    copy.__dict__.update(error.__dict__)
    copy.__cause__ = error.__cause__
    return copy


_PING: Final = pack(("PING",))
_parse_error: Final[Callable[[str], Exception]] = BaseParser.parse_error


# A connection over an anyio stream, for trio, where tasks read and write.


_CHUNK: Final = 65536


class TrioRedisConnection(RedisConnection):
    """A connection that is served by two tasks."""

    def __init__(
        self,
        backend: Backend,
        timeout: float,
        heartbeat: float,
        *,
        timed: bool = True,
        on_push: Callable[[Any], bool] | None = None,
    ) -> None:
        super().__init__(backend, timeout, heartbeat, timed=timed, on_push=on_push)
        self._wake = anyio.Event()
        self._scope = anyio.CancelScope()
        self._socket: socket.socket | None = None
        self._sending = False

    def start(self, stream: anyio.abc.ByteStream) -> None:
        """Start reading and writing, in background tasks that end with the connection or with the loop."""
        if isinstance(stream, anyio.abc.SocketStream):  # without TLS
            self._socket = stream.extra(anyio.abc.SocketAttribute.raw_socket)  # noqa: S610 - not Django
        self._backend.spawn(self._serve, stream, context=contextvars.copy_context(), name="cuelight redis connection")

    def _schedule(self) -> None:
        # If other replies are pending, more commands are likely in this pass; all are sent in one write.
        if len(self._waiting) > 1 or not self._write_now():
            self._wake.set()

    def _write_now(self) -> bool:
        """Write as much as the socket accepts. Returns whether that was all; `_write` handles the rest and errors."""
        if self._socket is None or self._sending:
            return False
        batch = self._take_out()
        try:
            sent = self._socket.send(batch)
        except OSError:
            sent = 0
        if sent == len(batch):
            self._make_room()
            return True
        rest = batch[sent:]
        self._out.append(rest)
        self._out_size = len(rest)
        return False

    def _abort(self) -> None:
        self._scope.cancel()

    async def _serve(self, stream: anyio.abc.ByteStream) -> None:
        try:
            with self._scope:
                async with TaskGroup() as group:
                    group.start_soon(self._write, stream)
                    group.start_soon(self._read, stream)
        finally:
            self.end(redis_errors.ConnectionError("the connection was closed"))
            with anyio.CancelScope(shield=True):
                await anyio.aclose_forcefully(stream)
            self.closed.set()

    async def _read(self, stream: anyio.abc.ByteStream) -> None:
        try:
            while True:
                self.data_received(await stream.receive(_CHUNK))
        except anyio.EndOfStream:
            self.end(redis_errors.ConnectionError("the server closed the connection"))
        except (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            self.end(redis_errors.ConnectionError(str(error.__cause__ or error) or "the connection broke"))

    async def _write(self, stream: anyio.abc.ByteStream) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake = anyio.Event()
                self._sending = True
                while self._out:
                    batch = self._take_out()
                    self._make_room()
                    await stream.send(batch)
                self._sending = False
        except (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            self.end(redis_errors.ConnectionError(str(error.__cause__ or error) or "the connection broke"))
