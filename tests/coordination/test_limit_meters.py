"""The meters, which know no clock: against plain models that look at each nanosecond."""

import math
import random
from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuelight.coordination import RateLimitConfig, gcra
from cuelight.coordination._meters import NEVER, Bucket, Meter, Permits, WindowCounter, WindowLog, _rate, from_rate

NANOSECOND = 1e-9
STATES = 20_000

METERS: dict[str, Callable[[RateLimitConfig], Meter]] = {
    "bucket": Bucket,
    "log": WindowLog,
    "counter": WindowCounter,
}


class Truth:
    """What was let through, as a list; and what each algorithm says of that, one nanosecond at a time."""

    def __init__(self, kind: str, config: RateLimitConfig) -> None:
        self.kind, self.config, self.window = kind, config, config.window_nanoseconds
        self.log: list[tuple[int, int]] = []

    def allows(self, at: int, cost: int) -> bool:
        if self.kind == "bucket":
            return self.level(at) >= min(cost, self.config.burst)
        limit = self.config.max_requests
        if self.kind == "log":
            return self.spent(at - self.window + 1, at) + min(cost, limit) <= limit
        index, into = divmod(at, self.window)
        this, last = self.aligned(index), self.aligned(index - 1)
        return last * (1 - Fraction(into, self.window)) + this + min(cost, limit) <= limit

    def level(self, at: int) -> Fraction:
        """Tokens in the bucket, by filling it step by step."""
        rate = Fraction(self.config.max_requests, self.window)
        tokens, before = Fraction(self.config.burst), 0
        for time, cost in self.log:
            tokens = min(Fraction(self.config.burst), tokens + (time - before) * rate) - cost
            before = time
        return min(Fraction(self.config.burst), tokens + (at - before) * rate)

    def spent(self, first: int, last: int) -> int:
        return sum(cost for time, cost in self.log if first <= time <= last)

    def aligned(self, index: int) -> int:
        return self.spent(index * self.window, (index + 1) * self.window - 1)


def configs(chance: random.Random) -> RateLimitConfig:
    limit = chance.randint(1, 6)
    burst = chance.choice([None, 1, chance.randint(1, 8)])
    return RateLimitConfig(limit, chance.randint(1, 15) * NANOSECOND, burst)


@pytest.mark.parametrize("kind", METERS)
def test_retry_after_is_exact(kind: str) -> None:
    """20,000 random states, each against a look at every nanosecond."""
    chance = random.Random(kind)
    checked = 0
    while checked < STATES:
        config = configs(chance)
        meter, truth, now = METERS[kind](config), Truth(kind, config), 0
        for _ in range(40):
            now += chance.choice([0, 0, 1, 2, chance.randint(0, 20)])
            cost = chance.randint(1, meter.max_cost)
            due = meter.available_at(now, cost)
            assert (due <= now) == truth.allows(now, cost)
            if due > now:
                assert not any(truth.allows(at, cost) for at in range(now, due)), "too long"
                assert truth.allows(due, cost), "too short"
            assert meter.try_charge(now, cost) == (due <= now)
            if due <= now:
                truth.log.append((now, cost))
            checked += 1


def test_gcra_waits_exactly_as_long_as_it_says() -> None:
    chance = random.Random(1)
    for _ in range(50_000):
        now, interval, burst = chance.randint(0, 100), chance.randint(1, 20), chance.randint(1, 10)
        tat, cost = now + chance.randint(-50, 400), chance.randint(0, 12)
        allowed, after, wait = gcra(tat, now, interval, burst, cost)
        if allowed:
            assert (after, wait) == (max(tat, now) + cost * interval, 0)
        else:
            assert after == tat
            assert wait > 0
            assert gcra(tat, now + wait, interval, burst, cost)[0]
            assert not gcra(tat, now + wait - 1, interval, burst, cost)[0]


def test_a_bucket_takes_the_steps_of_gcra() -> None:
    chance = random.Random(2)
    for _ in range(2_000):
        config = configs(chance)
        bucket, pace, now = Bucket(config), _rate(config), 0
        for _ in range(10):
            now += chance.randint(0, 20)
            cost, tat = chance.randint(0, config.burst), bucket._tat
            allowed, after, _ = gcra(tat, now * pace.scale, pace.interval, pace.burst, cost)
            assert (bucket.try_charge(now, cost), bucket._tat) == (allowed, after)


requests = st.lists(st.tuples(st.integers(0, 12), st.integers(1, 8)), min_size=10, max_size=60)


def _limit(limit: int, window: int, burst: int | None) -> RateLimitConfig:
    return RateLimitConfig(limit, window * NANOSECOND, burst)


limits = st.builds(_limit, st.integers(1, 8), st.integers(1, 20), st.none() | st.integers(1, 8))


def let_through(meter: Meter, asked: list[tuple[int, int]]) -> list[tuple[int, int]]:
    now, log = 100, list[tuple[int, int]]()
    for pause, cost in asked:
        now += pause
        if cost <= meter.max_cost and meter.try_charge(now, cost):
            log.append((now, cost))
    return log


def spans(log: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The length of each span from one request to another, both included, and what was let through in it."""
    return [
        (log[last][0] - log[first][0], sum(cost for _, cost in log[first : last + 1]))
        for first in range(len(log))
        for last in range(first, len(log))
    ]


@given(limits, requests)
def test_a_token_bucket_lets_through_burst_and_rate_at_most(
    config: RateLimitConfig, asked: list[tuple[int, int]]
) -> None:
    rate = Fraction(config.max_requests, config.window_nanoseconds)
    for time, cost in spans(let_through(Bucket(config), asked)):
        assert cost <= config.burst + time * rate


@given(limits, requests)
def test_no_window_of_the_log_is_above_the_limit(config: RateLimitConfig, asked: list[tuple[int, int]]) -> None:
    for time, cost in spans(let_through(WindowLog(config), asked)):
        assert time >= config.window_nanoseconds or cost <= config.max_requests


@given(limits, requests)
def test_the_counter_keeps_the_limit_in_aligned_windows_and_twice_it_in_others(
    config: RateLimitConfig, asked: list[tuple[int, int]]
) -> None:
    log, window = let_through(WindowCounter(config), asked), config.window_nanoseconds
    for index in {time // window for time, _ in log}:
        assert sum(cost for time, cost in log if time // window == index) <= config.max_requests
    for time, cost in spans(log):
        assert time >= window or cost <= 2 * config.max_requests


@pytest.mark.parametrize("kind", METERS)
@given(config=limits, asked=requests, extra=st.integers(1, 8))
def test_what_is_ahead_never_makes_an_estimate_too_late(
    kind: str, config: RateLimitConfig, asked: list[tuple[int, int]], extra: int
) -> None:
    """A queue of requests: the estimate for its end, made at its beginning, against what comes of it."""
    meter = METERS[kind](config)
    now = 100
    for pause, cost in asked[:8]:
        now += pause % 4
        meter.try_charge(now, min(cost, meter.max_cost))
    queue = [min(cost, meter.max_cost) for _, cost in asked[8:16]]
    last = min(extra, meter.max_cost)
    estimate = meter.available_at(now, last, sum(queue))
    at = now
    for cost in (*queue, last):
        at = max(at, meter.available_at(at, cost))
        assert meter.try_charge(at, cost)
    assert max(now, estimate) <= at
    if kind == "bucket":  # exact, but for each time of the queue that is rounded up to a nanosecond
        assert at - max(now, estimate) <= len(queue) + 1


# What it really cost, said afterwards.

amended = st.lists(
    st.tuples(st.integers(0, 12), st.integers(1, 6), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=25
)


def settle_all(
    meter: Meter, asked: list[tuple[int, int, int, int]], *, always: bool
) -> tuple[list[tuple[int, int]], int]:
    """Let requests through, settle each some time later, and return (time, real cost) of each, and the time."""
    now, log = 100, list[tuple[int, int]]()
    pending: list[tuple[int, int, object, int, int]] = []
    steps = [(100 + sum(a[0] for a in asked[: n + 1]), a) for n, a in enumerate(asked)]
    end = max(at + a[3] for at, a in steps)
    for now in range(100, end + 1):
        for one in [one for one in pending if one[0] == now]:
            meter.adjust(one[2], one[3], one[4], now)
            pending.remove(one)
        for at, (_, cost, real, later) in steps:
            if at == now and (always or (cost <= meter.max_cost and meter.available_at(now, cost) <= now)):
                charge = meter.charge(now, now, cost)
                log.append((now, real))
                if later:
                    pending.append((now + later, now, charge, cost, real))
                else:
                    meter.adjust(charge, cost, real, now)
    return log, now


@pytest.mark.parametrize("kind", ["log", "counter"])
@given(config=limits, asked=amended)
def test_a_window_settles_as_if_the_real_cost_had_been_charged(
    kind: str, config: RateLimitConfig, asked: list[tuple[int, int, int, int]]
) -> None:
    meter, real = METERS[kind](config), METERS[kind](config)
    log, now = settle_all(meter, asked, always=True)
    for at, cost in log:
        real.charge(at, at, cost)
    for cost in range(1, meter.max_cost + 1):
        assert max(now, meter.available_at(now, cost)) == max(now, real.available_at(now, cost))


@given(limits, amended)
def test_a_refund_lets_nothing_through_that_the_real_cost_would_not(
    config: RateLimitConfig, asked: list[tuple[int, int, int, int]]
) -> None:
    bucket, real = Bucket(config), Bucket(config)
    log, now = settle_all(bucket, asked, always=True)
    for at, cost in log:
        real.charge(at, at, cost)
    assert max(now, bucket.available_at(now, 1)) >= max(now, real.available_at(now, 1))


@given(limits, st.lists(st.tuples(st.integers(1, 6), st.integers(0, 9)), min_size=1, max_size=20))
def test_a_refund_is_whole_while_the_bucket_is_owed_something(
    config: RateLimitConfig, asked: list[tuple[int, int]]
) -> None:
    """All costs are booked at one moment: nothing can be paid off meanwhile, so all of it comes back."""
    bucket, real = Bucket(config), Bucket(config)
    tickets = [bucket.charge(100, 100, cost) for cost, _ in asked]
    for charge, (cost, really) in zip(tickets, asked, strict=True):
        bucket.adjust(charge, cost, max(1, min(cost, really)), 100)
        real.charge(100, 100, max(1, min(cost, really)))
    # Each refund stops at what was owed after its own booking; here that is at least the charge itself.
    assert bucket.available_at(100, 1) == real.available_at(100, 1)


def test_settling_again_counts_from_the_last_time() -> None:
    for kind, make in METERS.items():
        meter = make(RateLimitConfig(10, 1000 * NANOSECOND))
        charge = meter.charge(5, 5, 8)
        for was, cost in [(8, 2), (2, 9), (9, 9), (9, 4)]:
            charge = meter.adjust(charge, was, cost, 5)
        assert meter.remaining(5) == 6, kind


def test_debt_is_counted_and_not_clamped() -> None:
    for kind, make in METERS.items():
        meter = make(RateLimitConfig(10, 1000 * NANOSECOND))
        meter.adjust(meter.charge(0, 0, 1), 1, 35, 0)
        assert meter.remaining(0) == 0
        due = meter.available_at(0, 1)
        assert due == {"bucket": 2600, "log": 1000, "counter": 1000 + 1000 - 9 * 1000 // 35}[kind]


def test_settling_what_is_over_changes_nothing() -> None:
    for kind, make in METERS.items():
        meter = make(RateLimitConfig(10, 1000 * NANOSECOND))
        charge = meter.charge(0, 0, 10)
        assert meter.unused_at(0) <= 2000, kind
        meter.charge(2000, 2000, 4)
        charge = meter.adjust(charge, 10, 0, 2000)
        assert meter.remaining(2000) == 6, kind


# Other limits.


def test_an_update_keeps_what_was_let_through() -> None:
    for kind, make in METERS.items():
        meter = make(RateLimitConfig(10, 1000 * NANOSECOND))
        meter.charge(0, 0, 6)
        meter.update(RateLimitConfig(20, 1000 * NANOSECOND), 0)
        assert meter.remaining(0) == 14, kind
        meter.update(RateLimitConfig(4, 500 * NANOSECOND), 0)
        assert meter.remaining(0) == 0, kind
        assert meter.available_at(0, 1) > 0, kind
        assert meter.max_cost == 4, kind


def test_a_bucket_pays_off_at_its_new_pace() -> None:
    bucket = Bucket(RateLimitConfig(10, 1000 * NANOSECOND))
    bucket.charge(0, 0, 10)
    bucket.update(RateLimitConfig(100, 1000 * NANOSECOND, 10), 0)
    assert bucket.available_at(0, 1) == 10
    assert bucket.unused_at(0) == 100


def test_a_refund_of_what_was_booked_at_another_pace_is_lost() -> None:
    bucket = Bucket(RateLimitConfig(10, 1000 * NANOSECOND))
    charge = bucket.charge(0, 0, 8)
    bucket.update(RateLimitConfig(20, 1000 * NANOSECOND), 0)
    charge = bucket.adjust(charge, 8, 2, 0)
    assert bucket.remaining(0) == 12
    bucket.adjust(charge, 2, 4, 0)
    assert bucket.remaining(0) == 10, "debt counts all the same"


def test_what_a_longer_window_would_still_count_is_gone() -> None:
    log = WindowLog(RateLimitConfig(10, 100 * NANOSECOND))
    charge = log.charge(0, 0, 5)
    assert log.remaining(100) == 10
    log.update(RateLimitConfig(10, 1000 * NANOSECOND), 100)
    log.adjust(charge, 5, 9, 100)
    assert log.remaining(100) == 10


@pytest.mark.parametrize("kind", METERS)
def test_a_cost_above_a_lowered_limit_goes_when_nothing_is_owed(kind: str) -> None:
    meter = METERS[kind](RateLimitConfig(10, 1000 * NANOSECOND))
    meter.charge(500, 500, 3)
    meter.update(RateLimitConfig(2, 1000 * NANOSECOND), 500)
    due = meter.available_at(500, 7)
    assert 500 < due < NEVER
    assert due == meter.unused_at(500)


def test_times_are_rounded_and_rates_are_not() -> None:
    bucket = Bucket(RateLimitConfig(3, 1, 1))
    now = 0
    for _ in range(3_000):
        now = max(now, bucket.available_at(now, 1))
        assert bucket.try_charge(now, 1)
    assert 0 <= now - 2_999 * Fraction(10**9, 3) <= 3_000


@pytest.mark.parametrize(
    ("rate", "capacity", "expected"),
    [
        (5, None, RateLimitConfig(5, 1, 5)),
        (0.5, None, RateLimitConfig(1, 2, 1)),
        (2.5, 4, RateLimitConfig(5, 2, 4)),
        (1 / 3, None, RateLimitConfig(1, 3, 1)),
        (1e-7, None, RateLimitConfig(1, 1e7, 1)),
        (1e9, 10, RateLimitConfig(10**9, 1, 10)),
    ],
)
def test_a_rate_is_read_as_a_fraction(rate: float, capacity: int | None, expected: RateLimitConfig) -> None:
    assert from_rate(rate, capacity) == expected


def test_permits_come_back_and_wait_for_nobody_else() -> None:
    permits = Permits(2)
    assert permits.try_charge(0, 2)
    assert not permits.try_charge(0, 1)
    assert permits.available_at(0, 1) == NEVER == permits.unused_at(0)
    permits.adjust(None, 1, 0, 0)
    assert (permits.available_at(0, 1), permits.remaining(0)) == (0, 1)
    permits.update(1, 0)
    assert permits.available_at(0, 1) == NEVER
    permits.adjust(None, 1, 0, 0)
    assert permits.available_at(0, 1) == 0 == permits.unused_at(0)


# Bad input.


@pytest.mark.parametrize(
    ("values", "error", "text"),
    [
        ((0, 1.0), ValueError, r"max_requests\)=0: give 1 or more"),
        ((1.5, 1.0), TypeError, r"max_requests\)=1.5: give a whole number"),
        ((True, 1.0), TypeError, r"max_requests\)=True"),
        ((1, 0), ValueError, r"window_seconds\)=0: give more than 1e-09"),
        ((1, math.inf), ValueError, r"window_seconds\)=inf"),
        ((1, math.nan), ValueError, r"window_seconds\)=nan"),
        ((1, "60"), TypeError, r"window_seconds\)='60': give a number"),
        ((1, 1.0, 0), ValueError, r"burst_size\)=0: give 1 or more"),
    ],
)
def test_a_bad_config_is_refused(values: tuple[object, ...], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        RateLimitConfig(*values)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
