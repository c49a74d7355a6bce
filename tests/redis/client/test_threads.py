"""Connections of threads: which are used again, which are not, and how long a thread waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cuelight.errors import StoreUnavailable
from cuelight.redis import RedisClient
from cuelight.redis._client._blocking_connection import BlockingConnection
from helpers.redis_servers import shared_server
from helpers.tcp_proxy import TcpProxy


@pytest.fixture
def proxy() -> Iterator[TcpProxy]:
    with TcpProxy(shared_server().port) as running:
        yield running


@pytest.fixture
def client(proxy: TcpProxy) -> Iterator[RedisClient]:
    client = RedisClient(proxy.url, timeout=5.0)
    yield client
    client.close()


def idle(client: RedisClient) -> list[BlockingConnection]:
    (found,) = client._blocking_server._idle.values()
    return list(found)


def test_a_connection_of_a_thread_is_used_again(client: RedisClient, proxy: TcpProxy) -> None:
    for number in range(20):
        assert client.execute_blocking("ECHO", number) == b"%d" % number
    assert proxy.accepted == 1


def test_threads_at_one_time_have_connections_of_their_own(client: RedisClient, proxy: TcpProxy) -> None:
    client.execute_blocking("DEL", "turn")
    replies: list[Any] = []
    threads = [
        threading.Thread(target=lambda: replies.append(client.execute_blocking("BLPOP", "turn", 4))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while proxy.commands["BLPOP"] < 3:
        assert time.monotonic() < deadline
    client.execute_blocking("RPUSH", "turn", "a", "b", "c")
    for thread in threads:
        thread.join()
    assert sorted(reply[1] for reply in replies) == [b"a", b"b", b"c"]
    assert proxy.accepted == len(idle(client)) <= 4


@pytest.mark.parametrize("polls", [True, False])
def test_a_connection_that_has_ended_or_rested_for_long_is_not_relied_on(
    client: RedisClient, proxy: TcpProxy, polls: bool
) -> None:
    client.execute_blocking("PING")
    (first,) = idle(client)
    if not polls:  # as on Windows
        first._poll = None
    proxy.cut()
    deadline = time.monotonic() + 20
    while first.is_usable:  # until the end has come
        assert time.monotonic() < deadline
    assert client.execute_blocking("PING") == b"PONG"
    (second,) = idle(client)
    second._used -= 1000
    assert client.execute_blocking("PING") == b"PONG"
    assert proxy.accepted == 3
    assert idle(client) not in ([first], [second])


def test_a_late_reply_goes_to_no_other_command_of_a_thread(client: RedisClient, proxy: TcpProxy) -> None:
    client.execute_blocking("PING")
    proxy.swallow_every(1, of={"ECHO"}, times=1)
    with pytest.raises(StoreUnavailable, match="no reply within the time-out"):
        client.execute_blocking("ECHO", "late", timeout=0.1)
    assert client.execute_blocking("ECHO", "mine") == b"mine"


def test_a_reply_that_comes_in_drops_takes_no_longer_than_the_caller_has(client: RedisClient, proxy: TcpProxy) -> None:
    client.execute_blocking("SET", "drops", b"x" * 100_000)
    proxy.slow_down(1000.0)
    with pytest.raises(StoreUnavailable, match="no reply within the time-out"):
        client.execute_blocking("GET", "drops", timeout=0.2)
    proxy.heal()
    assert len(client.execute_blocking("GET", "drops")) == 100_000


def test_a_closed_client_keeps_no_connection_of_a_thread(client: RedisClient, proxy: TcpProxy) -> None:
    started, replies = threading.Event(), list[Any]()

    def wait() -> None:
        started.set()
        try:
            replies.append(client.execute_blocking("BLPOP", "nothing there", 1))
        except StoreUnavailable as error:
            replies.append(error)

    client.execute_blocking("PING")
    thread = threading.Thread(target=wait)
    thread.start()
    started.wait()
    client.close()
    thread.join()
    assert len(replies) == 1
    assert idle(client) == []
    deadline = time.monotonic() + 20
    while proxy.connections:
        assert time.monotonic() < deadline
