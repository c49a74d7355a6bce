"""Whatever is damaged in a SQLite file costs what it belongs to, and nothing else: each column by each damage.

In the gate a sample of the table is tried; `make stress` tries all of it.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import anyio
import msgspec
import pytest

from cuelight.errors import StoreRefused
from cuelight.tasks import Limit, Record, SQLiteStore, TaskQueue, TaskWorker
from helpers.damage import FINAL, IDS, RAW, VALUES, fill, run_out, wrong
from helpers.stores import Driver, HandClock

Damage = Callable[[sqlite3.Connection], object]
Cell = tuple[str, Sequence[str], Damage]

BY_TYPE: Final[dict[str, Sequence[Any]]] = {
    "INTEGER": (-1, -5, 0, 1, 2, 3, 7, 9, 77, 2**53, 2**62, 2**63 - 1, -(2**63), None, "evil"),
    "REAL": (-5.0, 0.0, 0.5, 1e13, 1e14, 1e300, -1e300, float("inf"), float("-inf"), float("nan"), None, "evil"),
    "TEXT": (
        "",
        "evil",
        "\0",
        "'; DROP TABLE tasks; --",
        "{",
        '["x"]',
        "[" * 5000,
        "x" * 70_000,
        b"\xff\xfe",
        b"a\xff",
        None,
    ),
    "BLOB": (*RAW.values(), None, "evil"),
}
"""What is put into the columns of a type; a text that is bytes is no Unicode."""


def put(table: str, column: str, value: Any, rowid: str) -> Damage:
    def damage(file: sqlite3.Connection) -> None:
        shown = "CAST(? AS TEXT)" if isinstance(value, bytes) and column_types(file, table)[column] == "TEXT" else "?"
        try:
            file.execute(f"UPDATE {table} SET {column} = {shown} WHERE {rowid}", (value,))
        except (sqlite3.IntegrityError, OverflowError):
            pass  # which SQLite itself refuses

    return damage


def run(*statements: str) -> Damage:
    def damage(file: sqlite3.Connection) -> None:
        for statement in statements:
            file.execute(statement)

    return damage


def column_types(file: sqlite3.Connection, table: str) -> dict[str, str]:
    return {row[1]: row[2] for row in file.execute(f"PRAGMA table_info({table})")}


def table_cells(file: sqlite3.Connection, table: str, key: str, owner: str | None) -> Iterator[Cell]:
    """Each column of each row of a table, and each row gone."""
    query = f"SELECT {owner or 'NULL'}, {key} FROM {table}"
    rows = [(name, value) for name, value in file.execute(query)]
    for name, value in rows:
        where = f"{key} = '{value}'" if isinstance(value, str) else f"{key} = {value}"
        damaged = [name] if name in IDS else []
        for column, kind in column_types(file, table).items():
            if (table, column) == ("queues", "name"):
                continue  # then it is another queue
            for damage in BY_TYPE[kind]:
                if column in ("tat", "closed", "due") and damage == 1e13:
                    continue  # that may be true
                if name in FINAL and column == "state" and damage == 3:
                    continue  # with a long lease
                yield f"{table} {name or value}, {column}: {damage!r:.40}", damaged, put(table, column, damage, where)
        yield f"{table} {name or value}: gone", damaged, run(f"DELETE FROM {table} WHERE {where}")


OWNER: Final = "(SELECT id FROM tasks WHERE tasks.seq = {}.seq)"


def task_cells(file: sqlite3.Connection) -> Iterator[Cell]:
    yield from table_cells(file, "tasks", "seq", "id")


def body_cells(file: sqlite3.Connection) -> Iterator[Cell]:
    yield from table_cells(file, "bodies", "seq", OWNER.format("bodies"))
    yield from table_cells(file, "stories", "seq", OWNER.format("stories"))
    for task_id in ("plain0", "limited0", "flight", "unique", "tenant", "dead", "done"):
        for field in Record.__struct_fields__:
            for kind, value in VALUES.items():
                yield f"record of {task_id}, {field}: {kind}", [task_id], _record(task_id, {field: value})
        for field in Limit.__struct_fields__ if task_id in ("limited0", "flight") else ():
            for kind, value in VALUES.items():
                limit = {"key": "k", "max_concurrent": 1, "per": 1.0, "cost": 1.0, field: value}
                yield f"record of {task_id}, limit, {field}: {kind}", [task_id], _record(task_id, {"limits": [limit]})
    for task_id in ("retried", "saved", "dead"):
        for at in range(4):
            for kind, value in VALUES.items():
                yield f"story of {task_id}, {at}: {kind}", [task_id], _story(task_id, value, at)


def _record(task_id: str, change: dict[str, Any]) -> Damage:
    def damage(file: sqlite3.Connection) -> None:
        seq, meta = file.execute(
            "SELECT seq, meta FROM bodies WHERE seq = (SELECT seq FROM tasks WHERE id = ?)", (task_id,)
        ).fetchone()
        record = msgspec.msgpack.decode(meta) | change
        file.execute("UPDATE bodies SET meta = ? WHERE seq = ?", (msgspec.msgpack.encode(record), seq))

    return damage


def _story(task_id: str, value: Any, at: int) -> Damage:
    def damage(file: sqlite3.Connection) -> None:
        seq, raw = file.execute(
            "SELECT seq, story FROM stories WHERE seq = (SELECT seq FROM tasks WHERE id = ?)", (task_id,)
        ).fetchone()
        parts = msgspec.msgpack.decode(raw, type=list[msgspec.Raw])
        parts[at] = msgspec.Raw(msgspec.msgpack.encode(value))
        file.execute("UPDATE stories SET story = ? WHERE seq = ?", (msgspec.msgpack.encode(parts), seq))

    return damage


def limit_cells(file: sqlite3.Connection) -> Iterator[Cell]:
    yield from table_cells(file, "lanes", "id", None)
    yield from table_cells(file, "gates", "key", None)
    yield "lanes: gone", [], run("DELETE FROM lanes")
    yield (
        "lanes: twice",
        [],
        run("INSERT INTO lanes (queue, keys, waits_on) SELECT queue, '[\"k\"]', 'k' FROM lanes LIMIT 1"),
    )
    yield "gates: gone", [], run("DELETE FROM gates")
    yield (
        "a gate that lets nobody through",
        [],
        run(
            "UPDATE lanes SET waits_on = 'm'",
            "INSERT OR REPLACE INTO gates VALUES (1, 'm', 5, 0, 0, NULL, 1, NULL)",
        ),
    )
    yield "a gate of no limit", [], run("INSERT INTO gates VALUES (1, CAST(x'ff' AS TEXT), 5, 0, 0, NULL, 1, 0)")


def other_cells(file: sqlite3.Connection) -> Iterator[Cell]:
    yield from table_cells(file, "uniques", "key", None)
    yield from table_cells(file, "claims", "nonce", None)
    yield from table_cells(file, "turns", "tenant", None)
    for column, kind in column_types(file, "schedules").items():
        for value in BY_TYPE[kind] if column != "queue" else ():
            yield f"schedules, {column}: {value!r:.40}", [], put("schedules", column, value, "name = 's'")
    yield "a unique key of nobody", [], run("INSERT INTO uniques VALUES (1, 'x', 'nobody', 9e999)")
    yield "bodies of nobody", [], run("INSERT INTO bodies VALUES (500, x'c1', x'c1')")
    yield "a story of nobody", [], run("INSERT INTO stories VALUES (17, x'c1')")


def header_cells(file: sqlite3.Connection) -> Iterator[Cell]:
    for table in ("queues", "file"):
        key = {"queues": "id", "file": "one"}[table]
        yield from table_cells(file, table, key, None)
    for name in (
        "tasks",
        "bodies",
        "stories",
        "lanes",
        "gates",
        "uniques",
        "claims",
        "schedules",
        "turns",
        "queues",
        "file",
    ):
        yield f"{name}: dropped", [], run(f"DROP TABLE {name}")
        yield f"{name}: renamed", [], run(f"ALTER TABLE {name} RENAME TO other")
    yield "a trigger", [], run("CREATE TRIGGER t AFTER UPDATE ON tasks BEGIN SELECT RAISE(ABORT, 'evil'); END")
    for number in (-1, 0, 99):
        yield f"user_version {number}", [], run(f"PRAGMA user_version = {number}")
    yield "application_id 7", [], run("PRAGMA application_id = 7")


async def make(path: Path) -> None:
    clock = HandClock()
    store = SQLiteStore(path, synchronous="OFF", clock=clock)
    await store.open()
    await fill(store, clock)
    await store.close()


async def try_cell(template: Path, path: Path, cell: Cell, *, header: bool, while_open: bool) -> list[str]:
    name, damaged, damage = cell
    shutil.copy(template, path)
    store = SQLiteStore(path, synchronous="OFF", clock=(clock := HandClock()))
    if while_open:
        await store.open()
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        damage(file)
    try:
        await store.open()
    except (StoreRefused, ValueError) as error:
        problems = [] if header and str(path) in str(error) else [f"{error!r}"]
    else:
        with anyio.fail_after(20):
            try:
                problems = wrong(await run_out(store, clock), damaged, header=header, deleted=name.endswith(": gone"))
            except Exception as error:
                problems = [f"{error!r:.300}"]
        await store.close()
    for file_of_it in path.parent.glob(f"{path.name}*"):
        file_of_it.unlink()
    return [f"{name}: {problem}" for problem in problems]


def try_all(
    cells: Callable[[sqlite3.Connection], Iterator[Cell]], folder: Path, step: int, *, header: bool = False
) -> None:
    async def run_all() -> list[str]:
        template = folder / "template.db"
        await make(template)
        with closing(sqlite3.connect(template)) as file:
            all_cells = list(cells(file))
        problems: list[str] = []
        for number, cell in enumerate(all_cells):
            if number % step == 0:
                open_before = (number // step) % 2 == 0
                problems += await try_cell(template, folder / "q.db", cell, header=header, while_open=open_before)
        return problems

    assert anyio.run(run_all) == []


@pytest.mark.parametrize(("cells", "step"), [(task_cells, 37), (body_cells, 41), (limit_cells, 7), (other_cells, 7)])
def test_whatever_is_damaged_in_a_file_costs_only_what_it_belongs_to(
    cells: Callable[[sqlite3.Connection], Iterator[Cell]], step: int, tmp_path: Path, stress: bool
) -> None:
    try_all(cells, tmp_path, 1 if stress else step)


def test_what_holds_a_file_together_is_refused_by_name_when_it_is_damaged(tmp_path: Path, stress: bool) -> None:
    try_all(header_cells, tmp_path, 1 if stress else 3, header=True)


OF_LANES: Final = "(SELECT lane FROM tasks WHERE id = 'limited0')"


@pytest.mark.parametrize("while_open", [False, True])
@pytest.mark.parametrize(
    ("damaged", "statements"),
    [
        ((), [f"UPDATE lanes SET keys = '[\"x\"]' WHERE id = {OF_LANES}"]),
        ((), [f"UPDATE lanes SET keys = '{{' WHERE id = {OF_LANES}"]),
        (
            (),
            [
                f"INSERT INTO lanes (queue, keys) SELECT queue, '[1]' FROM lanes WHERE id = {OF_LANES}",
                "UPDATE tasks SET lane = (SELECT max(id) FROM lanes) WHERE id LIKE 'limited%'",
            ],
        ),
        ((), [f"UPDATE lanes SET waits_on = 'm' WHERE id = {OF_LANES}"]),
        ((), ["UPDATE lanes SET waits_on = 'nowhere'"]),
        ((), ["UPDATE lanes SET waits_on = 'o'", "UPDATE gates SET waiting = 1"]),
        ((), ["UPDATE lanes SET queue = 77"]),
        ((), ["DELETE FROM lanes"]),
        ((), ["UPDATE tasks SET lane = -1 WHERE id LIKE 'limited%'"]),
        ((), ["UPDATE tasks SET lane = 77 WHERE state = 0"]),
        ((), ["UPDATE tasks SET lane = -77 WHERE state = 0"]),
        (("parked",), ["UPDATE tasks SET type = 'x' WHERE id = 'parked'"]),
        ((), ["UPDATE tasks SET due = NULL WHERE state = 4"]),
        (("later",), ["UPDATE tasks SET due = NULL WHERE id = 'later'"]),
        (("later",), ["UPDATE tasks SET due = 1e300 WHERE id = 'later'"]),
        (("flight",), ["UPDATE tasks SET due = 1e300 WHERE id = 'flight'"]),
        (("flight",), ["UPDATE tasks SET due = NULL WHERE id = 'flight'", "UPDATE gates SET running = 9"]),
        ((), ["UPDATE gates SET running = 9, waiting = 1, due = NULL"]),
        ((), ["UPDATE gates SET override = x'c1', running = -1"]),
        (("limited0",), ["DELETE FROM bodies WHERE seq = (SELECT seq FROM tasks WHERE id = 'limited0')"]),
        (
            ("limited0", "limited1"),
            [
                "UPDATE bodies SET meta = x'c1' WHERE seq IN (SELECT seq FROM tasks WHERE id LIKE 'limited%')",
                "UPDATE lanes SET waits_on = 'k'",
            ],
        ),
        (("flight",), ["UPDATE bodies SET meta = x'c1' WHERE seq = (SELECT seq FROM tasks WHERE id = 'flight')"]),
        (("flight",), ["INSERT INTO stories SELECT seq, x'c1' FROM tasks WHERE id = 'flight'"]),
        (("plain0", "plain1"), ["UPDATE tasks SET id = CAST(x'ff' || seq AS TEXT) WHERE id LIKE 'plain%'"]),
        (("dead", "done"), ["UPDATE tasks SET id = CAST(x'ff' || seq AS TEXT) WHERE id LIKE 'd%'"]),
    ],
)
async def test_damage_that_no_question_meets_is_looked_for(
    damaged: Sequence[str], statements: Sequence[str], while_open: bool, tmp_path: Path
) -> None:
    await make(tmp_path / "template.db")
    cell = ("it", damaged, run(*statements))
    assert await try_cell(tmp_path / "template.db", tmp_path / "q.db", cell, header=False, while_open=while_open) == []


@pytest.mark.parametrize("others", [0, 1])
async def test_a_limit_queue_whose_limits_cannot_be_read_gets_those_of_its_tasks(
    others: int, driver: Driver, spoil: Callable[..., None], tmp_path: Path
) -> None:
    await driver.add("a", "b", limits=(Limit("k", max_concurrent=1),))
    (a,) = await driver.claim()
    spoil("UPDATE lanes SET keys = '[\"x\"]', priority = 7")
    if others:
        await driver.add("c", limits=(Limit("k", max_concurrent=1),))
    assert await driver.claim_ids() == []
    with closing(sqlite3.connect(tmp_path / "q.db")) as file:
        assert file.execute("SELECT keys FROM lanes").fetchall() == [('["k"]',)]
    await driver.finish(a)
    driver.clock.advance(70)
    for name in "bc"[: 1 + others]:
        (lease,) = await driver.claim(9)
        assert lease.record.id == name
        await driver.finish(lease)
    assert (await driver.store.size()).pending == 0


async def test_a_task_in_flight_whose_attempts_cannot_be_read_may_end(
    driver: Driver, spoil: Callable[..., None]
) -> None:
    await driver.add("a", "b", limits=(Limit("k", max_concurrent=2),))
    a, b = await driver.claim(2)
    spoil(
        "INSERT INTO stories SELECT seq, x'c1' FROM tasks WHERE id = 'a'",
        of("bodies", "b", "meta = x'c1'"),
    )
    assert await driver.finish(a) == "completed"
    assert await driver.finish(b) == "dead_letter"
    await driver.add("c", "d", limits=(Limit("k", max_concurrent=2),))
    assert await driver.claim_ids() == ["c", "d"], "no place of the limit is lost"


async def test_tasks_of_a_queue_that_is_none_are_told_of_where_they_may_be_of_several(
    driver: Driver, spoil: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    await driver.add("a")
    spoil("INSERT INTO queues (name) VALUES ('other')", "UPDATE tasks SET queue = 77, lane = -77")
    assert await driver.claim_ids() == []
    assert "the file has tasks of queue 77, which its table `queues` does not have" in caplog.text


@pytest.fixture
async def driver(tmp_path: Path) -> AsyncIterator[Driver]:
    clock = HandClock()
    store = SQLiteStore(tmp_path / "q.db", synchronous="OFF", clock=clock)
    await store.open()
    yield Driver(store, clock)
    await store.close()


@pytest.fixture
def spoil(tmp_path: Path) -> Callable[..., None]:
    """Run statements as another program does."""

    def run_statements(*statements: str) -> None:
        with closing(sqlite3.connect(tmp_path / "q.db", isolation_level=None)) as file:
            run(*statements)(file)

    return run_statements


def of(table: str, task_id: str, change: str) -> str:
    """What changes the row of a task in a table."""
    return f"UPDATE {table} SET {change} WHERE seq = (SELECT seq FROM tasks WHERE id = '{task_id}')"


async def test_a_worker_of_a_file_runs_the_others_whatever_is_damaged_of_one(
    tmp_path: Path, spoil: Callable[..., None]
) -> None:
    ran: list[str] = []

    async def handle(payload: str) -> None:
        ran.append(payload)

    store = SQLiteStore(tmp_path / "q.db", synchronous="OFF")
    await store.open()
    ids = [f"bad{number}" for number in range(5)]
    await store.add([Record(id=name, type="t", payload=msgspec.msgpack.encode(name)) for name in [*ids, "good"]])
    spoil(
        of("bodies", "bad0", "meta = x'c1'"),
        "DELETE FROM bodies WHERE seq = (SELECT seq FROM tasks WHERE id = 'bad1')",
        of("tasks", "bad2", "epoch = -1"),
        of("tasks", "bad3", "state = 99"),
        "INSERT INTO stories SELECT seq, x'91919191' FROM tasks WHERE id = 'bad4'",
    )
    async with TaskQueue(store) as tasks:
        async with TaskWorker(tasks, {"t": handle}) as worker:
            with anyio.fail_after(20):
                while (await tasks.size()).dead_letter < 5 or not ran:
                    await store.changed(store.version(), 0.5)
                await tasks.drain()
            assert not worker.stats().away
        letters = await tasks.dead_letters.list(reason="undecodable")
        assert sorted(letter.id for letter in letters) == ids
        assert ran == ["good"]


async def test_what_is_kept_of_a_damaged_row_of_a_file_is_all_there_is(
    driver: Driver, spoil: Callable[..., None]
) -> None:
    limits = (Limit("k", max_concurrent=1),)
    await driver.add("a", payload=b"\xa1p", limits=limits, unique="u", tenant="T", priority=1, max_retries=7)
    (lease,) = await driver.claim()
    await driver.store.save("a", lease.epoch, checkpoint=b"\x05")
    spoil(of("tasks", "a", "step = -7"))
    driver.clock.advance(100)
    assert await driver.claim_ids() == []
    letter = await driver.snapshot("a")
    assert (letter.state, letter.reason) == ("dead_letter", "undecodable")
    assert -7 in msgspec.msgpack.decode(letter.result or b"")
    assert (letter.record.payload, letter.record.limits, letter.checkpoint) == (b"\xa1p", limits, b"\x05")
    assert letter.history[0].error == "its row in the file makes no sense"
    assert await driver.add("b", unique="u") == ["added"], "its unique key is free"
    assert await driver.store.replay(["a"]) == [True]
    again = (await driver.claim(9))[0]
    assert (again.record.id, again.record.priority, again.record.max_retries, again.record.tenant) == ("a", 1, 7, "T")
    assert (again.record.payload, again.checkpoint) == (b"\xa1p", b"\x05")


async def test_a_record_of_a_file_that_cannot_be_read_keeps_its_bytes(
    driver: Driver, spoil: Callable[..., None]
) -> None:
    await driver.add("a", "b", payload=b"\xa1p")
    spoil(of("bodies", "a", "meta = x'c1ff'"))
    assert await driver.claim_ids() == ["b"]
    letter = await driver.snapshot("a")
    assert (letter.state, letter.reason, letter.result) == ("dead_letter", "undecodable", b"\xc1\xff")
    assert (letter.record.type, letter.record.payload) == ("t", b"\xa1p")
    assert "its record cannot be read" in letter.history[0].error


async def test_a_limit_of_a_file_that_cannot_be_read_is_counted_again(
    driver: Driver, spoil: Callable[..., None]
) -> None:
    await driver.add("a", "b", "c", limits=(Limit("k", max_concurrent=2),))
    a, _ = await driver.claim(9)
    spoil("UPDATE gates SET running = -3, override = x'c1'")
    assert await driver.claim_ids() == []
    assert await driver.claim_ids() == []
    await driver.finish(a)
    assert await driver.claim_ids() == ["c"]


async def test_a_schedule_of_a_file_that_cannot_be_read_is_listed_and_can_be_replaced(
    driver: Driver, spoil: Callable[..., None]
) -> None:
    await fill(driver.store, driver.clock)
    spoil("UPDATE schedules SET record = x'c1'")
    (shown,) = await driver.store.schedules()
    assert (shown.name, shown.spec, shown.due, shown.record.payload) == ("s", "undecodable", float("inf"), b"\xc1")
    assert not await driver.store.fire("s", shown.due, 1.0)
    shown.spec, shown.due = "every 5.0", driver.clock() + 5
    await driver.store.put_schedule(shown)
    assert [schedule.spec for schedule in await driver.store.schedules()] == ["every 5.0"]
    spoil("UPDATE schedules SET due = 1e300")
    assert await driver.store.remove_schedule("s")
    assert await driver.store.schedules() == []


async def test_counts_of_a_file_that_say_something_else_than_its_tasks_are_made_again(
    driver: Driver, spoil: Callable[..., None]
) -> None:
    await driver.add("a", "b", "c", "d")
    spoil("DELETE FROM tasks WHERE id = 'a'", "UPDATE queues SET completed = 77")
    assert await driver.claim_ids() == ["b", "c", "d"]
    driver.clock.advance(1.5)
    assert await driver.claim_ids() == []
    size = await driver.store.size()
    assert (size.pending, size.in_flight, size.completed) == (0, 3, 0)
    spoil("DELETE FROM tasks")
    driver.clock.advance(100)
    assert await driver.claim_ids() == []
    assert (await driver.store.size()).in_flight == 0


async def test_a_task_with_a_nul_in_its_type_can_be_unparked(driver: Driver) -> None:
    await driver.add("a", type="t\0u")
    (lease,) = await driver.claim()
    await driver.finish(lease, "unknown")
    assert await driver.store.unpark(["other", "t\0u"]) == 1
    assert await driver.claim_ids() == ["a"]


async def test_a_file_with_tasks_of_a_queue_without_a_name_is_refused(driver: Driver, tmp_path: Path) -> None:
    await driver.add("a")
    with closing(sqlite3.connect(tmp_path / "q.db", isolation_level=None)) as file:
        file.execute("DELETE FROM queues")
    with pytest.raises(StoreRefused, match=r"q\.db.*put it back"):
        await driver.store.size()
    other = SQLiteStore(tmp_path / "q.db")
    with pytest.raises(StoreRefused, match=r"q\.db.*the file has tasks of queue 1.*put it back"):
        await other.open()
    with closing(sqlite3.connect(tmp_path / "q.db", isolation_level=None)) as file:
        file.execute("INSERT INTO queues (id, name) VALUES (1, 'default')")
    assert await driver.claim_ids() == ["a"]


async def test_tasks_of_a_queue_that_is_none_come_back_to_the_only_one_there_is(
    driver: Driver, spoil: Callable[..., None]
) -> None:
    await driver.add("a", "b", limits=(Limit("k", max_concurrent=2),))
    spoil("UPDATE tasks SET queue = 77", "UPDATE lanes SET queue = 77", "UPDATE tasks SET seq = -5 WHERE id = 'b'")
    for _ in range(3):
        await driver.claim_ids()
        driver.clock.advance(70)
    assert await driver.claim_ids() == ["a"]
    assert await driver.state("b") == "dead_letter"
