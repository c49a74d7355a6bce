"""Whatever clocks, paths and texts of users do inside a store, the store and those beside it go on.

Each place where stores call code of users runs with each case, on each store; afterwards the same store, and another
one of the same tasks, add, lease and finish tasks, and none of them is lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from cuelight.errors import ends_the_program
from cuelight.tasks import Claim, Finish, Limit, Record, Schedule, SQLiteStore, Store
from helpers.stores import STORES
from hostile.cases import CASES, RAISING, Case, catch_a_stray_cancellation, covers


class Clock:
    """A clock that does what a case says, while there is one."""

    def __init__(self) -> None:
        self.case: Case | None = None
        self.says: Any = None

    def __call__(self) -> Any:
        if self.case is not None:
            self.case.act()
        return time.time() if self.says is None else self.says

    def __repr__(self) -> str:
        raise ValueError("a clock that cannot be printed")

    @contextmanager
    def doing(self, case: Case) -> Generator[None]:
        self.case = case
        try:
            yield
        finally:
            self.case = None


@contextmanager
def what_ends_programs(case: Case) -> Generator[None]:
    """Take what is meant to end the program, and nothing else."""
    try:
        yield
    except BaseException as error:
        if not (case.ends_the_program and ends_the_program(error)):
            raise


@pytest.fixture(params=list(STORES))
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Callable[[], float]], Store]:
    return lambda clock: STORES[request.param](tmp_path, clock)


async def works(store: Store, name: str) -> None:
    """Add, lease and finish a task, among others that are there."""
    with anyio.fail_after(20):
        await store.add([Record(id=name, type="t")])
        while (await state(store, name)) != "completed":
            leases = (await store.exchange([], Claim("w", f"{name}{time.monotonic()}", 9, 60.0))).leases
            assert leases
            assert store.beat("w", [(lease.record.id, lease.epoch) for lease in leases], 60.0).lost == []
            await store.exchange([Finish(lease.record.id, lease.epoch) for lease in leases])


async def state(store: Store, name: str) -> str:
    (there,) = await store.get([name])
    return "" if there is None else there.state


@pytest.mark.parametrize("case", RAISING, ids=repr)
@covers("SQLiteStore(clock)", "MemoryStore(clock)", "RedisStore(clock)")
async def test_whatever_a_clock_raises_a_store_goes_on(
    case: Case, make: Callable[[Callable[[], float]], Store]
) -> None:
    await catch_a_stray_cancellation_once()
    clock = Clock()
    store, beside = make(clock), make(time.time)
    await store.open()
    await beside.open()
    await store.add([Record(id="before", type="t")])
    steps: list[Callable[[], Any]] = [
        lambda: store.add([Record(id="during", type="t", nonce="n")]),
        lambda: store.exchange([], Claim("w", "nonce", 1, 60.0)),
        lambda: store.cancel(["nobody"]),
        store.size,
    ]
    with clock.doing(case), anyio.fail_after(20):
        for step in steps:
            with what_ends_programs(case):
                await step()
        for call in (store.now, lambda: store.beat("w", [], 60.0)):
            with what_ends_programs(case):
                call()
    if not case.ends_the_program:
        assert await state(store, "during") != ""
    for name, one in (("after", store), ("beside", beside)):
        await works(one, name)
    await store.close()
    await beside.close()


async def catch_a_stray_cancellation_once() -> None:
    with anyio.CancelScope():
        try:
            await catch_a_stray_cancellation()
        except BaseException:
            pass


@pytest.mark.parametrize(
    "says", [float("nan"), float("inf"), float("-inf"), 1e300, "late", None, b"", object(), [1], 10**400]
)
async def test_what_is_no_time_is_not_taken_for_one(says: Any, make: Callable[[Callable[[], float]], Store]) -> None:
    if says is not None:
        with pytest.raises((ValueError, TypeError, OverflowError)):
            make(lambda: says)
    clock = Clock()
    store = make(clock)
    await store.open()
    clock.says = says
    before = time.time()
    await store.add([Record(id="a", type="t", delay=0.0)])
    assert before - 60 < store.now() < time.time() + 60
    clock.says = None
    await works(store, "b")
    await store.close()


class Text(str):
    """Raises when somebody hashes, compares or prints it."""

    __slots__ = ()
    raising = False

    def __hash__(self) -> int:
        if Text.raising:
            raise ValueError("no hash")
        return super().__hash__()

    def __eq__(self, other: object) -> bool:
        if Text.raising:
            raise ValueError("not comparable")
        return super().__eq__(other)

    def __repr__(self) -> str:
        raise ValueError("not printable")

    __str__ = __repr__


@covers("Record(id, type, unique)", "Limit(key)")
async def test_texts_that_cannot_be_hashed_or_compared_are_used_as_what_they_are(
    make: Callable[[Callable[[], float]], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(time.time)
    await store.open()
    evil = Record(
        id=Text("evil"), type=Text("t"), unique=Text("u"), limits=(Limit(Text("k"), max_concurrent=1),), nonce="n"
    )
    monkeypatch.setattr(Text, "raising", True)
    (added,) = await store.add([evil])
    assert (added.outcome, type(added.id)) == ("added", str)
    (again,) = await store.add([Record(id="other", type="t", unique="u")])
    assert (again.outcome, again.id) == ("duplicate", "evil")
    await works(store, "beside")
    assert await state(store, "evil") == "completed"
    await store.close()


@pytest.mark.parametrize("value", [5, None, b"x", object(), ["a"]], ids=lambda value: type(value).__name__)
async def test_what_is_no_text_is_refused_by_name(value: Any, make: Callable[[Callable[[], float]], Store]) -> None:
    store = make(time.time)
    await store.open()
    for fields in ({"id": value}, {"type": value}, *([{"unique": value}] if value is not None else [])):
        with pytest.raises(TypeError, match="give text"):
            given: dict[str, Any] = {"id": "a", "type": "t", **fields}
            await store.add([Record(**given)])
    await works(store, "after")
    await store.close()


@pytest.mark.parametrize("case", RAISING, ids=repr)
@covers("SQLiteStore(path)")
async def test_what_a_path_raises_is_for_who_makes_the_store(case: Case) -> None:
    await catch_a_stray_cancellation_once()

    class EvilPath:
        def __fspath__(self) -> str:
            case.act()
            raise AssertionError

        __repr__ = __fspath__

    with pytest.raises(BaseException) as caught:  # noqa: PT011 - whatever the case raises
        SQLiteStore(EvilPath())
    assert caught.value is not None


@pytest.mark.parametrize("case", [case for case in RAISING if not case.ends_the_program], ids=repr)
@covers("Store.cancel(ids)", "Store.get(ids)")
async def test_what_an_iterable_of_ids_raises_is_for_its_caller(
    case: Case, make: Callable[[Callable[[], float]], Store]
) -> None:
    await catch_a_stray_cancellation_once()

    class Ids(list[str]):
        def __iter__(self) -> Iterator[str]:
            case.act()
            return super().__iter__()

    store = make(time.time)
    await store.open()
    for step in (store.get, store.cancel, store.replay, store.purge):
        try:
            with anyio.fail_after(20):
                await step(Ids(["a"]))
        except BaseException as error:
            if ends_the_program(error):
                raise
    await works(store, "after")
    await store.close()


@covers("logging of stores")
async def test_a_log_handler_that_raises_does_not_keep_a_store_from_going_on(tmp_path: Path) -> None:
    import logging

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise CASES["BaseException"].error()

    path = tmp_path / "q.db"
    store = SQLiteStore(path, synchronous="OFF")
    await store.open()
    other = SQLiteStore(tmp_path / "other.db", synchronous="OFF")
    await other.open()
    await other.close()
    logger = logging.getLogger("cuelight.tasks")
    handler = Handler()
    logger.addHandler(handler)
    try:
        (tmp_path / "other.db").replace(path)
        await works(store, "after")
    finally:
        logger.removeHandler(handler)
    await store.close()


async def test_a_schedule_whose_name_is_no_text_is_refused(make: Callable[[Callable[[], float]], Store]) -> None:
    store = make(time.time)
    await store.open()
    value: Any = 5
    with pytest.raises(TypeError, match="give text"):
        await store.put_schedule(
            Schedule(name=value, spec="every 5.0", due=time.time(), record=Record(id="s", type="t"))
        )
    await works(store, "after")
    await store.close()
