"""The Unix sockets of nodes: where they are, who can reach them, and what becomes of them."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from cuelight import ActorSystem
from cuelight.redis._actors import _connector, _endpoint, _listener, _socket_file
from cuelight.redis._actors._socket_file import open_socket_file
from helpers import Backend
from helpers.direct import incoming_of, traffic
from helpers.nodes import Add, Plain, Total, cluster_name, directly, inside, node, node_of, pair, until
from helpers.redis_servers import shared_server

pytestmark = pytest.mark.transport("unix")
TESTS = Path(__file__).parents[2]


@pytest.fixture
def base(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The only folder for sockets, at a path that is short."""
    short = Path(f"/tmp/c{os.getpid()}-{tmp_path_factory.mktemp('x').name}")
    short.mkdir()
    monkeypatch.setattr(_socket_file, "_bases", lambda: iter([str(short)]))
    yield short
    for path in sorted(short.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    short.rmdir()


def left(base: Path) -> list[str]:
    """What is in the folder for sockets."""
    return [path.name for path in base.rglob("*")]


def locks(base: Path) -> int:
    """How many sockets there are whose nodes live, or died without a word."""
    return sum(name.endswith(".lock") for name in left(base))


def test_only_its_user_can_enter_the_folder_of_a_socket_and_it_is_removed_in_the_end(base: Path) -> None:
    first, second = open_socket_file(), open_socket_file()
    folder = Path(first.path).parent
    assert folder == Path(second.path).parent == base / f"cuelight-{os.getuid()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_ISSOCK(Path(first.path).stat().st_mode)
    for file in (first, second):
        file.socket.close()
        file.remove()
        file.remove()
        assert not Path(file.path).exists()
    assert left(base) == []


def test_a_socket_of_which_the_lock_is_removed_while_it_is_made_is_made_anew(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, calls = fcntl.flock, 0

    def late(descriptor: int, operation: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:  # another node has found it unlocked, and removed it
            (found,) = base.rglob("*.lock")
            found.unlink()
        if calls == 2:  # or is about to
            raise BlockingIOError
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    file = open_socket_file()
    assert locks(base) == 1
    assert calls == 4
    file.socket.close()
    file.remove()
    assert left(base) == []


@pytest.mark.parametrize("what", ["open to others", "a file", "a link", "of another user"])
def test_a_folder_that_others_can_enter_or_have_made_is_not_used(
    what: str, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = base / f"cuelight-{os.getuid()}"
    if what == "a file":
        folder.touch(0o700)
    elif what == "a link":
        (base / "other").mkdir(0o700)
        folder.symlink_to(base / "other")
    else:
        folder.mkdir(0o700)
        if what == "open to others":
            folder.chmod(0o755)
        else:
            lstat = os.lstat

            def of_another(path: Any) -> Any:
                found = list(lstat(path))
                found[stat.ST_UID] += 1
                return os.stat_result(found)

            monkeypatch.setattr(os, "lstat", of_another)
    with pytest.raises(OSError, match="no folder that this user alone can enter"):
        open_socket_file()


@pytest.mark.parametrize(
    "what", ["too long a path", "a folder that cannot be written to", "no folder", "no such system"]
)
async def test_a_node_without_a_socket_talks_through_the_server(
    what: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = tmp_path / ("x" * 100)
    os.mkdir(long)
    if what == "no such system":
        for module in (_socket_file, _listener):
            monkeypatch.setattr(module, "SUPPORTED", False)
    bases = {"too long a path": [str(long)], "a folder that cannot be written to": ["/proc", "/proc/1/none"]}
    monkeypatch.setattr(_socket_file, "_bases", lambda: iter(bases.get(what, [])))
    async with pair() as (here, there):
        own = await there.spawn(Plain)
        await there.expose(own, "actor")
        ref = await here.resolve("actor")
        for amount in range(5):
            await ref.tell(Add(amount))
            assert await ref.ask(Total()) == sum(range(amount + 1))
        assert node_of(here).statistics().endpoint == ""
        assert traffic(here, there).sent_directly == 0
    assert ("no Unix socket for direct connections" in caplog.text) is (what != "no such system")
    assert locks(long) == 0


def test_a_folder_that_does_for_a_socket_is_found_among_others(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_socket_file, "_bases", lambda: iter(["/proc", str(base)]))
    file = open_socket_file()
    assert file.path.startswith(str(base))
    file.socket.close()
    file.remove()


def test_folders_are_looked_for_where_the_system_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    monkeypatch.delenv("TMPDIR", raising=False)
    assert list(_socket_file._bases()) == ["/run/user/7", "/tmp", "/var/tmp"]


async def test_nodes_of_two_users_talk_through_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = cluster_name()
    async with ActorSystem("there", node=node(cluster)) as there:
        monkeypatch.setattr(_connector, "machine", lambda: f"{_endpoint.machine()}1")
        async with ActorSystem("here", node=node(cluster)) as here:
            own = await there.spawn(Plain)
            await there.expose(own, "actor")
            ref = await here.resolve("actor")
            for _ in range(3):
                assert await ref.ask(Total()) == 0
            assert (traffic(here, there).sent_directly, traffic(here, there).connects) == (0, 0)


async def test_a_socket_that_somebody_has_removed_leaves_the_server_as_the_way() -> None:
    cluster = cluster_name()
    async with ActorSystem("here", node=node(cluster)) as here, ActorSystem("there", node=node(cluster)) as there:
        os.unlink(node_of(there)._membership.listener.endpoint.path)
        own = await there.spawn(Plain)
        await there.expose(own, "actor")
        ref = await here.resolve("actor")
        for amount in range(5):
            await ref.tell(Add(amount))
        assert await ref.ask(Total()) == 10
        assert traffic(here, there).sent_directly == 0


PROGRAM = """
import os, sys, anyio
from cuelight.redis._actors import _socket_file
if sys.argv[1] != "-":
    _socket_file._bases = lambda: iter([sys.argv[1]])
from cuelight import ActorSystem
from helpers.nodes import Plain, node

async def main(url, cluster, fork):
    async with ActorSystem("other", node=node(cluster, url=url, lease=1.0)) as system:
        await system.expose(await system.spawn(Plain), "actor")
        print("ready", flush=True)
        await anyio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)
        if fork == "fork" and not os.fork():
            sys.stdout.close()
            os.close(1)
            sys.stdin.read()
            os._exit(0)
    print("left", flush=True)

anyio.run(main, *sys.argv[2:5], backend=sys.argv[5])
"""


def start(base: Path | str, cluster: str, backend: str, fork: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(base), shared_server().url, cluster, fork, backend]
    process = subprocess.Popen(command, cwd=TESTS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


async def test_a_node_that_was_killed_is_reached_anew_and_its_socket_is_removed(
    base: Path, anyio_backend: Backend
) -> None:
    cluster, loop = cluster_name(), anyio_backend[0]
    async with ActorSystem("here", node=node(cluster, lease=1.0)) as here:
        identities: list[str] = []
        for _ in range(2):
            process = await anyio.to_thread.run_sync(start, base, cluster, loop)
            ref = await here.resolve("actor", timeout=10)
            while not any(peer.sends_directly for peer in node_of(here).statistics().by_peer):
                await ref.ask(Total())
            identities += [one.identity for one in node_of(here).statistics().by_peer if one.sends_directly]
            assert locks(base) == 2  # this one, and that process
            process.send_signal(signal.SIGKILL)
            await anyio.to_thread.run_sync(process.communicate)
            await ref.ended()
            assert not any(peer.sends_directly for peer in node_of(here).statistics().by_peer)
        assert len(set(identities)) == 2
        assert locks(base) == 2  # the first one was removed
    open_socket_file().socket.close()
    assert left(base) == []


async def test_a_fork_of_a_node_neither_keeps_its_connections_open_nor_removes_its_socket(
    base: Path, anyio_backend: Backend
) -> None:
    cluster = cluster_name()
    async with ActorSystem("here", node=node(cluster)) as here:
        process = await anyio.to_thread.run_sync(start, base, cluster, anyio_backend[0], "fork")
        assert process.stdin is not None
        assert process.stdout is not None
        ref = await here.resolve("actor", timeout=10)
        while not any(peer.sends_directly for peer in node_of(here).statistics().by_peer):
            await ref.ask(Total())
        process.stdin.write("\n")
        process.stdin.flush()
        assert await anyio.to_thread.run_sync(process.stdout.readline) == "left\n"
        # The fork lives on, and has the sockets, too.
        await until(lambda: not any(peer.sends_directly for peer in node_of(here).statistics().by_peer))
        await anyio.to_thread.run_sync(process.communicate)


async def test_a_frozen_process_is_left_for_the_server_and_hears_everything_when_it_goes_on(
    base: Path, anyio_backend: Backend
) -> None:
    cluster = cluster_name()
    async with ActorSystem("here", node=node(cluster, lease=20.0)) as here:
        process = await anyio.to_thread.run_sync(start, base, cluster, anyio_backend[0])
        ref = await here.resolve("actor", timeout=10)
        while not any(peer.sends_directly for peer in node_of(here).statistics().by_peer):
            await ref.ask(Total())
        process.send_signal(signal.SIGSTOP)
        for amount in range(100):
            await ref.tell(Add(amount))
        await until(lambda: not any(peer.sends_directly for peer in node_of(here).statistics().by_peer))
        for amount in range(100, 200):
            await ref.tell(Add(amount))
        await until(lambda: sum(peer.sent_by_inbox for peer in node_of(here).statistics().by_peer) >= 200)
        process.send_signal(signal.SIGCONT)
        assert await ref.ask(Total()) == sum(range(200))
        await anyio.to_thread.run_sync(process.communicate)


async def test_a_node_that_ends_leaves_no_socket(base: Path) -> None:
    async with pair() as (here, there):
        own = await there.spawn(Plain)
        await there.expose(own, "actor")
        ref = await here.resolve("actor")
        await ref.tell(Add(1))
        await directly(here, there)
        assert incoming_of(here, there) is not None
        await until(lambda: inside(own).amounts == [1])
        assert locks(base) == 2
    assert left(base) == []
