"""The proxy does to real connections what it says: else tests that go through it would prove nothing."""

import contextlib
import socket

import pytest

from helpers.redis_servers import shared_server
from helpers.tcp_proxy import TcpProxy


def talk(connection: socket.socket, *commands: str) -> bytes:
    connection.sendall("".join(f"{command}\r\n" for command in commands).encode())
    return connection.recv(4096)


def link(proxy: TcpProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=0.3)


def test_the_proxy_passes_everything_on_and_knows_the_commands() -> None:
    with TcpProxy(shared_server().port) as proxy, link(proxy) as connection:
        assert talk(connection, "PING") == b"+PONG\r\n"
        connection.sendall(b"*2\r\n$4\r\nECHO\r\n$2\r\n")
        connection.sendall(b"\r\n\r\n*1\r\n$4\r\nping\r\n")
        read = b""
        while not read.endswith(b"PONG\r\n"):
            read += connection.recv(64)
        assert read == b"$2\r\n\r\n\r\n+PONG\r\n"
        assert proxy.commands == {"PING": 2, "ECHO": 1}


def test_a_swallowed_reply_leaves_its_connection_open_and_silent() -> None:
    with TcpProxy(shared_server().port) as proxy, link(proxy) as connection:
        proxy.swallow_every(2, times=1)
        assert talk(connection, "ECHO a") == b"$1\r\na\r\n"
        with pytest.raises(TimeoutError):
            talk(connection, "ECHO b")
        with pytest.raises(TimeoutError):
            talk(connection, "ECHO c")
        with link(proxy) as other:
            assert talk(other, "ECHO d") == b"$1\r\nd\r\n"
            assert talk(other, "ECHO e") == b"$1\r\ne\r\n"
        assert proxy.faults == 1


@pytest.mark.parametrize("before", [True, False])
def test_the_proxy_cuts_before_or_after_the_reply(before: bool) -> None:
    with TcpProxy(shared_server().port) as proxy, link(proxy) as connection:
        proxy.cut_every(1, before=before, of={"ECHO"})
        assert talk(connection, "PING") == b"+PONG\r\n"
        connection.sendall(b"ECHO a\r\n")
        read = b""
        try:
            while data := connection.recv(64):
                read += data
        except ConnectionResetError:
            pass
        assert read == (b"" if before else b"$1\r\na\r\n")


def test_a_silent_proxy_accepts_and_says_nothing_until_it_is_healed() -> None:
    with TcpProxy(shared_server().port) as proxy, link(proxy) as connection:
        proxy.silence()
        with pytest.raises(TimeoutError):
            talk(connection, "PING")
        with link(proxy) as other, pytest.raises(TimeoutError):
            talk(other, "PING")
        proxy.heal()
        with link(proxy) as another:
            assert talk(another, "PING") == b"+PONG\r\n"


def test_a_refusing_proxy_cuts_at_once() -> None:
    with TcpProxy(shared_server().port) as proxy:
        proxy.refuse()
        said = b""
        # Who is cut sees a reset or a plain end, by whether its words arrived before the cut.
        with contextlib.suppress(ConnectionError), link(proxy) as connection:
            said = talk(connection, "PING")
        assert said == b""
        proxy.heal()
        with link(proxy) as connection:
            assert talk(connection, "PING") == b"+PONG\r\n"
