"""The SQLite store and its file: what may be wrong with it, who else uses it, and what a transaction holds."""

import os
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from cuelight.errors import PoolClosed, StoreRefused, StoreUnavailable
from cuelight.tasks import Claim, Record, SQLiteStore
from cuelight.tasks._stores._sqlite import _schema as schema

A = Record(id="a", type="t")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tasks.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SQLiteStore]:
    store = SQLiteStore(path, synchronous="OFF", busy_timeout=5.0)
    await store.open()
    yield store
    await store.close()


def connection_of(store: SQLiteStore) -> sqlite3.Connection:
    """The connection, to look at and to spoil."""
    assert store._writer is not None
    assert store._writer._connection is not None
    return store._writer._connection


@contextmanager
def locked(path: Path) -> Generator[sqlite3.Connection]:
    """Another program that holds the lock of the file."""
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield other


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": ":memory:"}, "use MemoryStore"),
        ({"path": ""}, "give the path of a file"),
        ({"path": "x.db", "synchronous": "full"}, "one of FULL, NORMAL"),
        ({"path": "x.db", "busy_timeout": -1.0}, "0 or more"),
    ],
)
def test_wrong_arguments_are_refused_at_once(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SQLiteStore(**arguments)


@pytest.fixture
def shopping_list(path: Path) -> bytes:
    content = b"This is a shopping list, and much longer than the header of a database would be. " * 3
    path.write_bytes(content)
    return content


async def test_a_file_that_cannot_be_used_is_refused_by_name(tmp_path: Path, path: Path, shopping_list: bytes) -> None:
    with pytest.raises(ValueError, match=r"tasks\.db.*not a SQLite database"):
        await SQLiteStore(path).open()
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere.*make it first"):
        await SQLiteStore(tmp_path / "nowhere" / "tasks.db").open()
    with pytest.raises(IsADirectoryError, match="name a file in it"):
        await SQLiteStore(tmp_path).open()
    with pytest.raises(PermissionError, match="must be allowed to write"):
        await SQLiteStore("/proc/tasks.db").open()
    assert await anyio.Path(path).read_bytes() == shopping_list


async def test_a_library_that_is_too_old_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    with pytest.raises(RuntimeError, match=r"needs 3\.37\.0; use a newer build of Python"):
        await SQLiteStore(path).open()


async def test_a_database_of_something_else_is_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE tasks (mine)")
    before = await anyio.Path(path).read_bytes()
    with pytest.raises(ValueError, match="belongs to something else"):
        await SQLiteStore(path).open()
    assert await anyio.Path(path).read_bytes() == before


async def test_a_file_of_a_newer_version_is_refused(path: Path, store: SQLiteStore) -> None:
    await store.close()
    with closing(sqlite3.connect(path)) as other:
        other.execute(f"PRAGMA user_version = {len(schema.SCRIPTS) + 1}")
    with pytest.raises(ValueError, match="the file has version 3, and this release of cuelight knows versions up to 2"):
        await store.open()


async def test_a_file_of_an_older_version_is_brought_up_to_date(
    path: Path, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.add([A])
    await store.close()
    script = ("ALTER TABLE tasks ADD COLUMN tenant TEXT", "UPDATE tasks SET tenant = 'me'")
    monkeypatch.setattr(schema, "SCRIPTS", (*schema.SCRIPTS, script))
    await store.open()
    assert connection_of(store).execute("SELECT id, tenant FROM tasks").fetchall() == [("a", "me")]
    assert connection_of(store).execute("PRAGMA user_version").fetchone() == (len(schema.SCRIPTS),)
    assert (await store.size()).pending == 1


async def test_a_migration_that_fails_leaves_the_file_as_it_was(
    path: Path, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.add([A])
    await store.close()
    with monkeypatch.context() as patch:
        patch.setattr(schema, "SCRIPTS", (*schema.SCRIPTS, ("DELETE FROM tasks", "SELECT * FROM nowhere")))
        with pytest.raises(StoreRefused, match="nowhere"):
            await store.open()
    await store.open()
    assert (await store.size()).pending == 1


async def test_a_full_disk_says_so_and_nothing_is_half_written(store: SQLiteStore) -> None:
    connection = connection_of(store)
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages + 3}")
    with pytest.raises(StoreUnavailable, match=r"tasks\.db.*the disk is full; make room"):
        await store.add([Record(id="big", type="t", payload=bytes(100_000))])
    assert await store.get(["big"]) == [None]
    connection.execute("PRAGMA max_page_count = 1000000")
    await store.add([Record(id="big", type="t", payload=bytes(100_000))])
    assert (await store.size()).pending == 1


async def test_a_file_that_must_not_be_written_says_so(store: SQLiteStore) -> None:
    connection_of(store).execute("PRAGMA query_only = ON")
    with pytest.raises(StoreUnavailable, match="must not be written"):
        await store.add([A])
    assert (await store.size()).pending == 0
    connection_of(store).execute("PRAGMA query_only = OFF")
    await store.add([A])


async def test_other_programs_are_waited_for(path: Path, store: SQLiteStore) -> None:
    with locked(path) as other, anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(store.add, [A])
            await anyio.sleep(0.02)
            assert (await anyio.to_thread.run_sync(_count, path)) == 0
            other.execute("ROLLBACK")
    assert (await store.size()).pending == 1


def _count(path: Path) -> int:
    with closing(sqlite3.connect(path)) as other:
        count: int = other.execute("SELECT count(*) FROM tasks").fetchone()[0]
        return count


async def test_a_lock_that_is_never_released_ends_in_an_error(path: Path, store: SQLiteStore) -> None:
    store = SQLiteStore(path, synchronous="OFF", busy_timeout=0.05)
    await store.open()
    with locked(path):
        with pytest.raises(StoreUnavailable, match=r"locked by another process for 0\.05 s.*look for one"):
            await store.add([A])
        with pytest.raises(StoreUnavailable, match="locked"):
            await SQLiteStore(path, queue="new", busy_timeout=0.05).open()
    await store.add([A])
    assert (await store.size()).pending == 1
    await store.close()


async def test_a_call_that_fails_takes_no_other_with_it(path: Path, store: SQLiteStore) -> None:
    errors: list[BaseException] = []

    async def add(name: str, payload: Any) -> None:
        try:
            await store.add([Record(id=name, type="t", payload=payload)])
        except StoreRefused as error:
            errors.append(error)

    with locked(path) as other:
        async with anyio.create_task_group() as group:
            group.start_soon(store.size)  # the writer now waits for the lock, and all that follow are one group
            for name in "abc":
                group.start_soon(add, name, b"")
            group.start_soon(add, "wrong", "text")
            for name in "def":
                group.start_soon(add, name, b"")
            await anyio.wait_all_tasks_blocked()
            other.execute("ROLLBACK")
    assert len(errors) == 1
    leases = (await store.exchange([], Claim("w", "1", 9, 15.0))).leases
    assert sorted(lease.record.id for lease in leases) == list("abcdef")


async def test_calls_that_wait_are_committed_together(path: Path, store: SQLiteStore) -> None:
    statements: list[str] = []
    connection_of(store).set_trace_callback(statements.append)
    with locked(path) as other:
        async with anyio.create_task_group() as group:
            for number in range(200):
                group.start_soon(store.add, [Record(id=str(number), type="t")])
            await anyio.wait_all_tasks_blocked()
            other.execute("ROLLBACK")
    connection_of(store).set_trace_callback(None)
    assert (await store.size()).pending == 200
    assert statements.count("COMMIT") <= 3


async def test_a_cancelled_call_takes_effect_wholly_or_not_at_all(path: Path, store: SQLiteStore) -> None:
    with locked(path) as other:
        with anyio.move_on_after(0.02) as begun:
            await store.add([A, Record(id="b", type="t")])
        with anyio.move_on_after(0.02) as waiting:
            await store.add([Record(id="never", type="t")])
        assert begun.cancelled_caught
        assert waiting.cancelled_caught
        other.execute("ROLLBACK")
    there = [snapshot is not None for snapshot in await store.get(["a", "b", "never"])]
    assert there in ([True, True, False], [False, False, False])


async def test_queues_in_one_file_do_not_see_each_other(path: Path, store: SQLiteStore) -> None:
    other = SQLiteStore(path, queue="other", synchronous="OFF")
    await other.open()
    await store.add([A, Record(id="b", type="t")])
    assert [one.outcome for one in await other.add([A])] == ["added"]
    leases = (await other.exchange([], Claim("w", "1", 9, 15.0))).leases
    assert [lease.record.id for lease in leases] == ["a"]
    assert (await store.size()).pending == 2
    await other.close()


async def test_changes_of_other_processes_are_noticed(path: Path, store: SQLiteStore) -> None:
    # Another connection is to SQLite what another process is.
    other = SQLiteStore(path, synchronous="OFF")
    await other.open()
    since = store.version()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(store.changed, since, 60)
            await anyio.wait_all_tasks_blocked()
            await other.add([A])
    assert store.version() > since
    await other.close()


async def test_a_store_on_which_nobody_waits_does_not_look(store: SQLiteStore) -> None:
    statements: list[str] = []
    await store.changed(store.version(), 0.001)
    await store.size()
    connection_of(store).set_trace_callback(statements.append)
    await anyio.sleep(0.05)
    assert statements == []
    await store.changed(store.version(), 0.05)
    connection_of(store).set_trace_callback(None)
    assert 2 <= statements.count("PRAGMA data_version") <= 20


async def test_what_was_written_is_there_after_opening_again(path: Path, store: SQLiteStore) -> None:
    await store.add([A, Record(id="b", type="t", delay=60.0)])
    (lease,) = (await store.exchange([], Claim("w", "1", 1, 60.0))).leases
    await store.close()
    assert sorted(os.listdir(path.parent)) == ["tasks.db"]
    again = SQLiteStore(path)
    await again.open()
    size = await again.size()
    assert (size.in_flight, size.scheduled) == (1, 1)
    assert again.beat("w", [("a", lease.epoch)], 60.0).lost == []
    await again.close()


async def test_closing_leaves_no_thread_and_finishes_what_was_begun(path: Path) -> None:
    store = SQLiteStore(path, synchronous="OFF")
    with pytest.raises(PoolClosed, match="not open"):
        await store.add([A])
    await store.close()
    await store.open()
    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(store.add, [Record(id=str(number), type="t")])
        await anyio.wait_all_tasks_blocked()
        group.start_soon(store.close)
        group.start_soon(store.close)
    assert not [thread for thread in threading.enumerate() if "tasks.db" in thread.name]
    with pytest.raises(PoolClosed, match="closed"):
        await store.add([A])
    await store.open()
    assert (await store.size()).pending == 20
    await store.close()


def test_a_forked_child_opens_the_file_for_itself(path: Path) -> None:
    program = textwrap.dedent(
        """
        import os, sys, anyio
        from cuelight.errors import PoolClosed
        from cuelight.tasks import Record, SQLiteStore

        store = SQLiteStore(sys.argv[1])

        async def child():
            try:
                await store.add([Record(id="refused", type="t")])
            except PoolClosed as error:
                assert "before a fork" in str(error), error
            await store.open()
            await store.add([Record(id="child", type="t")])
            await store.close()

        async def parent():
            await store.open()
            await store.add([Record(id="parent", type="t")])

        async def end():
            await store.add([Record(id="parent2", type="t")])
            there = await store.get(["parent", "refused", "child", "parent2"])
            print([one.record.id if one else None for one in there])
            await store.close()

        anyio.run(parent)
        pid = os.fork()
        if pid == 0:
            anyio.run(child)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        anyio.run(end)
        """
    )
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == "['parent', None, 'child', 'parent2']\n", done.stderr
