"""The node of an actor system in a cluster of systems that share a Redis or Valkey server."""

from __future__ import annotations

import difflib
import logging
import os
import re
import secrets
import socket
from collections.abc import Iterable
from contextvars import copy_context
from functools import partial
from types import ModuleType
from typing import Any, Final

import anyio
import msgspec

from cuelight._log import get_log
from cuelight._text import safe_repr
from cuelight.actors import ActorRuntime, Cell, Exit, Ref
from cuelight.actors._cell import DEAD
from cuelight.errors import ActorNotFound, NameTaken, StoreUnavailable
from cuelight.redis._actors._directory import Directory
from cuelight.redis._actors._membership import Membership
from cuelight.redis._actors._peer import PeerStatistics
from cuelight.redis._actors._registry import Registry
from cuelight.redis._actors._remote_cell import RemoteCell
from cuelight.redis._actors._transport import Transport, check_transport
from cuelight.redis._client import RedisClient, Server, answer_time, publishing_command
from cuelight.tasks._stores._checks import check_text

log = get_log("cuelight.redis")

INBOX: Final = 16 * 1024 * 1024
"""Bytes waiting on the server for one node above which its senders must wait; a single batch is always accepted."""

LONGEST_NAME: Final = 200


class NodeStatistics(msgspec.Struct, frozen=True):
    """The state of a node at one moment. Counts start again with each incarnation.

    Attributes:
        identity: the identity of this incarnation.
        incarnation: how often the node has joined its cluster.
        joined: whether the node is a member now, as far as it knows.
        peers: the number of other nodes that it is in touch with.
        asking: the number of pending requests to other nodes.
        exposed: the number of names that it has registered.
        sent: frames sent (each message, answer, confirmation and so on is one).
        received: frames received.
        refused: rejected messages and data, and rejected direct connections.
        endpoint: the address for direct connections, such as "unix:/run/user/1000/..." or "tcp:10.0.0.5:7400"; both,
            separated by a space, or "" if there is none.
        by_peer: the traffic with each other node, and whether it is direct or through the server.
    """

    identity: str
    incarnation: int
    joined: bool
    peers: int
    asking: int
    exposed: int
    sent: int
    received: int
    refused: int
    endpoint: str = ""
    by_peer: tuple[PeerStatistics, ...] = ()


class RedisNode:
    """The node of an actor system in a cluster: `ActorSystem("shop", node=RedisNode(url, messages=[Add, Total]))`.

    Systems with the same server and the same `cluster` can `expose` their actors to each other and `resolve` the
    exposed names. A node belongs to one system. While it runs it holds a lease, which a thread renews. If the lease
    expires, the other nodes treat the node as lost. A node that was only frozen or cut off notices this: its refs to
    actors on other nodes end with `NodeLost`, and it joins again with a new identity and the names that it had exposed.
    """

    def __init__(
        self,
        redis: Server | str = "redis://localhost:6379",
        *,
        messages: Iterable[type[Any] | ModuleType],
        cluster: str = "default",
        lease: float = 10.0,
        max_message: int = 1024 * 1024,
        transport: Transport = "unix",
    ) -> None:
        """Configure the node. It joins when the block of its system is entered.

        Args:
            redis: a URL; or a `RedisClient` or other `Server`, which stays open when the node leaves.
            messages: the types that may be sent: subclasses of `Message`, `Request`, `StreamRequest` and `ReplyError`,
                and modules that define some. All nodes that use a message must know its type.
            cluster: the name of the cluster; nodes with the same name see each other.
            lease: seconds without a sign of life after which a node is lost.
            max_message: maximum bytes of one message, answer or chunk.
            transport: the route of messages to other nodes. "unix": directly to nodes of the same user on this machine,
                through the server to others. A `TcpTransport`: also directly to nodes on other machines that have one.
                "redis": always through the server.

        Raises:
            ValueError: a value is invalid, or two messages have the same name.
            TypeError: an element of `messages` can never be sent.
        """
        if not lease >= 0.2:
            raise ValueError(f"lease={safe_repr(lease)}: give 0.2 seconds or more (default 10)")
        if not 1 <= max_message <= INBOX:
            raise ValueError(f"max_message={safe_repr(max_message)}: give bytes, from 1 to {INBOX}")
        if not re.fullmatch(r"[^\s{}]{1,100}", cluster):
            raise ValueError(f"cluster={safe_repr(cluster)}: give up to 100 characters without braces and white space")
        check_text("RedisNode", cluster=cluster)
        check_transport(transport)
        self._registry = Registry(messages, max_message)
        self._owns_client = isinstance(redis, str)
        self._server: Any = _client(redis, lease) if isinstance(redis, str) else redis
        self._cluster, self._lease = cluster, lease
        self._transport: Transport = transport
        self._runtime: ActorRuntime | None = None
        self._membership: Membership | None = None
        self._incarnation = 0
        self._publish = ""
        self._names: dict[str, Cell] = {}
        self._leaving = self._rejoining = False
        self._left: anyio.Event | None = None
        self._scope: anyio.CancelScope | None = None
        self._tasks = 0
        self._idle: anyio.Event | None = None

    def __repr__(self) -> str:
        return f"<node of cluster {self._cluster!r} in {self._server.name}>"

    @property
    def identity(self) -> str:
        """The identity of this incarnation for other nodes; "" before it has joined."""
        return "" if self._membership is None else self._membership.identity

    def statistics(self) -> NodeStatistics:
        """Return the current state of the node. Not a checkpoint."""
        membership = self._membership
        return NodeStatistics(
            identity=self.identity,
            incarnation=self._incarnation,
            joined=membership is not None and not membership.over,
            peers=0 if membership is None else membership.peers,
            asking=0 if membership is None else len(membership.pending_requests),
            exposed=len(self._names),
            sent=0 if membership is None else membership.sent,
            received=0 if membership is None else membership.received,
            refused=0 if membership is None else membership.refused,
            endpoint=""
            if membership is None or membership.listener.endpoint is None
            else str(membership.listener.endpoint),
            by_peer=() if membership is None else membership.statistics_of_peers(),
        )

    # Joining, and joining again.

    async def join(self, runtime: ActorRuntime) -> None:
        """Enter the cluster; the system calls this.

        Raises:
            RuntimeError: this node belongs to another system.
            StoreUnavailable: the server could not be reached.
            StoreRefused: the server rejects the node, or the cluster is of another version.
        """
        if self._runtime is not None:
            raise RuntimeError(f"{self!r} has a system already: make a node for each system")
        self._runtime = runtime
        self._publish = await publishing_command(self._server)
        await self._enter(runtime)

    async def _enter(self, runtime: ActorRuntime) -> None:
        label = re.sub(r"[^\w.-]", "-", runtime.root.name)[:50]
        identity = f"{label}-{secrets.token_hex(6)}"
        directory = Directory(
            self._server, self._cluster, identity, lease=self._lease, inbox=INBOX, publish=self._publish
        )
        membership = Membership(
            directory, runtime, self._registry, self._lease, self._on_lost, transport=self._transport
        )
        self._membership = membership
        await membership.begin(f"{socket.gethostname()} {os.getpid()}")
        self._incarnation += 1

    def _on_lost(self, membership: Membership) -> None:
        if membership is self._membership and not (self._leaving or self._rejoining):
            self._rejoining = True
            log.warning("the node %s was declared lost: it joins its cluster again", membership.identity)
            self._spawn(partial(self._rejoin, membership), "joins again")

    async def _rejoin(self, lost: Membership) -> None:
        with anyio.CancelScope() as self._scope:
            await lost.finish()
            entered = False
            while not (entered or self._leaving):
                entered = await self._rejoin_once()
        self._rejoining = False

    async def _rejoin_once(self) -> bool:
        """Try to join with all names. If one step fails, all of them are undone."""
        assert self._runtime is not None  # noqa: S101 - it has joined before
        assert self._membership is not None  # noqa: S101
        try:
            await self._membership.directory.leave()  # if it still is a member: its names are needed
            await self._enter(self._runtime)
            for name, cell in list(self._names.items()):
                await self._expose_again(name, cell)
            self._member()
        except Exception as error:  # any error: a node that gave up would never join again
            known = isinstance(error, StoreUnavailable | LookupError)
            log.log(logging.DEBUG if known else logging.WARNING, "cannot join the cluster again yet: %r", error)
            await self._membership.leave(self._leave_timeout)
            await anyio.sleep(min(0.5, self._lease / 5))
            return False
        return True

    async def _expose_again(self, name: str, cell: Cell) -> None:
        membership = self._member()
        taken = await membership.directory.expose(name, membership.export(cell), cell.path)
        if taken is not None:
            log.warning("the name %r of %s was taken meanwhile by %s", name, cell.path, taken)
            self._names.pop(name, None)

    def _member(self) -> Membership:
        membership = self._membership
        if membership is None or membership.over:
            raise StoreUnavailable(f"{self!r} is not in its cluster now, and tries to return")
        return membership

    # Names.

    async def expose(self, ref: Ref[Any], name: str) -> None:
        """See `ActorSystem.expose`."""
        cell = ref._cell
        _check_name(name)
        if isinstance(cell, RemoteCell) or cell.runtime is not self._runtime:
            raise ValueError(f"{cell.path} is not an actor of this system: expose it where it lives")
        if cell.state == DEAD:
            raise ActorNotFound(f"{cell.path} has ended: expose an actor that lives")
        membership = self._member()
        try:
            taken = await membership.directory.expose(name, membership.export(cell), cell.path)
        except LookupError:
            membership.removed("the server says so")
            raise StoreUnavailable(f"{self!r} was declared lost, and tries to return") from None
        except BaseException:
            self._unregister_soon(name, cell)  # it may have taken effect
            raise
        if taken is not None:
            identity, _, path = taken.split(" ", 2)
            raise NameTaken(f"{path}@{identity} has the name {safe_repr(name)} already")
        self._names[name] = cell
        if cell.state == DEAD:
            self._ended(name, cell)
            raise ActorNotFound(f"{cell.path} has ended: expose an actor that lives")
        cell.ensure_extras().call_when_ended(lambda exit_: self._ended(name, cell, exit_))

    def _ended(self, name: str, cell: Cell, _: Exit | None = None) -> None:
        if self._names.get(name) is cell:
            del self._names[name]
            self._unregister_soon(name, cell)

    def _unregister_soon(self, name: str, cell: Cell) -> None:
        """Remove a name in the background."""

        async def drop() -> None:
            try:
                await self._unregister_name(name, cell)
            except Exception as error:
                log.warning("the name %r could not be taken back: it ends with this node: %s", name, error)

        self._spawn(drop, f"takes back {name}")

    async def _unregister_name(self, name: str, cell: Cell) -> None:
        membership = self._membership
        if membership is not None and not membership.over:  # otherwise the name ended with the membership
            await membership.directory.expose(name, cell.serial, cell.path, give=False)

    async def unexpose(self, name: str) -> None:
        """See `ActorSystem.unexpose`."""
        cell = self._names.get(name)
        if cell is None:
            raise ActorNotFound(
                f"this node has given nobody the name {safe_repr(name)}; it has given {_format_names(self._names)}"
            )
        await self._unregister_name(name, cell)
        if self._names.get(name) is cell:
            del self._names[name]

    async def resolve(self, name: str, timeout: float) -> Ref[Any]:
        """See `ActorSystem.resolve`."""
        _check_name(name)
        if not timeout >= 0:
            raise ValueError(f"timeout={timeout!r}: give seconds, 0 or more")
        deadline, pause = anyio.current_time() + timeout, 0.01
        while True:
            membership = self._member()
            limit = answer_time(timeout, deadline - anyio.current_time())
            address, names = await membership.directory.resolve(name, limit)
            if address is not None:
                return membership.ref_at(address)
            left = deadline - anyio.current_time()
            if left <= 0:
                near = difflib.get_close_matches(name, names, 3)
                hint = f"is it {_format_names(near)}?" if near else f"there are {_format_names(names[:10])}"
                raise ActorNotFound(
                    f"no live actor of the cluster {self._cluster!r} has the name {safe_repr(name)}; {hint}"
                )
            pause = min(pause * 1.5, 0.25)
            await anyio.sleep(min(pause, left))

    # Leaving.

    @property
    def _leave_timeout(self) -> float:
        return min(5.0, self._lease)

    def withdraw(self, runtime: ActorRuntime) -> None:
        """Remove all names; the system calls this when it is about to end."""
        if self._runtime is not runtime:
            return
        for name, cell in list(self._names.items()):
            self._ended(name, cell)

    async def leave(self, runtime: ActorRuntime) -> None:
        """Leave the cluster; the system calls this when all actors have ended."""
        if self._runtime is not runtime:
            return
        if self._left is None:
            self._leaving = True
            self._left = anyio.Event()
            leave = partial(self._leave, self._left)
            runtime.backend.spawn(leave, context=copy_context(), name="cuelight node leaves")
        await self._left.wait()

    async def _leave(self, left: anyio.Event) -> None:
        try:
            if self._scope is not None:
                self._scope.cancel()
            with anyio.move_on_after(self._leave_timeout):
                while self._tasks:
                    self._idle = anyio.Event()
                    await self._idle.wait()
            if self._membership is not None:
                await self._membership.leave(self._leave_timeout)
            if self._owns_client:
                await self._server.aclose()
        finally:
            left.set()

    def _spawn(self, function: Any, what: str) -> None:
        """Run a function that does not raise in the background. The node waits for it when it leaves."""
        runtime = self._runtime
        assert runtime is not None  # noqa: S101 - it has joined
        self._tasks += 1

        async def run() -> None:
            try:
                await function()
            finally:
                self._tasks -= 1
                if self._idle is not None:
                    self._idle.set()

        runtime.backend.spawn(run, context=copy_context(), name=f"cuelight node {what}")


def _client(url: str, lease: float) -> RedisClient:
    # A silent connection must be closed early enough to renew the lease over another one.
    return RedisClient(url, timeout=None if "socket_timeout=" in url else max(1.0, min(5.0, lease / 2)))


def _check_name(name: str) -> None:
    if not isinstance(name, str) or not 1 <= len(name) <= LONGEST_NAME:  # type: ignore[redundant-expr]  # pyright: ignore
        raise ValueError(f"{safe_repr(name)} is no name: give 1 to {LONGEST_NAME} characters")
    check_text("the name of an actor", name=name)


def _format_names(names: Iterable[str]) -> str:
    return ", ".join(map(safe_repr, sorted(names))) or "none"
