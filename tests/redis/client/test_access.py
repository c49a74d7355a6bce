"""Ways in: URLs, users, sockets, TLS; and clear words where there is no way in."""

# redis-py's methods are typed in part, its replies not at all.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis
import trustme
from redis.credentials import CredentialProvider
from redis.exceptions import NoPermissionError

from cuelight.errors import StoreRefused, StoreUnavailable
from cuelight.redis import RedisClient, Script
from cuelight.redis._client import DEFAULT_URL, server_for
from cuelight.redis._client._connect import check_version
from cuelight.redis._client._settings import settings_of
from helpers.players import outcome
from helpers.redis_servers import RedisServer, redis_binary, shared_server, valkey_binary
from helpers.tcp_proxy import TcpProxy


@pytest.fixture(scope="module")
def guarded() -> Iterator[RedisServer]:
    """A server with users: `writer`, and `reader`, who may only read."""
    with RedisServer("--requirepass", "p@ss/word") as server:
        with redis.Redis(port=server.port, password="p@ss/word") as client:
            client.acl_setuser("writer", enabled=True, passwords=["+secret"], keys=["*"], categories=["+@all"])
            client.acl_setuser("reader", enabled=True, passwords=["+secret"], keys=["*"], commands=["+get", "+hello"])
        yield server


async def test_a_url_says_who_and_which_database(guarded: RedisServer) -> None:
    for login in (":p%40ss%2Fword@", "writer:secret@", "default:p%40ss%2Fword@"):
        async with RedisClient(f"redis://{login}127.0.0.1:{guarded.port}/3") as client:
            await client.execute("SET", "where", "three")
            assert client.execute_blocking("GET", "where") == b"three"
        async with RedisClient(f"redis://{login}127.0.0.1:{guarded.port}?db=4") as client:
            assert await client.execute("GET", "where") is None
            assert client.name == f"127.0.0.1:{guarded.port}/4"
            assert "secret" not in repr(client)
            assert "secret" not in repr(client._settings)


async def test_refused_credentials_say_so_and_name_no_password(guarded: RedisServer) -> None:
    for login, code in (("", "NOAUTH"), ("writer:wrong@", "WRONGPASS"), (":wrong@", "WRONGPASS")):
        async with RedisClient(f"redis://{login}127.0.0.1:{guarded.port}", timeout=1) as client:
            with pytest.raises(StoreRefused, match=code) as refused:
                await client.execute("GET", "k")
            assert "wrong@" not in str(refused.value)
            with pytest.raises(redis.AuthenticationError):
                await client.get("k")
            with pytest.raises(StoreRefused):
                await client.subscribe("ch", lambda _: None, lambda: None)
            with pytest.raises(StoreRefused):
                client.execute_blocking("GET", "k")


@pytest.mark.parametrize("kind", ["cluster", "sentinel"])
async def test_refused_credentials_are_no_matter_of_waiting_in_any_topology(guarded: RedisServer, kind: str) -> None:
    tail = "/main?sentinel_password=wrong" if kind == "sentinel" else ""
    async with RedisClient(f"redis+{kind}://:wrong@127.0.0.1:{guarded.port}{tail}", timeout=30) as client:
        with pytest.raises(StoreRefused, match="WRONGPASS"):
            await client.run(Script("return 1"))
        with pytest.raises(StoreRefused, match="WRONGPASS"):
            client.run_blocking(Script("return 1"))
        with pytest.raises(StoreRefused, match="WRONGPASS"):
            await client.subscribe("ch", lambda _: None, lambda: None)


async def test_a_user_without_a_right_is_refused_and_goes_on(guarded: RedisServer) -> None:
    async with RedisClient(f"redis://reader:secret@127.0.0.1:{guarded.port}") as client:
        with pytest.raises(StoreRefused, match="NOPERM"):
            await client.execute("SET", "k", "v")
        with pytest.raises(NoPermissionError):
            await client.set("k", "v")
        assert await client.get("k") is None


async def test_credentials_are_asked_for_anew_for_each_connection(guarded: RedisServer) -> None:
    class Rotating(CredentialProvider):
        asked = 0

        def get_credentials(self) -> tuple[str, str]:
            self.asked += 1
            return "writer", "secret"

    provider = Rotating()
    async with RedisClient(guarded.url, credential_provider=provider) as client:
        await client.ping()
        async with client.dedicated() as other:
            await other.ping()
        assert provider.asked == 2
        assert client.execute_blocking("ECHO", "in a thread") == b"in a thread"
        assert provider.asked == 3
    with pytest.raises(ValueError, match="give a user and a password, or a credential_provider, not both"):
        RedisClient(guarded.url, username="writer", credential_provider=provider)


async def test_credentials_that_cannot_be_reached_are_as_a_server_that_cannot(guarded: RedisServer) -> None:
    class Away(CredentialProvider):
        def get_credentials(self) -> tuple[str, str]:
            raise OSError("no way to the vault")

    async with RedisClient(guarded.url, credential_provider=Away()) as client:
        with pytest.raises(StoreUnavailable, match="no way to the vault"):
            await client.execute("PING")
        with pytest.raises(StoreUnavailable, match="no way to the vault"):
            client.execute_blocking("PING")


async def test_unix_sockets_work_as_tcp_does() -> None:
    server = shared_server()
    async with RedisClient(f"unix://{server.path}?db=2") as client:
        await client.set("where", "two")
        assert client.execute_blocking("GET", "where") == b"two"
        assert client.name == f"{server.path}/2"
        heard: list[bytes] = []
        await client.subscribe("ch", heard.append, lambda: None)


async def test_tls_is_spoken_and_certificates_are_checked(tmp_path: Path) -> None:
    authority, other = trustme.CA(), trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    for ca, name in ((authority, "ca.pem"), (other, "other.pem")):
        ca.cert_pem.write_to_path(str(tmp_path / name))
    with TcpProxy(shared_server().port, tls=context) as proxy:
        place = f"127.0.0.1:{proxy.port}"
        async with RedisClient(f"rediss://{place}?ssl_ca_certs={tmp_path}/ca.pem") as client:
            assert await client.set("k", "x" * 1_000_000)
            assert await client.strlen("k") == 1_000_000
            assert client.execute_blocking("STRLEN", "k") == 1_000_000
            await client.execute("DEL", "k")
        async with RedisClient(f"rediss://{place}?ssl_cert_reqs=none") as client:
            assert await client.ping()
        for wrong in (f"rediss://{place}?ssl_ca_certs={tmp_path}/other.pem", f"rediss://{place}"):
            async with RedisClient(wrong, timeout=1) as client:
                with pytest.raises(StoreUnavailable, match=r"(?i)certificate"):
                    await client.execute("PING")


async def test_tls_shows_the_certificate_of_the_client_and_keeps_to_what_the_url_allows(tmp_path: Path) -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    mine = authority.issue_cert("client@example.org")
    mine.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "mine.pem"))
    with TcpProxy(shared_server().port, tls=context) as proxy:
        url = f"rediss://127.0.0.1:{proxy.port}?ssl_ca_certs={tmp_path}/ca.pem"
        shown = f"{url}&ssl_certfile={tmp_path}/mine.pem&ssl_keyfile={tmp_path}/mine.pem"
        fitting = f"{shown}&ssl_min_version={int(ssl.TLSVersion.TLSv1_2)}&ssl_ciphers=ECDHE%2BAESGCM"
        async with RedisClient(fitting) as client:
            assert await client.execute("ECHO", "shown") == b"shown"
            assert client.execute_blocking("ECHO", "shown") == b"shown"
        for wrong in (url, f"{shown}&ssl_min_version={int(ssl.TLSVersion.TLSv1_3)}"):
            async with RedisClient(wrong, timeout=1) as client:
                with pytest.raises(StoreUnavailable):
                    await client.execute("PING")
                with pytest.raises(StoreUnavailable):
                    client.execute_blocking("PING")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("localhost:6379", "is no URL of Redis: give redis://"),
        ("http://localhost", "is no URL of Redis: give redis://"),
        ("redis://user:secret@host:port", "[Pp]ort"),
        ("redis://user:secret@host:99999", "[Pp]ort"),
        ("redis://user:secret@host/jobs", "/jobs.* not the number of a database"),
        ("redis://host?db=x", "Invalid value for 'db'"),
        ("redis://host?db=-1", "counted from 0"),
        ("redis://host?sockettimeout=3", "the option 'sockettimeout' is not known; there are"),
        ("redis://host?protocol=2", "only 3 is spoken here"),
        ("redis://host?socket_timeout=0", "timeout=0: give seconds, more than 0"),
        ("redis://host?ssl_ca_certs=x", "is for TLS; begin the URL with rediss"),
        ("rediss://host?ssl_ca_certs=/no/such/file", "do not fit"),
        ("rediss://host?ssl_cert_reqs=maybe", "ssl_cert_reqs is one of"),
        ("redis://a,b", "names several servers"),
        ("unix://", "path of the socket is missing"),
        ("redis+sentinel://a:1,b:2", "name of the service is missing"),
        ("redis+cluster://a:1/3", "a cluster has only database 0"),
    ],
)
def test_a_wrong_url_is_refused_where_it_is_given(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as refused:
        RedisClient(url)
    assert "secret" not in str(refused.value)


def test_a_url_names_hosts_of_every_kind() -> None:
    assert settings_of("redis://").addresses == (("localhost", 6379),)
    assert settings_of("redis://[::1]:7000/2").name == "[::1]:7000/2"
    assert settings_of("valkey://h").addresses == (("h", 6379),)
    sentinels = settings_of("redis+sentinel://u:p@a,b:7/main/3?sentinel_password=x")
    assert sentinels.addresses == (("a", 26379), ("b", 7))
    assert (sentinels.service, sentinels.db, sentinels.username) == ("main", 3, "u")
    assert settings_of("rediss+cluster://a:1,b:2").tls == {}
    assert settings_of("redis://h?socket_timeout=3&health_check_interval=7", timeout=2).timeout == 2
    assert settings_of("redis://h?socket_timeout=3&health_check_interval=7").heartbeat == 7


async def test_a_server_that_nobody_runs_is_unavailable(unused: int) -> None:
    async with RedisClient(f"redis://127.0.0.1:{unused}", timeout=1) as client:
        with pytest.raises(StoreUnavailable, match=f"127.0.0.1:{unused}/0 is not to be reached"):
            await client.execute("PING")
        with pytest.raises(redis.ConnectionError):
            await client.ping()


@pytest.fixture
def unused() -> int:
    with RedisServer() as server:
        return server.port


@pytest.mark.parametrize(
    ("server", "version"), [("redis", "5.0.14"), ("redis", "6.0.16"), ("redis", "6.1.240"), ("valkey", "7.1.9")]
)
def test_a_server_that_is_too_old_is_refused_by_its_version(server: str, version: str) -> None:
    with pytest.raises(StoreRefused, match=f"{server} {version}, which is too old: Redis 6.2 or Valkey 7.2"):
        check_version({b"server": server.encode(), b"version": version.encode()})


def test_a_server_of_a_version_that_will_do_is_taken() -> None:
    for server, version in ((b"redis", b"6.2.0"), (b"redis", b"10.0.1"), (b"valkey", b"7.2.4"), (b"other", b"1.0.0")):
        assert "{}.{}".format(*check_version({b"server": server, b"version": version})) == version[:-2].decode()


async def test_a_server_without_hello_is_refused() -> None:
    binary = redis_binary() or valkey_binary()
    with RedisServer("--rename-command", "HELLO", "", binary=binary) as server:
        async with RedisClient(server.url, timeout=1) as client:
            with pytest.raises(StoreRefused, match=r"does not know the command HELLO: Redis 6.2 or Valkey 7.2"):
                await client.execute("PING")
            with pytest.raises(StoreRefused, match=r"does not know the command HELLO: Redis 6.2 or Valkey 7.2"):
                await client.subscribe("ch", lambda _: None, lambda: None)
            with pytest.raises(StoreRefused, match=r"does not know the command HELLO: Redis 6.2 or Valkey 7.2"):
                client.execute_blocking("PING")


async def test_a_server_that_evicts_keys_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    with RedisServer("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru") as server:
        for _ in range(2):
            async with RedisClient(server.url) as client:
                await client.execute("PING")
    warned = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert ["allkeys-lru" in record.getMessage() for record in warned] == [True]


async def test_a_full_server_refuses_to_write() -> None:
    with RedisServer("--maxmemory", "1mb") as server:
        async with RedisClient(server.url) as client:
            with pytest.raises(StoreRefused, match="OOM"):
                for n in range(100):
                    await client.execute("SET", n, "x" * 100_000)
            assert await client.execute("GET", "none") is None


async def test_a_replica_refuses_to_be_written_and_can_be_read() -> None:
    with RedisServer() as primary, RedisServer("--replicaof", "127.0.0.1", str(primary.port)) as replica:
        async with RedisClient(replica.url) as client:
            with pytest.raises(StoreRefused, match=r"READONLY.*give the address of the primary"):
                await client.execute("SET", "k", "v")
            assert await client.execute("EXISTS", "k") == 0


async def test_a_key_of_another_type_is_refused() -> None:
    async with RedisClient(shared_server().url) as client:
        await client.execute("SET", "text", "v")
        with pytest.raises(StoreRefused, match="WRONGTYPE"):
            await client.execute("LPUSH", "text", "x")
        with pytest.raises(StoreRefused, match="WRONGTYPE"):
            client.execute_blocking("LPUSH", "text", "x")


@pytest.mark.parametrize(
    ("command", "way_out"),
    [
        (("SELECT", 3), "dedicated"),
        (("select", 3), "dedicated"),
        ((b"WATCH", "k"), "dedicated"),
        (("MULTI",), r"pipeline\(\)"),
        (("SUBSCRIBE", "ch"), r"subscribe\(\)"),
        (("CLIENT", "REPLY", "OFF"), "dedicated"),
        (("CLIENT REPLY", "OFF"), "dedicated"),
        (("MONITOR",), "end the connection"),
        (("WAIT", 1, 0), "dedicated"),
    ],
)
async def test_commands_of_one_connection_are_refused_on_a_shared_one(command: Any, way_out: str) -> None:
    async with RedisClient(shared_server().url) as client:
        with pytest.raises(ValueError, match=way_out):
            await client.execute(*command)
        assert await client.execute("ECHO", "well") == b"well"
        with pytest.raises(redis.DataError, match="give bytes, a str, an int or a float"):
            await client.execute("SET", "k", None)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="may block"):
            await client.pipeline(transaction=False).execute_command("BLPOP", "k", 0).execute()


async def test_one_address_has_one_client_in_a_process() -> None:
    url = shared_server().url
    one = server_for(url, None)
    assert server_for(url, None) is one
    assert await one.execute("ECHO", "shared") == b"shared"
    async with RedisClient(url) as own:
        assert server_for(DEFAULT_URL, own) is own
        with pytest.raises(ValueError, match="redis_url and server were both given: give one of them"):
            server_for(url, own)


def test_a_script_is_shown_by_its_name_and_not_by_its_text() -> None:
    assert repr(Script("return 1", "one")) == "Script('one', e0e1f9fa)"


PIECES = ("mysecret", "mytoken")
"""Of a password: none of them may be shown."""


def secret_urls() -> list[str]:
    """Every place for a password that has a character in it which means something in a URL."""
    places = (
        "redis://:{}@host/0",
        "redis://user:{}@host:7000",
        "redis://{}@host",
        "redis://:{}",
        "redis://host:{}",
        "redis://host:{}/0",
        "rediss://user:{}@host?ssl_cert_reqs=maybe",
        "redis://user:{}@host:port",
        "redis://user:{}@host/jobs",
        "redis://user:{}@host?option=1",
        "redis://user:{}@[::1",
        "redis://host?password={}",
        "redis://host?password={}&option=1",
        "redis://host?sentinel_password={}&db=x",
        "unix://user:{}@/tmp/socket?db=1",
        "unix://user:{}@?db=1",
        "redis+sentinel://user:{}@a:1,b:2/main",
        "redis+sentinel://user:{}@a:1",
        "redis+cluster://user:{}@a:1,b:2/3",
        "http://user:{}@host",
        "user:{}@host",
    )
    between = (
        "",
        "/",
        "?",
        "#",
        "@",
        ":",
        ",",
        "&",
        "=",
        "%",
        "%ZZ",
        "[",
        "]",
        " ",
        "\\",
        "?x=",
        "/1@",
        "\u2100",
        "\udc80",
    )
    written = [f"{between_pieces}".join(PIECES) for between_pieces in between]
    written += [f"123{one}".join(("", PIECES[0])) for one in between]
    before_a_host = [place for place in places if "@" in place.partition("?")[0]]
    # Elsewhere what follows an @ is a host, and what follows a slash after a port is a database.
    odd = [one for one in written if "@" not in one and not one.startswith("123")]
    return [place.format(one) for place in places for one in (written if place in before_a_host else odd)]


def everything_said(error: BaseException) -> str:
    """All texts of an error and of those that came before it."""
    said, seen = "", set[int]()
    while id(error) not in seen:
        seen.add(id(error))
        said += f"{error!s} {error!r} {error.args!r} {getattr(error, '__notes__', '')!r}\n"
        error = error.__cause__ or error.__context__ or error
    return said


def test_no_part_of_a_password_is_shown_however_it_is_written() -> None:
    for url in secret_urls():
        try:
            client = RedisClient(url)
        except ValueError as error:
            said = everything_said(error)
        else:
            said = f"{client!r} {client.name} {client._settings!r}"
            client.close()
        assert not any(piece in said for piece in PIECES), (url, said)


async def test_no_part_of_a_password_is_shown_when_a_server_is_away_or_refuses_it(
    guarded: RedisServer, unused: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for port in (guarded.port, unused):
        async with RedisClient(f"redis://user:mysecret%2Fmytoken@127.0.0.1:{port}", timeout=1) as client:
            said = ""
            for call in (
                lambda client=client: client.execute("GET", "k"),
                lambda client=client: anyio.to_thread.run_sync(client.execute_blocking, "GET", "k"),
                lambda client=client: client.subscribe("ch", lambda _: None, lambda: None),
                lambda client=client: client.get("k"),
            ):
                error = await outcome(call())
                assert isinstance(error, StoreRefused | StoreUnavailable | redis.RedisError)
                said += everything_said(error)
            assert not any(piece in said + caplog.text for piece in PIECES), said
