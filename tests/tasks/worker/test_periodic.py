"""Periodic work: when it is due, and that each due time fires once in all workers."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuelight.tasks import Record, Schedule
from cuelight.tasks._periodic import cron_spec, every_spec, next_due
from helpers.workers import EPOCH, Faulty, loop_store, new_worker, open_queue

BERLIN = ZoneInfo("Europe/Berlin")


def berlin(*when: int) -> float:
    return datetime(*when, tzinfo=BERLIN).timestamp()  # type: ignore[misc,arg-type]


def following(spec: str, after: float, count: int) -> list[str]:
    dues: list[str] = []
    for _ in range(count):
        after = next_due(spec, after)
        dues.append(datetime.fromtimestamp(after, BERLIN).isoformat(timespec="minutes"))
    return dues


@given(
    period=st.floats(0.01, 1e7),
    anchor=st.floats(0, 2e9),
    late=st.floats(0, 1e8),
)
def test_the_next_due_time_is_in_the_future_and_on_the_grid(period: float, anchor: float, late: float) -> None:
    after = anchor + late
    due = next_due(every_spec(period), after, anchor)
    assert due > after
    assert due - after <= period * 1.001 + 1e-6
    steps = (due - anchor) / period
    assert abs(steps - round(steps)) * period < 1e-4 + 1e-9 * abs(due)


@given(after=st.floats(0, 4e9))
def test_a_cron_line_is_due_after_the_moment_and_matches(after: float) -> None:
    due = next_due(cron_spec("*/15 3 * * MON-FRI"), after)
    moment = datetime.fromtimestamp(due, UTC)
    assert due > after
    assert (moment.hour, moment.minute % 15, moment.second, moment.weekday() < 5) == (3, 0, 0, True)


def test_work_at_a_fixed_time_that_summer_time_skips_is_done_right_after_the_gap() -> None:
    spec = cron_spec("30 2 * * *", "Europe/Berlin")
    assert following(spec, berlin(2026, 3, 28, 12), 2) == ["2026-03-29T03:00+02:00", "2026-03-30T02:30+02:00"]


def test_work_at_a_fixed_time_in_the_hour_that_comes_twice_is_done_once() -> None:
    spec = cron_spec("30 2 * * *", "Europe/Berlin")
    assert following(spec, berlin(2026, 10, 24, 12), 2) == ["2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00"]
    second_two_ten = datetime(2026, 10, 25, 2, 10, tzinfo=BERLIN, fold=1).timestamp()
    assert following(spec, second_two_ten, 1) == ["2026-10-26T02:30+01:00"]


def test_a_line_that_begins_with_a_star_goes_by_real_time() -> None:
    spec = cron_spec("0 * * * *", "Europe/Berlin")
    start = berlin(2026, 10, 25, 1, 30)
    first = next_due(spec, start)
    assert [next_due(spec, first + 3600 * hours - 1) - first for hours in range(3)] == [0, 3600, 7200]


@pytest.mark.parametrize(
    ("line", "tz", "message"),
    [
        ("x * * * *", "UTC", r"cron 'x \* \* \* \*': bad minute"),
        ("* * *", "UTC", "wrong number of fields"),
        ("0 0 30 2 *", "UTC", "bad day-of-month"),
        ("0 0 * * *", "Mars/Olympus", "no time zone 'Mars/Olympus'"),
    ],
)
def test_a_bad_cron_line_is_named_where_it_is_given(line: str, tz: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cron_spec(line, tz)


@pytest.mark.parametrize("seconds", [0, -1, 0.001, float("inf"), float("nan")])
def test_a_period_that_makes_no_sense_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="give a period of"):
        every_spec(seconds)


def test_an_unknown_spec_is_refused() -> None:
    with pytest.raises(ValueError, match="is no schedule"):
        next_due("sometimes", 0)


def test_without_cronsim_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cronsim", None)
    with pytest.raises(ImportError, match=r"pip install 'cuelight\[cron\]'"):
        cron_spec("* * * * *")


def schedule(spec: str, due: float, name: str = "s") -> Schedule:
    return Schedule(name=name, spec=spec, due=due, record=Record(id=name, type="tick", payload=b"\xc0"))


class Ticks:
    def __init__(self) -> None:
        self.times: list[float] = []

    async def tick(self, _: Any) -> None:
        self.times.append(round(anyio.current_time(), 2))


async def test_each_due_time_fires_once_whoever_works() -> None:
    ticks = Ticks()
    async with (
        open_queue() as queue,
        new_worker(queue, {"tick": ticks.tick}),
        new_worker(queue, {"tick": ticks.tick}),
        new_worker(queue, {"tick": ticks.tick}),
    ):
        await queue.store.put_schedule(schedule(every_spec(10), EPOCH + 10))
        await anyio.sleep(95)
    assert ticks.times == pytest.approx([10, 20, 30, 40, 50, 60, 70, 80, 90], abs=0.3)


async def test_what_was_missed_is_caught_up_once() -> None:
    ticks = Ticks()
    async with open_queue() as queue:
        await queue.store.put_schedule(schedule(every_spec(10), EPOCH + 10))
        await anyio.sleep(57)
        async with new_worker(queue, {"tick": ticks.tick}):
            await anyio.sleep(25)
    assert ticks.times == pytest.approx([57, 60, 70, 80], abs=0.3)


async def test_a_cron_schedule_fires(caplog: pytest.LogCaptureFixture) -> None:
    ticks = Ticks()
    spec = cron_spec("* * * * *")
    async with open_queue() as queue, new_worker(queue, {"tick": ticks.tick}):
        now = queue.store.now()
        await queue.store.put_schedule(schedule(spec, next_due(spec, now)))
        await queue.store.put_schedule(schedule("nonsense", now, "bad"))
        await anyio.sleep(200)
    assert len(ticks.times) == 3
    assert ticks.times[1] - ticks.times[0] == pytest.approx(60, abs=0.3)
    assert sum("'bad' cannot be fired" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("how", ["before", "after"])
async def test_a_store_that_fails_now_and_then_fires_no_due_time_twice(how: str) -> None:
    def fails(step: str, number: int) -> str | None:
        return how if step in {"fire", "schedules", "changed"} and number % 5 < 2 else None

    ticks = Ticks()
    faulty = Faulty(loop_store())
    async with (
        open_queue(faulty.store) as queue,
        new_worker(queue, {"tick": ticks.tick}),
        new_worker(queue, {"tick": ticks.tick}),
    ):
        await queue.store.put_schedule(schedule(every_spec(20), EPOCH + 20))
        faulty.fails = fails
        await anyio.sleep(110)
        faulty.fails = None
    assert len(ticks.times) == 5
