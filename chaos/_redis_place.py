"""A Redis or Valkey server behind a proxy, with a replica: killed, frozen, cut off, promoted."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from random import Random
from typing import Final

from chaos._places import wait_for
from chaos._verdict import Trouble
from cuelight.redis import RedisStore
from cuelight.tasks import Store
from helpers.redis_servers import RedisServer
from helpers.tcp_proxy import TcpProxy

__all__ = ["RedisPlace"]

_MARK = "chaos:mark"


class RedisPlace:
    """A server with an append-only file, and optionally a replica.

    All others connect through the proxy. A thread writes the mark directly to the server, without pause. The server
    keeps commands in their order. So the mark that it has after a restart shows the time up to which it forgot nothing.
    """

    _KINDS: Final = {
        "kill server": 3,
        "freeze server": 2,
        "cut all clients": 2,
        "pause all clients": 2,
        "forget all scripts": 2,
        "swallow replies": 3,
        "cut at replies": 3,
        "silent network": 2,
    }

    def __init__(self, queue: str, *, fsync: str, outage: float, replicas: int) -> None:
        self._queue, self._fsync, self._outage = queue, fsync, outage
        self.kinds = dict(self._KINDS)
        self._server = self._start()
        self._proxy = TcpProxy(self._server.port)
        self._proxy.__enter__()
        self.address = self._proxy.url
        self._replica = self._start(self._server) if replicas else None
        if replicas:
            self.kinds["promote replica"] = 2
        self.troubles: list[Trouble] = []
        self.extras: dict[str, str] = {}
        self._due: list[tuple[float, Callable[[], None]]] = []
        self._ended = threading.Event()
        self._marker = threading.Thread(target=self._mark_on, name="chaos mark")
        self._marker.start()

    def _start(self, primary: RedisServer | None = None) -> RedisServer:
        options = ["--appendonly", "yes", "--appendfsync", self._fsync]
        if primary is not None:
            options += ["--replicaof", f"127.0.0.1 {primary.port}"]
        server = RedisServer(*options)
        server.start()
        if primary is not None:
            wait_for("a replica in step", lambda: b"master_link_status:up" in server.command("INFO", "replication"))
        return server

    def store(self) -> Store:
        return RedisStore(self.address, queue=self._queue)

    def can_freeze(self, process: subprocess.Popen[bytes]) -> bool:
        """Always: a frozen client blocks nobody."""
        return True

    def _mark_on(self) -> None:
        while not self._ended.wait(0.005):
            try:
                self._server.command("SET", _MARK, repr(time.time()))
            except OSError:
                self._ended.wait(0.05)

    def _last_mark(self) -> float:
        reply = self._server.command("GET", _MARK).split(b"\r\n")
        return float(reply[1]) if len(reply) > 2 else 0.0

    def strike(self, kind: str, random: Random) -> bool:
        """Cause a fault of the current primary, unless it is in trouble already."""
        if self._due:
            return False
        now, lasts = time.time(), random.uniform(0.1, 1.0) * self._outage
        trouble = Trouble(now, now + lasts, kind)
        self.troubles.append(trouble)
        if kind == "kill server":
            self._server.kill()
            self._later(lasts, self._restart, trouble)
        elif kind == "promote replica":
            self._promote(trouble)
        elif kind == "freeze server":
            self._server.freeze()
            self._later(lasts, self._server.thaw, trouble)
        elif kind == "cut all clients":
            for of in ("normal", "pubsub"):
                self._server.command("CLIENT", "KILL", "TYPE", of)
        elif kind == "pause all clients":
            self._server.command("CLIENT", "PAUSE", str(int(lasts * 1000)), "ALL")
            self._later(lasts, lambda: None, trouble)  # until then it answers no client, including this one
        elif kind == "forget all scripts":
            self._server.command("SCRIPT", "FLUSH")
        else:
            self._disturb(kind, random)
            self._later(lasts, self._proxy.heal, trouble)
        return True

    def _disturb(self, kind: str, random: Random) -> None:
        if kind == "swallow replies":
            self._proxy.swallow_every(random.randint(3, 30))
        elif kind == "cut at replies":
            self._proxy.cut_every(random.randint(3, 30), before=random.random() < 0.7)
        else:
            self._proxy.silence()

    def _later(self, seconds: float, action: Callable[[], None], trouble: Trouble) -> None:
        def end() -> None:
            action()
            trouble.until = time.time()

        self._due.append((time.time() + seconds, end))

    def _restart(self) -> None:
        self._server.start()
        self.troubles[-1].kept_until = self._last_mark()

    def _promote(self, trouble: Trouble) -> None:
        """Promote the replica, as an administrator or a sentinel would, and start a new one."""
        old, new = self._server, self._replica
        assert new is not None
        old.kill()
        new.promote()
        self._server = new
        trouble.kept_until = self._last_mark()
        self._proxy.point_at(new.port)
        old.remove()
        trouble.until = time.time()
        self._replica = self._start(new)

    def go_on(self) -> None:
        """End the faults that are due to end."""
        for entry in [entry for entry in self._due if entry[0] <= time.time()]:
            self._due.remove(entry)
            entry[1]()

    def heal(self) -> None:
        """End all faults at once."""
        while self._due:
            self._due.pop()[1]()
        self._proxy.heal()

    def close(self) -> None:
        """End the servers and the proxy."""
        self._ended.set()
        self._marker.join()
        self._proxy.__exit__()
        for server in (self._server, self._replica):
            if server is not None:
                server.remove()
