"""Whatever is damaged in a queue over Redis costs what it belongs to, and nothing else: each part by each damage.

In the gate a sample of the table is tried, with all damages of one task; `make stress` tries all of it.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import count
from typing import Any, Final

import anyio
import msgspec
import pytest

from cuelight.errors import StoreRefused
from cuelight.redis import RedisClient, RedisStore
from cuelight.redis._tasks._encoding import _TaskRow
from cuelight.redis._tasks._scripts import _KINDS
from cuelight.tasks import Limit, Record, TaskQueue, TaskWorker
from helpers.damage import DEEP, FINAL, IDS, RAW, VALUES, fill, run_out, wrong
from helpers.redis_servers import shared_server
from helpers.stores import Driver, HandClock

Damage = Callable[["Queue"], Awaitable[object]]
Cell = tuple[str, Sequence[str], Damage]
"""What it is called, tasks whose own parts are damaged, and the damage."""

encode: Final = msgspec.msgpack.encode
FIELDS: Final = _TaskRow.__struct_fields__
META: Final = (
    *("format", "sequence", "lanes", "version", "stirred", "time", "hungry", "watched", "paused", "closed", "sheds"),
    *("overrides", "resting", "rested", "floor", "top", "checked", "cursor"),
)


def decode(raw: bytes) -> Any:
    """A list with its elements as they are."""
    return msgspec.msgpack.decode(raw, type=list[msgspec.Raw])


class Queue:
    """The keys of one queue."""

    def __init__(self, client: RedisClient, prefix: str) -> None:
        self.client, self.prefix = client, prefix

    def key(self, name: str) -> str:
        return f"{{{self.prefix}:default}}:tasks:{name}"

    async def run(self, command: str, name: str, *words: Any) -> Any:
        return await self.client.execute(command, self.key(name), *words)

    async def get(self, name: str, field: str | bytes) -> Any:
        return await self.run("HGET", name, field)

    async def put(self, name: str, field: str | bytes, value: Any) -> None:
        await self.run("HSET", name, field, value)

    async def put_part(self, name: str, field: str | bytes, value: Any, *way: int) -> None:
        """Replace an element of a list that is a field of a hash; the way there leads through lists of lists."""

        def changed(raw: bytes, way: tuple[int, ...]) -> bytes:
            parts = decode(raw)
            parts[way[0]] = msgspec.Raw(changed(bytes(parts[way[0]]), way[1:]) if way[1:] else encode(value))
            return encode(parts)

        await self.put(name, field, changed(await self.get(name, field), way))

    async def put_record(self, task_id: str, value: Any, field: str, limit: str | None = None) -> None:
        """Replace a field of the record of a task, or one of its first limit."""
        blob = await self.get("blobs", f"b{task_id}")
        end = 4 + int.from_bytes(blob[:4], "big")
        record = msgspec.msgpack.decode(blob[4:end])
        if limit is None:
            record[field] = value
        else:
            record[field][0][limit] = value
        head = encode(record)
        await self.put("blobs", f"b{task_id}", len(head).to_bytes(4, "big") + head + blob[end:])


def do(what: str | Callable[..., Awaitable[object]], *args: Any) -> Damage:
    """A damage: a method of the queue, or a function that gets it."""

    async def damage(queue: Queue) -> None:
        await (getattr(queue, what)(*args) if isinstance(what, str) else what(queue, *args))

    return damage


def row_cells() -> Iterator[Cell]:
    for task_id in IDS:
        for at, field in enumerate(FIELDS):
            for kind, value in VALUES.items():
                yield (
                    f"row of {task_id}, {field}: {kind}",
                    [task_id],
                    do("put_part", "rows", task_id, value, at),
                )
    for task_id in ("limited0", "flight"):
        for at in range(6):
            for kind, value in VALUES.items():
                yield (
                    f"limit of {task_id}, {at}: {kind}",
                    [task_id],
                    do("put_part", "rows", task_id, value, FIELDS.index("limits"), 0, at),
                )


def raw_cells() -> Iterator[Cell]:
    async def replace_blob(queue: Queue, field: str, value: bytes) -> None:
        if await queue.get("blobs", field) is not None:
            await queue.put("blobs", field, value)

    for task_id in IDS:
        for kind, value in RAW.items():
            yield (
                f"row of {task_id}: {kind}",
                [task_id],
                do("put", "rows", task_id, value),
            )
            for blob in "bscpr":
                yield (
                    f"blob {blob} of {task_id}: {kind}",
                    [task_id],
                    do(replace_blob, blob + task_id, value),
                )
        yield f"row of {task_id}: gone", [task_id], do("run", "HDEL", "rows", task_id)
        for blob in "bscpr":
            yield (
                f"blob {blob} of {task_id}: gone",
                [task_id],
                do("run", "HDEL", "blobs", blob + task_id),
            )


def story_cells() -> Iterator[Cell]:
    async def change(queue: Queue, task_id: str, field: str, value: Any) -> None:
        story = msgspec.msgpack.decode(await queue.get("blobs", f"s{task_id}"))
        story[5][0][field] = value
        await queue.put("blobs", f"s{task_id}", encode(story))

    for task_id in ("retried", "saved", "dead"):
        for kind, value in VALUES.items():
            for at in range(6):
                yield (
                    f"story of {task_id}, {at}: {kind}",
                    [task_id],
                    do("put_part", "blobs", f"s{task_id}", value, at),
                )
            for field in ("kind", "worker", "at", "elapsed", "error", "traceback"):
                yield (
                    f"attempt of {task_id}, {field}: {kind}",
                    [task_id],
                    do(change, task_id, field, value),
                )


def record_cells() -> Iterator[Cell]:
    for task_id in ("plain0", "limited0", "flight", "unique", "tenant", "dead", "done"):
        for kind, value in VALUES.items():
            for field in Record.__struct_fields__:
                yield f"record of {task_id}, {field}: {kind}", [task_id], do("put_record", task_id, value, field)
            for field in Limit.__struct_fields__ if task_id in ("limited0", "flight") else ():
                name = f"record of {task_id}, limit, {field}: {kind}"
                yield name, [task_id], do("put_record", task_id, value, "limits", field)


SIDE: Final[dict[str, tuple[tuple[int, ...], ...]]] = {
    "gm": tuple((at,) for at in range(6)),
    "go": (*((at,) for at in range(6)), *((3, at) for at in range(6))),
    "i2": ((0,), (1,), (1, 0), (2,), (3,), (3, 0), (3, 1), (3, 2), (3, 3)),
    "uu": ((0,), (1,)),
    "k1:k1:m": (),
    "c": (),
    "n": (),
    "t": (),
}
"""Fields of `side`, and the ways to what is in them."""


def side_cells() -> Iterator[Cell]:
    async def named(queue: Queue, field: str) -> bytes:
        """The field, or the first that begins with this letter."""
        fields: list[bytes] = await queue.run("HKEYS", "side")
        whole = field.encode()
        return min(name for name in fields if name == whole or (len(whole) == 1 and name.startswith(whole)))

    async def replace(queue: Queue, field: str, value: bytes) -> None:
        await queue.put("side", await named(queue, field), value)

    async def drop(queue: Queue, field: str) -> None:
        await queue.run("HDEL", "side", await named(queue, field))

    async def replace_all(queue: Queue, value: bytes) -> None:
        for field in await queue.run("HKEYS", "side"):
            await queue.put("side", field, value)

    for field, ways in SIDE.items():
        for kind, raw in {**RAW, "17": b"17", "-3": b"-3", "1e300 as text": b"1e300", "nan as text": b"nan"}.items():
            yield f"side {field}: {kind}", [], do(replace, field, raw)
        yield f"side {field}: gone", [], do(drop, field)
        for way in ways:
            for kind, value in VALUES.items():
                yield (
                    f"side {field}, {way}: {kind}",
                    [],
                    do("put_part", "side", field, value, *way),
                )
    for kind, raw in RAW.items():
        yield f"all of side: {kind}", [], do(replace_all, raw)
    yield "side: gone", [], do("run", "DEL", "side")


def schedule_cells() -> Iterator[Cell]:
    async def rename(queue: Queue, raw: bytes) -> None:
        await queue.run("DEL", "schedules")
        await queue.put("schedules", b"\xff\xfe", raw)

    async def change_due_row(queue: Queue, value: Any, at: int) -> None:
        await queue.put_part("schedules", "s", value, 2, at)
        await queue.put_part("schedules", "s", 5.0, 1)

    for kind, raw in RAW.items():
        yield f"schedule: {kind}", [], do("put", "schedules", "s", raw)
        yield f"schedule without a name: {kind}", [], do(rename, raw)
    for kind, value in VALUES.items():
        for at in range(4):
            yield (
                f"schedule, {at}: {kind}",
                [],
                do("put_part", "schedules", "s", value, at),
            )
        for at, field in enumerate(FIELDS):
            yield (
                f"row of a schedule, {field}: {kind}",
                [],
                do(change_due_row, value, at),
            )


ZSETS: Final = [name for name, kind in _KINDS.items() if kind == "zset"]
GHOSTS: Final = (
    *(b"ghost", b"", b"p" + b"0" * 34 + b"ghost", b"l00000000000001" + b"0" * 34 + b"ghost", b"\xff\xfe", b"1:k=x"),
    *(
        b"l00000000000099" + b"0" * 34 + b"plain0",
        b"0:=x",
        b"99999999:",
        b"2d:",
        b"uxx",
        b"plain0",
        b"dead",
        b"x" * 999,
    ),
)


def zset_cells() -> Iterator[Cell]:
    async def score(queue: Queue, name: str, number: int, value: str) -> None:
        for member in (await queue.run("ZRANGE", name, 0, -1))[number : number + 1]:
            await queue.run("ZADD", name, value, member)

    async def drop(queue: Queue, name: str, number: int) -> None:
        for member in (await queue.run("ZRANGE", name, 0, -1))[number : number + 1]:
            await queue.run("ZREM", name, member)

    for name in ZSETS:
        # A result whose time is over by its score is forgotten, and a dead letter has no other place.
        damaged = [task_id for task_id in FINAL if name in ("completed", "cancelled", "dead")]
        for number in range(len(IDS)):
            for value in ("0", "-5", "1e300", "inf", "-inf", "1.5"):
                yield f"{name}, member {number}: score {value}", damaged, do(score, name, number, value)
            yield f"{name}, member {number}: gone", [], do(drop, name, number)
        for ghost in GHOSTS:
            for value in ("0", "1e300", "-inf"):
                yield f"{name}: {ghost[:20]!r} with score {value}", [], do("run", "ZADD", name, value, ghost)
        yield f"{name}: gone", [], do("run", "DEL", name)


def meta_cells() -> Iterator[Cell]:
    async def retype(queue: Queue, name: str) -> None:
        await queue.run("DEL", name)
        await queue.run("SET", name, "x")

    for field in META:
        for value in ("x", "", "-5", "0", "1", "1e300", "9e15", "nan", "inf", "-inf", "1.5", "9" * 400, b"\xff"):
            yield (
                f"meta, {field}: {value[:9]!r}",
                [],
                do("put", "meta", field, value),
            )
        yield f"meta, {field}: gone", [], do("run", "HDEL", "meta", field)
    for name in _KINDS:
        yield f"{name}: of another type", [], do(retype, name)
    yield "meta: gone", [], do("run", "DEL", "meta")
    yield "blobs: gone", IDS, do("run", "DEL", "blobs")


_numbers = count()


class Template:
    """A queue that is filled once, and copied for each cell."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self._dumps: dict[str, bytes] = {}

    async def make(self) -> None:
        queue = Queue(self._client, uuid.uuid4().hex)
        clock = HandClock()
        store = RedisStore(self._client, prefix=queue.prefix, clock=clock)
        await store.open()
        await fill(store, clock)
        for name in _KINDS:
            dump = await queue.run("DUMP", name)
            if dump is not None:
                self._dumps[name] = dump

    async def copy(self) -> Queue:
        queue = Queue(self._client, f"damage{next(_numbers)}")
        for name, dump in self._dumps.items():
            await queue.run("RESTORE", name, 0, dump)
        return queue

    async def drop(self, queue: Queue) -> None:
        await self._client.execute("DEL", *(queue.key(name) for name in _KINDS))


async def try_cell(template: Template, client: RedisClient, cell: Cell, *, header: bool) -> list[str]:
    name, damaged, damage = cell
    queue = await template.copy()
    await damage(queue)
    store = RedisStore(client, prefix=queue.prefix, clock=(clock := HandClock()))
    try:
        await store.open()
    except StoreRefused as error:
        problems = [] if header and ":tasks:" in str(error) else [str(error)]
    else:
        with anyio.fail_after(20):
            problems = wrong(await run_out(store, clock), damaged, header=header)
        await store.close()
    await template.drop(queue)
    return [f"{name}: {problem}" for problem in problems]


def try_all(cells: Iterator[Cell], step: int, *, header: bool = False) -> None:
    async def run() -> list[str]:
        async with RedisClient(shared_server().url) as client:
            template = Template(client)
            await template.make()
            problems: list[str] = []
            for number, cell in enumerate(cells):
                if number % step == 0 or cell[0].startswith(("row of plain0", "meta")):
                    problems += await try_cell(template, client, cell, header=header)
            return problems

    assert anyio.run(run) == []


@pytest.mark.parametrize(
    ("cells", "step"),
    [
        (row_cells, 59),
        (raw_cells, 11),
        (story_cells, 7),
        (record_cells, 23),
        (side_cells, 11),
        (schedule_cells, 7),
        (zset_cells, 7),
    ],
)
def test_whatever_is_damaged_over_redis_costs_only_what_it_belongs_to(
    cells: Callable[[], Iterator[Cell]], step: int, stress: bool
) -> None:
    try_all(cells(), 1 if stress else step)


def test_what_holds_a_queue_together_is_refused_by_name_when_it_is_damaged(stress: bool) -> None:
    try_all(meta_cells(), 1, header=True)


async def test_a_worker_runs_the_others_whatever_is_damaged_of_one(client: RedisClient, prefix: str) -> None:
    queue = Queue(client, prefix)
    store = RedisStore(client, prefix=prefix)
    ran: list[str] = []

    async def handle(payload: str) -> None:
        ran.append(payload)

    await store.open()
    ids = [f"bad{number}" for number in range(6)]
    await store.add([Record(id=name, type="t", payload=encode(name)) for name in [*ids, "good"]])
    await queue.put("rows", "bad0", DEEP)
    await queue.put_part("rows", "bad1", "evil", FIELDS.index("epoch"))
    await queue.put_part("rows", "bad2", 1.5, FIELDS.index("epoch"))
    await queue.put("blobs", "bbad3", b"")
    await queue.put_part("rows", "bad4", 1, FIELDS.index("has"))
    await queue.run("HDEL", "rows", "bad5")
    async with TaskQueue(store) as tasks:
        async with TaskWorker(tasks, {"t": handle}) as worker:
            with anyio.fail_after(20):
                while (await tasks.size()).dead_letter < 6 or not ran:
                    await store.changed(store.version(), 0.5)
            assert not worker.stats().away
        letters = await tasks.dead_letters.list(reason="undecodable")
        assert sorted(letter.id for letter in letters) == ids
        assert ran == ["good"]


async def test_what_is_kept_of_a_damaged_task_is_all_there_is(desk: Driver, client: RedisClient, prefix: str) -> None:
    queue = Queue(client, prefix)
    limits = (Limit("k", max_concurrent=1),)
    await desk.add("a", payload=b"\xa1p", limits=limits, unique="u", tenant="T", priority=1, max_retries=7)
    (lease,) = await desk.claim()
    await desk.store.save("a", lease.epoch, checkpoint=b"\x05")
    await queue.put("rows", "a", b"\xc1damage")
    desk.clock.advance(100)
    assert await desk.claim_ids() == []
    letter = await desk.snapshot("a")
    assert (letter.state, letter.reason, letter.result) == ("dead_letter", "undecodable", b"\xc1damage")
    assert (letter.record.payload, letter.record.limits, letter.checkpoint) == (b"\xa1p", limits, b"\x05")
    assert letter.history[0].error == "its row in the store cannot be read"
    assert await desk.add("b", unique="u") == ["added"], "its unique key is free"
    assert await desk.store.replay(["a"]) == [True]
    again = (await desk.claim(9))[0]
    assert (again.record.id, again.record.priority, again.record.max_retries, again.record.tenant) == ("a", 1, 7, "T")
    assert (again.record.payload, again.checkpoint) == (b"\xa1p", b"\x05")


async def test_a_limit_that_cannot_be_read_is_not_exceeded(desk: Driver, client: RedisClient, prefix: str) -> None:
    queue = Queue(client, prefix)
    await desk.add("a", "b", "c", limits=(Limit("k", max_concurrent=2),))
    a, _ = await desk.claim(9)
    await queue.put("side", "gk", b"\xc1")
    assert await desk.claim_ids() == []
    assert await desk.claim_ids() == []
    await desk.finish(a)
    assert await desk.claim_ids() == ["c"]


async def test_a_schedule_that_cannot_be_read_is_listed_and_can_be_replaced(
    desk: Driver, client: RedisClient, prefix: str
) -> None:
    queue = Queue(client, prefix)
    await fill(desk.store, desk.clock)
    await queue.put("schedules", "s", b"\xc1damage")
    (shown,) = await desk.store.schedules()
    assert (shown.name, shown.spec, shown.due, shown.record.payload) == (
        "s",
        "undecodable",
        float("inf"),
        b"\xc1damage",
    )
    assert not await desk.store.fire("s", shown.due, 1.0)
    shown.spec, shown.due = "every 5.0", desk.clock() + 5
    await desk.store.put_schedule(shown)
    assert [schedule.spec for schedule in await desk.store.schedules()] == ["every 5.0"]
    await queue.put("schedules", "s", b"\xc1damage")
    assert await desk.store.remove_schedule("s")
    assert await desk.store.schedules() == []
