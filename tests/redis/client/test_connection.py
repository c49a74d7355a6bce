"""One connection for many: nobody gets another's reply, nothing hangs, and what is lost is not sent twice."""

# redis-py's methods are typed in part, its replies not at all.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import redis

from cuelight.errors import StoreUnavailable
from cuelight.redis import RedisClient, Script
from cuelight.redis._client._connection import pack
from helpers import Backend, run_on
from helpers.redis_servers import RedisServer, shared_server, until
from helpers.tcp_proxy import TcpProxy

BUMP = Script("return redis.call('SET', KEYS[1], ARGV[1], 'GET')", "bump")


@pytest.fixture
def proxy() -> Iterator[TcpProxy]:
    with TcpProxy(shared_server().port) as running:
        yield running


async def connected(client: RedisClient) -> int:
    """How many connections the server has that are called as this client calls them."""
    listed: bytes = await client.execute("CLIENT", "LIST")
    return listed.count(b"lib-name=cuelight")


class Cancelling:
    """Runs a coroutine and cancels it at its n-th await; whether it came that far."""

    def __init__(self, manner: str) -> None:
        self.manner = manner

    async def at(self, n: int, function: Callable[[], Awaitable[Any]]) -> tuple[bool, Any]:
        if self.manner == "task":
            return await self._by_task(n, function)
        with anyio.CancelScope() as scope:
            return False, await _Steps(function(), n, scope.cancel)
        return True, None

    async def _by_task(self, n: int, function: Callable[[], Awaitable[Any]]) -> tuple[bool, Any]:
        async def run() -> Any:
            return await _Steps(function(), n, lambda: task.cancel())

        task = asyncio.ensure_future(run())
        try:
            return False, await task
        except asyncio.CancelledError:
            return True, None


class _Steps:
    """Awaits what is given, and calls something just before it would sleep for the n-th time."""

    def __init__(self, inner: Awaitable[Any], n: int, call: Callable[[], object]) -> None:
        self._inner, self._n, self._call = inner, n, call

    def __await__(self) -> Any:
        steps: Any = self._inner.__await__()
        sent: Any = None
        error: BaseException | None = None
        slept = 0
        while True:
            try:
                waits = steps.send(sent) if error is None else steps.throw(error)
            except StopIteration as stop:
                return stop.value
            slept += 1
            if slept == self._n:
                self._call()
            sent, error = None, None
            try:
                sent = yield waits
            except BaseException as thrown:
                error = thrown


@pytest.mark.parametrize("manner", ["scope", "task"])
async def test_no_reply_goes_to_another_caller_wherever_one_is_cancelled(manner: str, anyio_backend_name: str) -> None:
    if manner == "task" and anyio_backend_name == "trio":
        manner = "scope"  # trio has only scopes; there is no other way to be cancelled
    cancelling = Cancelling(manner)
    kinds: dict[str, Callable[[RedisClient], Awaitable[Any]]] = {
        "command": lambda client: client.execute("ECHO", "mine"),
        "script": lambda client: client.run(Script("return 'mine'"), ["k"]),
        "pipeline": lambda client: client.pipeline().execute_command("ECHO", "mine").execute(),
        "blocking": lambda client: client.execute("BLPOP", "nothing-there", 0.01),
    }
    async with RedisClient(shared_server().url) as warm:
        for kind, function in kinds.items():
            for start in ("cold", "warm"):
                for n in range(1, 100):
                    client = warm if start == "warm" else RedisClient(shared_server().url)
                    replies: dict[int, Any] = {}

                    async def other(number: int, client: RedisClient = client, replies: Any = replies) -> None:
                        replies[number] = await client.execute("ECHO", number)

                    cancelled, result = False, None
                    async with anyio.create_task_group() as group:
                        group.start_soon(other, 1)
                        cancelled, result = await cancelling.at(n, lambda: function(client))  # noqa: B023
                        group.start_soon(other, 2)
                    assert replies == {1: b"1", 2: b"2"}, (kind, start, n)
                    if start == "cold":
                        await client.aclose()
                    if not cancelled:
                        assert result in (b"mine", [b"mine"], None), (kind, start, n)
                        break
                else:
                    pytest.fail(f"{kind} never completed")


async def test_a_command_that_is_late_fails_and_its_reply_is_dropped(proxy: TcpProxy) -> None:
    async with RedisClient(proxy.url, timeout=0.4) as client:
        await client.execute("PING")
        proxy.delay(5)
        started = time.monotonic()
        with pytest.raises(StoreUnavailable, match=r"nothing came|no reply"):
            await client.execute("ECHO", "late")
        assert time.monotonic() - started < 3
        proxy.delay(0)
        assert await client.execute("ECHO", "next") == b"next"


async def test_a_silent_connection_is_given_up_and_made_anew(proxy: TcpProxy) -> None:
    async with RedisClient(proxy.url, timeout=0.5, health_check_interval=0.1) as client:
        await client.execute("PING")
        assert proxy.accepted == 1
        proxy.silence()
        with pytest.raises(StoreUnavailable):
            await client.execute("ECHO", "lost")
        proxy.heal()
        assert await client.execute("ECHO", "again") == b"again"
        # Nobody asks for anything: it is found out all the same.
        proxy.silence()
        await until(lambda: proxy.connections == 0)
        proxy.heal()
        assert await client.execute("ECHO", "again") == b"again"


async def test_execute_never_sends_twice(proxy: TcpProxy) -> None:
    async with RedisClient(proxy.url, timeout=0.3) as client:
        await client.execute("SET", "count", 0)
        proxy.cut_every(2, of={"INCR"})
        lost = 0
        for _ in range(10):
            try:
                await client.execute("INCR", "count")
            except StoreUnavailable:
                lost += 1
        assert lost == 5
        assert proxy.commands["INCR"] == 10
        assert await client.execute("GET", "count") == b"10"


@pytest.mark.parametrize("fault", ["cut before", "cut after", "swallow"])
async def test_run_gets_its_answer_although_replies_are_lost(proxy: TcpProxy, fault: str) -> None:
    async with RedisClient(proxy.url, timeout=1.0) as client, RedisClient(shared_server().url) as witness:
        await client.run(BUMP, ["k"], [0])
        if fault == "swallow":
            proxy.swallow_every(3, of={"EVALSHA"}, times=2)
        else:
            proxy.cut_every(3, before=fault == "cut before", of={"EVALSHA"}, times=2)
        for n in range(1, 9):
            await client.run(BUMP, ["k"], [n])
            assert await witness.execute("GET", "k") == b"%d" % n
        assert proxy.faults == 2


async def test_run_blocking_gets_its_answer_although_replies_are_lost(proxy: TcpProxy) -> None:
    client = RedisClient(proxy.url, timeout=1.0)
    client.run_blocking(BUMP, ["k"], [0])
    proxy.cut_every(3, of={"EVALSHA"}, times=2)
    for n in range(1, 9):
        client.run_blocking(BUMP, ["k"], [n])
        assert client.execute_blocking("GET", "k") == b"%d" % n
    client.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        client.execute_blocking("GET", "k")


async def test_scripts_run_also_after_the_server_has_forgotten_them() -> None:
    async with RedisClient(shared_server().url) as client:
        for _ in range(2):
            await client.run(BUMP, ["k"], [1])
            client.run_blocking(BUMP, ["k"], [1])
            await client.execute("SCRIPT", "FLUSH")


async def test_a_server_that_was_killed_is_reached_again_when_it_is_back() -> None:
    with RedisServer() as server:
        async with RedisClient(server.url, timeout=5) as client:
            await client.execute("PING")
            server.kill()
            with pytest.raises(StoreUnavailable):
                await client.execute("PING")
            async with anyio.create_task_group() as group:
                group.start_soon(client.run, BUMP, ["k"], [1])
                await anyio.to_thread.run_sync(server.start)
            assert await client.execute("GET", "k") == b"1"


async def test_a_closed_client_fails_what_is_under_way_and_leaves_nothing() -> None:
    async with RedisClient(shared_server().url) as watcher:
        before = await connected(watcher)
        client = RedisClient(shared_server().url)
        failed: list[str] = []

        async def block() -> None:
            with pytest.raises(StoreUnavailable, match="closed"):
                await client.execute("BLPOP", "nothing-there", 0)
            failed.append("blocking")

        async def listen() -> None:
            await client.subscribe("ch", lambda _: None, lambda: None)

        async with anyio.create_task_group() as group:
            await client.execute("PING")
            await listen()
            group.start_soon(block)
            await until(lambda: _is(watcher, before + 3))
            await client.aclose()
        assert failed == ["blocking"]
        await until(lambda: _is(watcher, before))
        with pytest.raises(StoreUnavailable, match="closed"):
            await client.execute("PING")
        await client.aclose()


async def _is(client: RedisClient, count: int) -> bool:
    return await connected(client) == count


def test_each_loop_of_each_thread_has_connections_that_end_with_it(backend: Backend) -> None:
    client = RedisClient(shared_server().url)

    async def use() -> None:
        assert await client.execute("ECHO", "here") == b"here"
        await client.subscribe("ch", lambda _: None, lambda: None)

    for _ in range(3):
        run_on(backend, use)
    assert client._topologies == {}

    async def both() -> None:
        await use()
        leave = threading.Event()
        arrived = threading.Event()

        def elsewhere() -> None:
            async def stay() -> None:
                await use()
                arrived.set()
                await anyio.to_thread.run_sync(leave.wait)

            run_on(backend, stay)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        await anyio.to_thread.run_sync(arrived.wait)
        assert len(client._topologies) == 2
        await client.aclose()
        assert client._topologies == {}
        leave.set()
        await anyio.to_thread.run_sync(thread.join)

    run_on(backend, both)


async def test_what_waits_to_be_sent_is_bounded(proxy: TcpProxy) -> None:
    async with RedisClient(proxy.url, timeout=5) as client:
        await client.execute("PING")
        topology = client._topology()
        piece = b"x" * 100_000
        sent = 0

        async def push(n: int) -> None:
            nonlocal sent
            await client.execute("SET", f"large:{n}", piece, "EX", 10)
            sent += 1

        shared: Any = topology._server_connections.connection  # type: ignore[attr-defined]
        highest = 0
        async with anyio.create_task_group() as group:
            for n in range(200):
                group.start_soon(push, n)
            while sent < 200:
                highest = max(highest, shared._out_size)
                await anyio.lowlevel.checkpoint()
        assert highest <= (1 << 20) + len(piece) + 100


async def test_the_first_command_of_a_pass_is_sent_before_the_task_yields() -> None:
    server = shared_server()
    async with RedisClient(server.url) as client:
        await client.delete("at once")
        shared: Any = client._topology()._server_connections.connection  # type: ignore[attr-defined]
        await anyio.lowlevel.checkpoint()
        slot = shared.post(pack(("SET", "at once", "1")))
        deadline = time.monotonic() + 20
        while server.command("GET", "at once") != b"$1\r\n1\r\n":  # it blocks the loop
            assert time.monotonic() < deadline
        assert await slot == b"OK"


async def test_a_command_that_is_larger_than_the_socket_takes_arrives_whole_and_in_its_turn() -> None:
    with RedisServer() as server:
        async with RedisClient(server.url, timeout=30) as client:
            await client.execute("PING")
            shared: Any = client._topology()._server_connections.connection  # type: ignore[attr-defined]
            large = bytes(range(256)) * 40_000
            replies: dict[int, Any] = {}

            async def send(place: int, *command: str | bytes) -> None:
                replies[place] = await client.execute(*command)

            server.freeze()
            async with anyio.create_task_group() as group:
                group.start_soon(send, 0, "SET", "large", large)
                await until(lambda: bool(shared.pending == 1))
                for n in range(1, 4):
                    group.start_soon(send, n, "APPEND", "large", str(n))
                    await anyio.lowlevel.checkpoint()
                server.thaw()
            assert replies == {0: b"OK"} | {n: len(large) + n for n in range(1, 4)}
            assert await client.get("large") == large + b"123"


async def test_a_connection_that_breaks_while_it_is_written_fails_its_commands_and_is_made_anew() -> None:
    async with RedisClient(shared_server().url) as client:
        await client.execute("PING")
        shared: Any = client._topology()._server_connections.connection  # type: ignore[attr-defined]
        transport = getattr(shared, "_transport", None)
        connection = shared._socket if transport is None else transport.get_extra_info("socket")
        connection.shutdown(socket.SHUT_RDWR)
        with pytest.raises(StoreUnavailable):
            await client.execute("PING")
        assert shared.error is not None
        assert await client.execute("PING") == b"PONG"


async def test_commands_that_block_do_not_keep_others_waiting_and_their_connections_are_kept() -> None:
    async with RedisClient(shared_server().url) as client:
        await client.execute("DEL", "line")
        got: list[Any] = []

        async def wait() -> None:
            got.append(await client.blpop(["line"], timeout=5))

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(wait)
            await until(lambda: _blocked(client, 3))
            await client.rpush("line", 1, 2, 3)
        assert sorted(got) == [[b"line", b"1"], [b"line", b"2"], [b"line", b"3"]]
        before = await connected(client)
        assert await client.blpop(["line"], timeout=0.01) is None
        assert await connected(client) == before


async def _blocked(client: RedisClient, count: int) -> bool:
    info: Any = await client.execute("INFO", "clients")
    return b"blocked_clients:%d\r" % count in info


async def test_a_command_that_blocks_for_ever_ends_with_a_server_that_is_silent(proxy: TcpProxy) -> None:
    async with RedisClient(proxy.url, timeout=0.5, connect_timeout=0.5, health_check_interval=0.1) as client:

        async def silence() -> None:
            await until(lambda: proxy.commands["BLPOP"] == 1)
            proxy.silence()

        async with anyio.create_task_group() as group:
            group.start_soon(silence)
            with pytest.raises(StoreUnavailable):
                await client.execute("BLPOP", "nothing-there", 0)


async def test_a_busy_or_loading_server_is_waited_for() -> None:
    with RedisServer("--busy-reply-threshold", "50") as server:
        async with RedisClient(server.url, timeout=5) as client:
            await client.run(BUMP, ["k"], [1])
            loop = Script("while true do end")

            async def spin() -> None:
                async with RedisClient(server.url, timeout=5) as other:
                    with pytest.raises((StoreUnavailable, redis.ResponseError)):
                        await other.execute("EVAL", loop.text, 0)

            async with anyio.create_task_group() as group:
                group.start_soon(spin)
                await until(lambda: _says(client, "BUSY"))
                with pytest.raises(StoreUnavailable, match="BUSY"):
                    await client.execute("GET", "k")
                group.start_soon(_kill_script_soon, client)
                assert await client.run(BUMP, ["k"], [2]) == b"1"


async def _says(client: RedisClient, word: str) -> bool:
    try:
        await client.execute("GET", "k")
    except StoreUnavailable as error:
        return word in str(error)
    return False


async def _kill_script_soon(client: RedisClient) -> None:
    await client.execute("SCRIPT", "KILL")


@pytest.mark.filterwarnings("ignore:unclosed transport:ResourceWarning")  # that is what was done wrong here
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_loop_that_was_closed_without_ending_its_tasks_holds_no_connection_at_the_server() -> None:
    client = RedisClient(shared_server().url, client_name="left-behind")
    loop = asyncio.new_event_loop()
    loop.run_until_complete(client.execute("PING"))
    topology = client._topologies[loop]
    loop.close()

    async def others() -> None:
        async with RedisClient(shared_server().url) as watcher:
            assert b"name=left-behind" in await watcher.execute("CLIENT", "LIST")
            assert await client.execute("ECHO", "here") == b"here"
            await client.aclose()

            async def gone() -> bool:
                return b"name=left-behind" not in await watcher.execute("CLIENT", "LIST")

            await until(gone)

    anyio.run(others)
    assert client._topologies == {}
    assert not topology.connections.all


async def test_two_tasks_that_find_no_connection_make_one(proxy: TcpProxy) -> None:
    async with RedisClient(proxy.url) as client:
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(client.execute, "PING")
        assert proxy.accepted == 1
        proxy.cut()
        await until(lambda: proxy.connections == 0)
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(client.run, BUMP, ["k"], [1])
        assert proxy.accepted == 2


async def test_who_is_refused_waits_longer_each_time_and_at_random(proxy: TcpProxy) -> None:
    async with RedisClient(proxy.url, timeout=1.5) as client:
        proxy.refuse()
        with pytest.raises(StoreUnavailable):
            await client.run(BUMP, ["k"], [1])
        assert 3 <= proxy.accepted <= 12
        proxy.heal()
        assert await client.execute("ECHO", "well") == b"well"
