"""Channels: a listener hears what is published, or is told that it may have missed something."""

# redis-py's methods are typed in part, its replies not at all.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from redis.credentials import CredentialProvider

from cuelight.errors import StoreRefused, StoreUnavailable
from cuelight.redis import RedisClient
from helpers.redis_servers import RedisServer, shared_server, until
from helpers.tcp_proxy import TcpProxy


@pytest.fixture
def proxy() -> Iterator[TcpProxy]:
    with TcpProxy(shared_server().port) as running:
        yield running


class Recorder:
    """Keeps what it hears, and when it was told of gaps."""

    def __init__(self) -> None:
        self.heard: list[bytes | None] = []

    def message(self, message: bytes) -> None:
        self.heard.append(message)

    def gap(self) -> None:
        self.heard.append(None)

    async def until(self, *heard: bytes | None) -> None:
        await until(lambda: self.heard == list(heard), lambda: self.heard)


async def test_subscribers_receive_messages_of_their_channels_until_they_are_closed() -> None:
    async with RedisClient(shared_server().url) as client:
        one, two, other = Recorder(), Recorder(), Recorder()
        first = await client.subscribe("one", one.message, one.gap)
        await client.subscribe("one", two.message, two.gap)
        await client.subscribe("other", other.message, other.gap)
        assert await client.publish("one", b"a") == 1
        await two.until(b"a")
        first.close()
        first.close()
        await client.publish("one", b"b")
        await client.publish("other", b"c")
        await other.until(b"c")
        assert two.heard == [b"a", b"b"]
        assert one.heard == [b"a"]


async def test_a_channel_that_nobody_listens_to_is_given_up_and_can_be_listened_to_again() -> None:
    async with RedisClient(shared_server().url) as client:
        recorder = Recorder()
        for n in range(5):
            subscription = await client.subscribe("fleeting", recorder.message, recorder.gap)
            await client.publish("fleeting", b"%d" % n)
            await recorder.until(*(b"%d" % m for m in range(n + 1)))
            subscription.close()
            if n % 2:
                await until(lambda: _listens(client, "fleeting", 0))


async def _listens(client: RedisClient, channel: str, count: int) -> bool:
    reply: Any = await client.execute("PUBSUB", "NUMSUB", channel)
    counted = reply[channel.encode()] if isinstance(reply, dict) else reply[1]
    return bool(counted == count)


async def test_a_subscription_can_be_closed_from_another_thread() -> None:
    async with RedisClient(shared_server().url) as client:
        recorder = Recorder()
        subscription = await client.subscribe("threads", recorder.message, recorder.gap)
        thread = threading.Thread(target=subscription.close)
        thread.start()
        await anyio.to_thread.run_sync(thread.join)
        await until(lambda: _listens(client, "threads", 0))


@pytest.mark.parametrize("loss", ["cut", "silence"])
async def test_a_lost_connection_is_reopened_and_its_subscribers_are_notified_of_the_gap(
    proxy: TcpProxy, loss: str
) -> None:
    async with (
        RedisClient(proxy.url, timeout=0.6, health_check_interval=0.1) as client,
        RedisClient(shared_server().url) as speaker,
    ):
        recorders = [Recorder(), Recorder(), Recorder()]
        for recorder, channel in zip(recorders, ("a", "a", "b"), strict=True):
            await client.subscribe(channel, recorder.message, recorder.gap)
        for again in range(2):
            getattr(proxy, loss)()
            if loss == "silence":
                # Nothing is asked for over this connection: it is found out by itself.
                await until(lambda: proxy.connections == 0)
                proxy.heal()
            gaps: list[bytes | None] = [None] * (again + 1)
            for recorder in recorders:
                await recorder.until(*gaps)
        await speaker.publish("a", b"there")
        await speaker.publish("b", b"here")
        await recorders[0].until(None, None, b"there")
        await recorders[1].until(None, None, b"there")
        await recorders[2].until(None, None, b"here")


async def test_subscribers_survive_a_server_that_is_away_for_long() -> None:
    with RedisServer() as server:
        async with RedisClient(server.url, timeout=1) as client:
            recorder = Recorder()
            await client.subscribe("ch", recorder.message, recorder.gap)
            server.kill()
            late = Recorder()
            started = time.monotonic()
            with pytest.raises(StoreUnavailable, match="did not begin to listen"):
                await client.subscribe("late", late.message, late.gap)
            assert 0.9 < time.monotonic() - started < 3
            await anyio.to_thread.run_sync(server.start)
            await recorder.until(None)
            assert await client.publish("ch", b"back") == 1
            assert await client.publish("late", b"nobody") == 0
            await recorder.until(None, b"back")


async def test_a_frozen_server_is_noticed_by_its_subscribers() -> None:
    with RedisServer() as server:
        async with RedisClient(server.url, timeout=0.5, connect_timeout=0.5, health_check_interval=0.1) as client:
            recorder = Recorder()
            await client.subscribe("ch", recorder.message, recorder.gap)
            shared: Any = (await client._topology().pubsub_of("ch"))._connection
            server.freeze()
            await until(lambda: shared.error is not None)
            server.thaw()
            await recorder.until(None)


async def test_a_refused_channel_is_an_error_of_the_subscription_alone() -> None:
    with RedisServer() as server:
        server.command("ACL", "SETUSER", "some", "on", ">secret", "~*", "+@all", "resetchannels", "&open:*")
        async with RedisClient(server.url, username="some", password="secret") as client:
            recorder = Recorder()
            await client.subscribe("open:1", recorder.message, recorder.gap)
            with pytest.raises(StoreRefused, match="NOPERM"):
                await client.subscribe("shut", recorder.message, recorder.gap)
            await client.publish("open:1", b"heard")
            await recorder.until(b"heard")


async def test_a_subscriber_that_raises_harms_no_other() -> None:
    async with RedisClient(shared_server().url) as client:
        recorder = Recorder()

        def bad(_: bytes) -> None:
            raise ValueError("bad")

        await client.subscribe("both", bad, recorder.gap)
        await client.subscribe("both", recorder.message, recorder.gap)
        await client.publish("both", b"1")
        await recorder.until(b"1")


async def test_a_subscriber_that_another_one_closes_receives_nothing_more(proxy: TcpProxy) -> None:
    async with RedisClient(proxy.url) as client:
        heard: list[str] = []

        def first(_: object = None) -> None:
            heard.append("first")
            for one in others:
                one.close()

        await client.subscribe("shared", first, first)
        for event in ("message", "gap"):
            others = [await client.subscribe("shared", lambda _: heard.append("other"), lambda: heard.append("other"))]
            if event == "message":
                await client.publish("shared", b"close them")
            else:
                proxy.cut()
            await until(lambda: heard == ["first"], lambda: heard)
            recorder = Recorder()
            marks = await client.subscribe("shared", recorder.message, recorder.gap)
            await client.publish("shared", b"mark")
            await recorder.until(b"mark")
            assert heard == ["first", "first"]
            marks.close()
            heard.clear()


async def test_listening_goes_on_after_credentials_could_not_be_had(
    proxy: TcpProxy, caplog: pytest.LogCaptureFixture
) -> None:
    class Vault(CredentialProvider):
        error: Exception | None = None
        asked = 0

        def get_credentials(self) -> tuple[str, str]:
            self.asked += 1
            if self.error is not None:
                raise self.error
            return "default", "any"

    vault = Vault()
    recorder = Recorder()
    async with RedisClient(proxy.url, timeout=0.3, credential_provider=vault) as client:
        vault.error = LookupError("the vault is sealed")
        with pytest.raises(StoreUnavailable, match=r"did not begin to listen to 'ch' .*the vault is sealed"):
            await client.subscribe("ch", recorder.message, recorder.gap)
        assert "the vault is sealed" in caplog.text
    vault.error = None
    async with RedisClient(proxy.url, credential_provider=vault) as client:
        await client.subscribe("ch", recorder.message, recorder.gap)
        vault.error, vault.asked = LookupError("the vault is sealed"), 0
        proxy.cut()
        await until(lambda: vault.asked >= 1)
        vault.error = None
        await recorder.until(None)
        await client.publish("ch", b"back")
        await recorder.until(None, b"back")


async def test_a_subscription_that_is_cancelled_is_not_left_behind() -> None:
    async with RedisClient(shared_server().url) as client:
        recorder = Recorder()
        await client.subscribe("kept", recorder.message, recorder.gap)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await client.subscribe("cancelled", recorder.message, recorder.gap)
        assert scope.cancelled_caught
        await until(lambda: _listens(client, "cancelled", 0))
        await client.subscribe("cancelled", recorder.message, recorder.gap)
        await client.publish("cancelled", b"once")
        await recorder.until(b"once")
    async with RedisClient(shared_server().url) as client:
        # Cancelled before there is a connection to listen over.
        recorder = Recorder()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await client.subscribe("cancelled", recorder.message, recorder.gap)
        assert scope.cancelled_caught
        assert await client.publish("cancelled", b"to nobody") == 0
        await client.subscribe("cancelled", recorder.message, recorder.gap)
        assert await client.publish("cancelled", b"once") == 1
        await recorder.until(b"once")
