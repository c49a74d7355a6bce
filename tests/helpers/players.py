"""Actors for the tests of actors: one of each kind, which do the same."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import anyio

from cuelight import Actor, Message, ReplyError, Request, Terminated, on


class Put(Message):
    item: Any


class Get(Request[list[Any]]):
    pass


class Boom(Request[None]):
    why: str = "boom"


class Bang(Message):
    why: str = "bang"


class Refuse(Request[None]):
    why: str = "no"


class Wait(Request[str]):
    """Answered once the gate opens."""

    name: str = ""


class Hold(Message):
    """Handled until the gate opens."""


class Plain(Actor[Put | Get | Boom | Bang | Refuse]):
    """`def` handlers only: it has no task."""

    def __init__(self, items: list[Any] | None = None) -> None:
        self.items: list[Any] = [] if items is None else items

    @on(Put)
    def put(self, message: Put) -> None:
        self.items.append(message.item)

    @on(Get)
    def get(self, message: Get) -> list[Any]:
        return list(self.items)

    @on(Boom)
    def boom(self, message: Boom) -> None:
        raise ValueError(message.why)

    @on(Bang)
    def bang(self, message: Bang) -> None:
        raise ValueError(message.why)

    @on(Refuse)
    def refuse(self, message: Refuse) -> None:
        raise ReplyError(message.why)


class Busy(Actor[Put | Get | Boom | Bang | Refuse | Wait | Hold]):
    """`async def` handlers; some of them wait for a gate, and write down if they are cancelled there."""

    def __init__(self, items: list[Any] | None = None) -> None:
        self.items: list[Any] = [] if items is None else items
        self.gate = anyio.Event()

    @on(Put)
    async def put(self, message: Put) -> None:
        if message.item == "open":
            self.gate.set()
        else:
            self.items.append(message.item)

    @on(Get)
    async def get(self, message: Get) -> list[Any]:
        return list(self.items)

    @on(Boom)
    async def boom(self, message: Boom) -> None:
        raise ValueError(message.why)

    @on(Bang)
    async def bang(self, message: Bang) -> None:
        raise ValueError(message.why)

    @on(Refuse)
    async def refuse(self, message: Refuse) -> None:
        raise ReplyError(message.why)

    @on(Wait)
    async def wait(self, message: Wait) -> str:
        await self._pass_gate()
        return message.name

    @on(Hold)
    async def hold(self, message: Hold) -> None:
        await self._pass_gate()

    async def _pass_gate(self) -> None:
        passed = False
        try:
            await self.gate.wait()
            passed = True
        finally:
            if not passed:
                self.items.append("cut")


class Loop(Actor[Put | Get | Boom | Bang | Refuse]):
    """A loop of its own."""

    def __init__(self, items: list[Any] | None = None) -> None:
        self.items: list[Any] = [] if items is None else items

    async def run(self) -> None:
        async for message in self.inbox:
            if isinstance(message, Put):
                self.items.append(message.item)
            elif isinstance(message, Get):
                self.inbox.reply(list(self.items))
            elif isinstance(message, Refuse):
                self.defer_reply().refuse(ReplyError(message.why))
            else:
                raise ValueError(message.why)  # noqa: TRY004


async def outcome(awaitable: Awaitable[Any]) -> Any:
    """What comes of it: the value, or the error."""
    try:
        return await awaitable
    except Exception as error:
        return error


async def settle() -> None:
    """Wait until every task waits."""
    await anyio.wait_all_tasks_blocked()


class WatchAll(Request[None]):
    refs: list[Any]


class UnwatchAll(Request[None]):
    refs: list[Any]


class Watcher(Actor[WatchAll | UnwatchAll | Put | Hold]):
    """Writes down whose end it was told, and with what exit."""

    def __init__(self, seen: list[Any]) -> None:
        self.seen = seen

    @on(WatchAll)
    def watch_all(self, message: WatchAll) -> None:
        for ref in message.refs:
            self.watch(ref)

    @on(UnwatchAll)
    def unwatch_all(self, message: UnwatchAll) -> None:
        for ref in message.refs:
            self.unwatch(ref)

    @on(Put)
    def put(self, message: Put) -> None:
        self.seen.append(message.item)

    @on(Hold)
    async def hold(self, message: Hold) -> None:
        await anyio.sleep_forever()

    @on(Terminated)
    async def terminated(self, message: Terminated) -> None:
        self.seen.append(message.ref)
