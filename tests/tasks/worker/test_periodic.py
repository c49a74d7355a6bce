"""Periodic work: when it is due, and that each due time fires once in all workers."""

from __future__ import annotations

import sys
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuelight.mailbox import current_backend
from cuelight.tasks import MemoryStore, Record, Schedule, Task
from cuelight.tasks._queue._periodic import cron_spec, due_after_change, every_spec, latest_due, next_due
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
    with pytest.raises(ValueError, match="is not a schedule"):
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


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ("*/90 * * * *", r"'\*/90' is not every 90 minutes, .*: use every\(5400, \.\.\.\) for that"),
        ("0 */36 * * *", r"'\*/36' is not every 36 hours, .*: use every\(129600, \.\.\.\)"),
        ("*/120 * * * * *", r"is not every 120 seconds"),
        ("0 0 */40 * *", r"is not every 40 days of the month"),
        ("0 0 1 */13 *", r"is not every 13 months, because the step is longer than the 12 months that there are$"),
        ("0 0 * * */8", r"is not every 8 days of the week"),
        ("0-10/20 * * * *", r"'0-10/20' is not every 20 minutes, because the step is longer than the 11 minutes"),
        ("1,5/58 * * * *", r"'5/58' is not every 58 minutes"),
    ],
)
def test_a_step_that_is_longer_than_its_range_is_refused_with_the_way_out(line: str, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        cron_spec(line)


@pytest.mark.parametrize("line", ["*/60 * * * *", "0 */24 * * *", "0 0 */31 * *", "0 0 1 */12 *", "0-10/11 * * * *"])
def test_a_step_as_long_as_its_range_is_taken(line: str) -> None:
    assert next_due(cron_spec(line), 0.0) > 0


@pytest.mark.parametrize(
    ("alias", "line"),
    [
        ("@yearly", "0 0 1 1 *"),
        ("@annually", "0 0 1 1 *"),
        ("@monthly", "0 0 1 * *"),
        ("@weekly", "0 0 * * 0"),
        ("@daily", "0 0 * * *"),
        ("@midnight", "0 0 * * *"),
        ("@hourly", "0 * * * *"),
        (" @Daily ", "0 0 * * *"),
    ],
)
def test_the_names_of_usual_lines_are_taken(alias: str, line: str) -> None:
    assert cron_spec(alias, "Europe/Berlin") == cron_spec(line, "Europe/Berlin")


def test_an_unknown_name_of_a_line_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match="unknown name; the names are @annually, @daily, "):
        cron_spec("@fortnightly")
    with pytest.raises(ValueError, match="to run a task when a program starts, send it then"):
        cron_spec("@reboot")
    with pytest.raises(ValueError, match="give a string"):
        cron_spec(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


specs = (
    st.text(max_size=20)
    | st.floats().map(lambda period: f"every {period!r}")
    | st.text(max_size=10).map(lambda text: f"every {text}")
    | st.text(alphabet="0123456789*/,-#LWMONFRISUATJE ", max_size=30).map(lambda line: f"cron UTC {line}")
    | st.lists(st.text(alphabet="0123456789*/,-#LW", min_size=1, max_size=6), min_size=5, max_size=6).map(
        lambda fields: f"cron UTC {' '.join(fields)}"
    )
    | st.text(max_size=20).map(lambda zone: f"cron {zone} 0 9 * * *")
)
moments = st.floats() | st.floats(0, 4e9)


@given(specs, moments, moments)
def test_whatever_a_store_says_of_a_schedule_is_a_due_time_or_refused(spec: str, after: float, anchor: float) -> None:
    with suppress(ValueError):
        assert next_due(spec, after, anchor) > after
    with suppress(ValueError):
        assert latest_due(spec, after) > after
    with suppress(ValueError):
        due_after_change("every 60.0", after, spec, anchor)


@pytest.mark.parametrize("spec", ["every 0.0", "every -1.0", "every nan", "every inf", "every x", "every"])
def test_a_period_in_a_store_that_makes_no_sense_is_refused(spec: str) -> None:
    with pytest.raises(ValueError, match="is not a schedule: its period"):
        next_due(spec, EPOCH)


class Wall:
    """A clock that can be set."""

    def __init__(self) -> None:
        loop_time = current_backend().time
        self.offset = 0.0
        self.store = MemoryStore(clock=lambda: EPOCH + loop_time() + self.offset)


@pytest.mark.parametrize("spec", ["every 60.0", "cron UTC * * * * *"])
async def test_a_clock_that_is_set_back_does_not_silence_periodic_work_for_as_long(
    spec: str, caplog: pytest.LogCaptureFixture
) -> None:
    ticks, wall = Ticks(), Wall()
    async with open_queue(wall.store) as queue, new_worker(queue, {"tick": ticks.tick}):
        await queue.store.put_schedule(schedule(spec, next_due(spec, EPOCH)))
        await anyio.sleep(600)
        before = len(ticks.times)
        assert before in {9, 10}
        wall.offset = -3600.0
        await anyio.sleep(600)
        assert len(ticks.times) - before >= 8, "not silent, and what comes again is no duplicate"
        assert max(after - one for one, after in zip(ticks.times, ticks.times[1:], strict=False)) <= 125
        [now] = await queue.store.schedules()
        assert now.name == "s"
        # Saying it again, as when the program starts anew, keeps all that.
        await queue.every(60, Task(task_type="tick", payload=None), name="s")
    assert sum("the clock was set back" in record.message for record in caplog.records) == 1


async def test_a_clock_that_was_set_back_before_the_worker_started_is_noticed() -> None:
    ticks, wall = Ticks(), Wall()
    async with open_queue(wall.store) as queue:
        await queue.store.put_schedule(schedule("every 60.0", EPOCH + 7 * 86400.0))
        async with new_worker(queue, {"tick": ticks.tick}):
            await anyio.sleep(200)
    assert ticks.times == pytest.approx([60, 120, 180], abs=0.3)


async def test_work_at_a_fixed_time_is_not_done_again_because_the_clock_was_set_back_an_hour() -> None:
    ticks, wall = Ticks(), Wall()
    spec = cron_spec("0 14 * * *")  # the epoch of these tests is 13:46:40
    async with open_queue(wall.store) as queue, new_worker(queue, {"tick": ticks.tick}):
        await queue.store.put_schedule(schedule(spec, next_due(spec, EPOCH)))
        await anyio.sleep(900)
        assert len(ticks.times) == 1
        wall.offset = -1000.0
        await anyio.sleep(1200)
        assert len(ticks.times) == 1, "it was 14:00 again"
        wall.offset = -3 * 86400.0
        await anyio.sleep(100)
        [now] = await queue.store.schedules()
        assert now.due - queue.store.now() < 86400, "three days are no reason to wait for three days"


async def test_a_schedule_that_cannot_be_fired_costs_the_others_nothing(caplog: pytest.LogCaptureFixture) -> None:
    ticks = Ticks()
    async with open_queue() as queue, new_worker(queue, {"tick": ticks.tick}):
        for name, spec in {"a": "every 0.0", "b": "every x", "c": "cron UTC 5L/2", "d": "cron Mars 0 9 * * *"}.items():
            await queue.store.put_schedule(schedule(spec, EPOCH, name))
        await queue.store.put_schedule(schedule("every 10.0", EPOCH + 10))
        await anyio.sleep(95)
    assert len(ticks.times) == 9
    for name in "abcd":
        assert sum(f"the schedule '{name}' cannot be fired" in record.message for record in caplog.records) == 1
