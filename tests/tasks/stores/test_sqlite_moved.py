"""A SQLite file that is deleted, renamed, replaced or cut short while a store has it open; and what its path may be."""

import os
import sqlite3
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest

from cuelight.errors import StoreRefused, StoreUnavailable
from cuelight.tasks import Record, SQLiteStore, TaskQueue, TaskWorker, task
from cuelight.tasks._stores._sqlite import _schema as schema


def record(name: str, **fields: Any) -> Record:
    return Record(id=name, type="t", **fields)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tasks.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SQLiteStore]:
    store = SQLiteStore(path, synchronous="OFF")
    await store.open()
    await store.add([record("a")])
    yield store
    await store.close()


async def ids_in(path: Path) -> list[str]:
    """The tasks that a process which opens the file now would see."""
    store = SQLiteStore(path, synchronous="OFF")
    await store.open()
    there = [name for name in "abcdefg" if await store.get([name]) != [None]]
    await store.close()
    return there


def delete(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink()


def backup(path: Path, to: Path) -> None:
    with closing(sqlite3.connect(path)) as file, closing(sqlite3.connect(to)) as copy:
        file.backup(copy)


async def test_nothing_is_acknowledged_that_goes_to_a_deleted_file(path: Path, store: SQLiteStore) -> None:
    delete(path)
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match=r"tasks\.db.*deleted or renamed.*close the store and open it again"):
            await store.add([record("b")])
        with pytest.raises(StoreUnavailable, match="deleted or renamed"):
            await store.size()
    await store.close()
    assert os.listdir(path.parent) == []
    await store.open()
    assert (await store.size()).pending == 0


async def test_a_file_that_is_renamed_and_put_back_has_everything(path: Path, store: SQLiteStore) -> None:
    os.rename(path, path.with_suffix(".away"))
    with pytest.raises(StoreUnavailable, match="deleted or renamed"):
        await store.add([record("b")])
    os.rename(path.with_suffix(".away"), path)
    await store.add([record("c")])
    await store.close()
    assert await ids_in(path) == ["a", "c"]


async def test_a_store_whose_file_was_deleted_goes_on_with_one_that_another_process_makes(
    path: Path, store: SQLiteStore, caplog: pytest.LogCaptureFixture
) -> None:
    delete(path)
    other = SQLiteStore(path, synchronous="OFF")
    await other.open()
    await store.add([record("b")])
    assert "opened anew while it is used: another file is in its place" in caplog.text
    await other.add([record("c")])
    assert (await store.size()).pending == (await other.size()).pending == 2
    await other.close()
    await store.close()
    assert await ids_in(path) == ["b", "c"]


async def test_a_store_goes_on_with_a_backup_that_is_renamed_over_its_file(path: Path, store: SQLiteStore) -> None:
    backup(path, path.with_suffix(".backup"))
    await store.add([record("b")])
    os.replace(path.with_suffix(".backup"), path)
    await store.add([record("c")])
    assert await store.get(["b"]) == [None]
    await store.close()
    assert await ids_in(path) == ["a", "c"]
    assert os.listdir(path.parent) == ["tasks.db"]


async def test_a_file_that_was_renamed_away_keeps_what_was_acknowledged(path: Path, store: SQLiteStore) -> None:
    backup(path, path.with_suffix(".backup"))
    await store.add([record("b")])
    os.rename(path, path.with_suffix(".old"))
    os.rename(path.with_suffix(".backup"), path)
    await store.add([record("c")])
    assert await ids_in(path.with_suffix(".old")) == ["a", "b"]
    await store.close()
    assert await ids_in(path) == ["a", "c"]


async def test_closing_a_store_leaves_no_log_beside_a_file_that_is_another_one(path: Path, store: SQLiteStore) -> None:
    backup(path, path.with_suffix(".backup"))
    await store.add([record("b")])
    os.replace(path.with_suffix(".backup"), path)
    await store.close()
    assert await ids_in(path) == ["a"]


async def test_what_somebody_else_still_reads_of_a_replaced_file_is_kept_beside_it(
    path: Path, store: SQLiteStore
) -> None:
    backup(path, path.with_suffix(".backup"))
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM tasks").fetchone() == (1,)
        await store.add([record("b")])
        os.rename(path, path.with_suffix(".old"))
        os.rename(path.with_suffix(".backup"), path)
        await store.add([record("c")])
        reader.execute("ROLLBACK")
    await store.close()
    assert await ids_in(path) == ["a", "c"]
    (kept,) = path.parent.glob("tasks.db.replaced-*-wal")
    os.rename(kept, path.with_suffix(".old-wal"))
    assert await ids_in(path.with_suffix(".old")) == ["a", "b"]


async def test_a_file_that_cannot_be_made_anew_says_why(path: Path, store: SQLiteStore) -> None:
    other = path.with_suffix(".other")
    with closing(sqlite3.connect(other, isolation_level=None)) as newer:
        newer.execute("CREATE TABLE mine (a)")
    os.replace(other, path)
    with pytest.raises(StoreRefused, match="belongs to something else"):
        await store.add([record("b")])
    os.unlink(path)
    with pytest.raises(StoreUnavailable, match="deleted or renamed"):
        await store.add([record("b")])
    await store.close()
    await store.open()
    assert (await store.size()).pending == 0


async def test_several_stores_of_a_file_go_on_with_the_one_that_replaces_it(path: Path, store: SQLiteStore) -> None:
    others = [SQLiteStore(path, synchronous="OFF") for _ in range(2)]
    for other in others:
        await other.open()
        await other.size()
    backup(path, path.with_suffix(".backup"))
    os.replace(path.with_suffix(".backup"), path)
    for name, one in zip("bcd", (store, *others), strict=True):
        await one.add([record(name)])
    assert [(await one.size()).pending for one in (store, *others)] == [4, 4, 4]
    for one in (*others, store):
        await one.close()
    assert await ids_in(path) == ["a", "b", "c", "d"]


async def test_nothing_is_lost_when_the_log_of_a_file_is_deleted(path: Path, store: SQLiteStore) -> None:
    await store.add([record("b")])
    os.unlink(Path(f"{path}-wal"))
    await store.add([record("c")])
    assert (await store.size()).pending == 3
    await store.close()
    assert await ids_in(path) == ["a", "b", "c"]


async def test_a_file_that_something_else_replaces_is_refused_until_a_right_one_is_there(
    path: Path, store: SQLiteStore
) -> None:
    backup(path, path.with_suffix(".backup"))
    path.with_suffix(".other").write_bytes(b"no database " * 1000)
    os.replace(path.with_suffix(".other"), path)
    for _ in range(2):
        with pytest.raises(StoreRefused, match="not a SQLite database"):
            await store.add([record("b")])
    os.replace(path.with_suffix(".backup"), path)
    await store.add([record("c")])
    await store.close()
    assert await ids_in(path) == ["a", "c"]


@pytest.mark.parametrize("kept", [0, 1000, 8192])
async def test_a_file_that_is_cut_short_is_refused(kept: int, path: Path, store: SQLiteStore) -> None:
    await store.add([record(f"big{number}", payload=bytes(3000)) for number in range(50)])
    await store.close()
    backup(path, path.with_suffix(".backup"))
    await store.open()
    with path.open("r+b") as file:
        file.truncate(kept)
    for _ in range(2):
        with pytest.raises(StoreRefused, match=rf"tasks\.db.*was cut from \d+ to {kept} bytes.*restore"):
            await store.add([record("b")])
    os.replace(path.with_suffix(".backup"), path)
    await store.add([record("c")])
    assert (await store.size()).pending == 52


async def test_a_file_that_another_program_vacuums_is_still_that_file(path: Path, store: SQLiteStore) -> None:
    await store.add([record(f"big{number}", payload=bytes(3000)) for number in range(200)])
    await store.cancel([f"big{number}" for number in range(200)])
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("UPDATE bodies SET payload = x''")
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    await store.size()
    before = os.stat(path).st_size
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("VACUUM")
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert os.stat(path).st_size < before
    await store.add([record("b")])
    assert (await store.size()).pending == 2


async def test_a_file_that_a_newer_release_migrates_meanwhile_is_refused(path: Path, store: SQLiteStore) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute(f"PRAGMA user_version = {len(schema.SCRIPTS) + 1}")
    for _ in range(2):
        with pytest.raises(StoreRefused, match=r"tasks\.db.*the file has version 3.*use the release that wrote it"):
            await store.add([record("b")])


async def test_an_idle_worker_finds_the_tasks_of_a_file_that_replaces_its_own(path: Path, tmp_path: Path) -> None:
    ran = anyio.Event()

    @task(name="w")
    async def work() -> None:
        ran.set()

    other = tmp_path / "other.db"
    async with TaskQueue(SQLiteStore(other, synchronous="OFF")) as queue:
        await queue.send(work)
    async with TaskQueue(SQLiteStore(path, synchronous="OFF")) as queue, TaskWorker(queue, [work]):
        await queue.size()
        os.replace(other, path)
        with anyio.fail_after(20):
            await ran.wait()


async def test_files_are_made_for_their_user_alone(path: Path, store: SQLiteStore) -> None:
    modes = {name: stat.S_IMODE(os.stat(path.parent / name).st_mode) for name in os.listdir(path.parent)}
    assert modes == {"tasks.db": 0o600, "tasks.db-wal": 0o600, "tasks.db-shm": 0o600}
    await store.close()
    os.chmod(path, 0o640)
    await store.open()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o640, "who has made it decides"
    assert stat.S_IMODE(os.stat(f"{path}-wal").st_mode) == 0o640


async def test_a_relative_path_stays_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = SQLiteStore("rel.db", synchronous="OFF")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    await store.open()
    await store.add([record("a")])
    await store.close()
    assert os.listdir(tmp_path / "elsewhere") == []
    assert await ids_in(tmp_path / "rel.db") == ["a"]
    assert str(tmp_path / "rel.db") in repr(store)


@pytest.mark.parametrize("name", [b"plain.db", b"caf\xe9.db", "日本.db".encode(), b"a?b#c%20d e'\".db", b"new\nline"])
async def test_a_path_may_have_any_bytes(name: bytes, tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/" + name
    for path in (raw, os.fsdecode(raw), Path(os.fsdecode(raw))):
        store = SQLiteStore(path, synchronous="OFF")
        await store.open()
        await store.add([record("a")])
        await store.close()
        repr(store).encode()
    assert os.listdir(os.fsencode(tmp_path)) == [name]


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("a\0b", ValueError, "no NUL characters"),
        (b"a\0b", ValueError, "no NUL characters"),
        ("a\ud800", ValueError, "no path"),
        (b"", ValueError, "give the path of a file"),
        (b":memory:", ValueError, "use MemoryStore"),
        (None, TypeError, "give the path of a file"),
        (5, TypeError, "give the path of a file"),
    ],
)
def test_what_is_no_path_is_refused_at_once(path: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SQLiteStore(path)


@pytest.mark.parametrize(("queue", "error"), [(None, TypeError), (b"q", TypeError), ("a\ud800", ValueError)])
def test_what_is_no_name_of_a_queue_is_refused_at_once(queue: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="queue="):
        SQLiteStore("x.db", queue=queue)


async def test_a_full_disk_costs_what_did_not_fit_and_nothing_else(path: Path, store: SQLiteStore) -> None:
    script = f"""
import anyio, resource, signal, sys
from cuelight.errors import StoreUnavailable
from cuelight.tasks import Record, SQLiteStore

async def main():
    store = SQLiteStore({str(path)!r}, synchronous="OFF")
    await store.open()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))
    kept = 0
    try:
        for number in range(60):
            await store.add([Record(id=f"n{{number}}", type="t", payload=bytes(30_000))])
            kept += 1
    except StoreUnavailable as error:
        assert "disk" in str(error), error
    else:
        raise AssertionError("it fitted")
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    await store.add([Record(id="after", type="t")])
    assert (await store.size()).pending == kept + 2, (await store.size(), kept)
    await store.close()

anyio.run(main)
"""
    done = await anyio.run_process([sys.executable, "-c", script], check=False)
    assert (done.returncode, done.stderr.decode()) == (0, "")
