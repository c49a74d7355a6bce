"""A TCP proxy between a client and a Redis server that loses replies, cuts connections and goes silent on demand.

It reads what passes in both directions, so faults can be aimed at the reply of a certain command, and runs in a thread
with a loop of its own, so a test that blocks its loop does not block the proxy.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import ssl
import threading
from collections import Counter, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Final, Literal, Self, TypeVar

__all__ = ["TcpProxy"]

Manner = Literal["swallow", "cut before", "cut after"]

SPARED: Final = frozenset({"AUTH", "CLIENT", "HELLO", "INFO", "PING", "SELECT"})
"""Commands that faults spare unless they are named: else no connection would get through its first words."""

_PUSHED: Final = frozenset({"PSUBSCRIBE", "PUNSUBSCRIBE", "SSUBSCRIBE", "SUBSCRIBE", "SUNSUBSCRIBE", "UNSUBSCRIBE"})
"""Commands that are answered, in RESP3, by push messages, which are no replies."""

_PIECE: Final = 0.02  # seconds between the pieces of a reply that is passed on slowly

_T = TypeVar("_T")


@dataclass(frozen=True)
class _Fault:
    every: int
    manner: Manner
    times: float
    of: frozenset[str] | None

    def concerns(self, name: str) -> bool:
        return name not in SPARED if self.of is None else name in self.of


class TcpProxy:
    """A context manager: it listens in the block.

    Faults hold for connections that exist and for those to come, until `heal`. Replies are counted over all
    connections together; push messages and replies of `SPARED` commands are not counted. TCP does not lose bytes
    from the midst of a stream, so neither does this: after a reply that was swallowed its connection stays open but
    nothing comes over it any more.

    Attributes:
        port: where it listens, on 127.0.0.1.
        url: of database 0, through it.
        accepted: how many connections were made.
        faults: how many replies were lost, or cut after.
        commands: how often each command was sent to the server, by its name.
    """

    def __init__(self, port: int, *, tls: ssl.SSLContext | None = None) -> None:
        """Say where the server is.

        Args:
            port: of the server, on 127.0.0.1.
            tls: what clients are spoken to with; the server is not.
        """
        self._target, self._tls = port, tls
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tcp proxy")
        self._links: set[_Link] = set()
        self._fault: _Fault | None = None
        self._counted = 0
        self.silent = False
        self.refusing = False
        self.delayed = 0.0
        self.rate = math.inf
        self.accepted = 0
        self.faults = 0
        self.commands: Counter[str] = Counter()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._server: asyncio.Server | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def swallow_every(self, every: int, *, of: Collection[str] | None = None, times: float = float("inf")) -> None:
        """Lose each k-th reply: its connection stays open, but silent from there on.

        Args:
            every: the k.
            of: count only replies of commands with these names, in upper case.
            times: lose no more than so many.
        """
        self._arm(every, "swallow", of, times)

    def cut_every(
        self, every: int, *, before: bool = True, of: Collection[str] | None = None, times: float = float("inf")
    ) -> None:
        """Cut the connection at each k-th reply.

        Args:
            every: the k.
            before: the reply is lost; else it arrives, and the end comes after it.
            of: as in `swallow_every`.
            times: as in `swallow_every`.
        """
        self._arm(every, "cut before" if before else "cut after", of, times)

    def silence(self) -> None:
        """Pass nothing on, in any direction, but keep all connections open and accept new ones: half open."""
        self._in_loop(lambda: setattr(self, "silent", True))

    def delay(self, seconds: float) -> None:
        """Hold back what the server says for so long."""
        self._in_loop(lambda: setattr(self, "delayed", seconds))

    def slow_down(self, rate: float) -> None:
        """Pass on so many bytes of replies in a second over each connection; inf for all at once, from here on."""
        self._in_loop(lambda: setattr(self, "rate", rate))

    def cut(self) -> None:
        """Cut all connections that there are."""
        self._in_loop(self._cut)

    def point_at(self, port: int) -> None:
        """Have all connections end, and those to come go to another server."""

        def turn() -> None:
            self._target = port
            self._cut()

        self._in_loop(turn)

    def refuse(self) -> None:
        """Cut all connections, and each new one as soon as it is made."""

        def begin() -> None:
            self.refusing = True
            self._cut()

        self._in_loop(begin)

    def heal(self) -> None:
        """End all faults. What was silent is cut, since bytes are missing there."""

        def end() -> None:
            self._fault = None
            if self.silent:
                self._cut()
            for link in [link for link in self._links if link.silent]:
                link.cut()
            self.silent, self.refusing, self.delayed, self.rate = False, False, 0.0, math.inf

        self._in_loop(end)

    @property
    def connections(self) -> int:
        """How many there are now."""
        return self._in_loop(lambda: len(self._links))

    def _arm(self, every: int, manner: Manner, of: Collection[str] | None, times: float) -> None:
        def begin() -> None:
            self._fault = _Fault(every, manner, self.faults + times, None if of is None else frozenset(of))
            self._counted = 0

        self._in_loop(begin)

    def _in_loop(self, function: Callable[[], _T]) -> _T:
        async def call() -> _T:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result()

    def _cut(self) -> None:
        for link in list(self._links):
            link.cut()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, sock=self._listener, ssl=self._tls)

    async def _end(self) -> None:
        assert self._server is not None
        # Not by closing the server, which would leave open who is accepted already and not served yet.
        self._loop.remove_reader(self._listener)
        self.refusing = True
        self._cut()
        # Among them are tasks that others of them cancel, or begin.
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            for left in await asyncio.gather(*others, return_exceptions=True):
                if isinstance(left, Exception):
                    raise left
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self.refusing:
            writer.transport.abort()
            return
        link = _Link(writer)
        self._links.add(link)
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
            link.writers.append(back)
            if writer.is_closing():  # cut meanwhile
                return
            forth = asyncio.ensure_future(self._pass_commands(link, reader, back))
            try:
                await self._pass_replies(link, there, writer)
            finally:
                forth.cancel()
                await asyncio.gather(forth, return_exceptions=True)
        except OSError:
            pass  # the server is away, or either side has cut: so is the other, below
        finally:
            link.cut()
            self._links.discard(link)

    async def _pass_commands(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        split = _Splitter()
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if self.silent:
                    link.silent = True
                if link.silent:
                    continue
                for command in split.feed(data):
                    name = _name(command)
                    self.commands[name] += 1
                    if name not in _PUSHED:
                        link.names.append(name)
                writer.write(data)
                await writer.drain()
        link.cut()

    async def _pass_replies(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        split = _Splitter()
        while data := await reader.read(65536):
            if self.delayed:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(link.gone.wait(), self.delayed)
            if self.silent:
                link.silent = True
            for reply in split.feed(data):
                if link.silent:
                    break
                manner = self._judge(link, reply)
                if manner == "swallow":
                    link.silent = True
                elif manner == "cut before":
                    return
                else:
                    await self._say(link, writer, reply)
                    if manner == "cut after":
                        await writer.drain()
                        writer.close()
                        return
            await writer.drain()

    async def _say(self, link: _Link, writer: asyncio.StreamWriter, reply: bytes) -> None:
        while reply and self.rate < math.inf and not writer.is_closing():
            size = max(1, int(self.rate * _PIECE))
            writer.write(reply[:size])
            reply = reply[size:]
            await writer.drain()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(link.gone.wait(), _PIECE)
        writer.write(reply)

    def _judge(self, link: _Link, reply: bytes) -> Manner | None:
        """What is to happen to a reply."""
        if reply[:1] == b">" or not link.names:
            return None
        name = link.names.popleft()
        fault = self._fault
        if fault is None or not fault.concerns(name) or self.faults >= fault.times:
            return None
        self._counted += 1
        if self._counted % fault.every:
            return None
        self.faults += 1
        return fault.manner


class _Link:
    """One connection of a client, with the one to the server that belongs to it."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writers = [writer]
        self.names: deque[str] = deque()
        self.silent = False
        self.gone = asyncio.Event()

    def cut(self) -> None:
        self.gone.set()
        for writer in self.writers:
            # What was written before a polite end still arrives; all else is dropped.
            if not writer.is_closing():
                writer.transport.abort()


class _Splitter:
    """Cuts a stream of RESP into whole values."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        self._rest += data
        values: list[bytes] = []
        start = 0
        with contextlib.suppress(_Incomplete):
            while start < len(self._rest):
                end = _end(self._rest, start)
                values.append(self._rest[start:end])
                start = end
        self._rest = self._rest[start:]
        return values


class _Incomplete(Exception):
    """More bytes are needed."""


def _end(data: bytes, start: int) -> int:
    """Where the value that begins at `start` ends."""
    line = data.find(b"\r\n", start)
    if line < 0:
        raise _Incomplete
    kind, count, end = data[start : start + 1], data[start + 1 : line], line + 2
    if kind in b"$=!":
        end += int(count) + 2 if int(count) >= 0 else 0
        if end > len(data):
            raise _Incomplete
    elif kind in b"*~>%|":
        for _ in range(int(count) * (2 if kind in b"%|" else 1)):
            end = _end(data, end)
        if kind == b"|":  # attributes stand before the value that they belong to
            end = _end(data, end)
    return end


def _name(command: bytes) -> str:
    """The name of a command: the first of its words."""
    words: list[Any] = command.split(b"\r\n", 3)
    return words[2].decode().upper() if command[:1] == b"*" else command.partition(b" ")[0].strip().decode().upper()
