"""Token bucket, leaky bucket and sliding window, with virtual time."""

import math
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuelight.coordination import AsyncLeakyBucket, AsyncSlidingWindow, AsyncTokenBucket, Decision, RateLimitConfig
from cuelight.coordination._limiters import SingleLimiter
from cuelight.coordination._meters import SECOND, Bucket, Meter, WindowCounter, WindowLog
from cuelight.testing import VIRTUAL_BACKENDS, virtual_backend
from helpers import Backend, run_on

TEN = RateLimitConfig(10, 10.0)  # one a second, ten at once


@pytest.fixture(params=VIRTUAL_BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    return virtual_backend(request.param)


Make = Callable[[RateLimitConfig], SingleLimiter]
MAKERS: dict[str, Make] = {
    "bucket": lambda config: AsyncTokenBucket(config, clock=anyio.current_time),
    "log": lambda config: AsyncSlidingWindow(config, clock=anyio.current_time),
    "counter": lambda config: AsyncSlidingWindow(config, exact=False, clock=anyio.current_time),
}
METERS: dict[str, Callable[[RateLimitConfig], Meter]] = {"bucket": Bucket, "log": WindowLog, "counter": WindowCounter}

every_kind = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


class Crowd:
    """Tasks that acquire, and when each of them was let through."""

    def __init__(self, limiter: SingleLimiter) -> None:
        self.limiter, self.group = limiter, anyio.create_task_group()
        self.began = anyio.current_time()
        self.done: list[tuple[Any, float]] = []
        self.scopes: dict[Any, anyio.CancelScope] = {}

    async def __aenter__(self) -> "Crowd":
        await self.group.__aenter__()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        await self.group.__aexit__(*exc_info)

    @property
    def now(self) -> float:
        return round(anyio.current_time() - self.began, 6)

    def slots(self) -> list[float]:
        """When each was let through, in the order in which they came."""
        slots = dict(self.done)
        return [slots[name] for name in self.scopes]

    async def come(self, name: object, cost: int = 1, timeout: float | None = None) -> None:
        self.group.start_soon(self._acquire, name, cost, timeout)
        await anyio.wait_all_tasks_blocked()

    async def _acquire(self, name: object, cost: int, timeout: float | None) -> None:
        with anyio.CancelScope() as self.scopes[name]:
            try:
                await self.limiter.acquire(cost, timeout)
            except TimeoutError as error:
                self.done.append((error, self.now))
            else:
                self.done.append((name, self.now))


@every_kind
async def test_what_waits_goes_in_order_and_a_large_request_is_not_starved(make: Make) -> None:
    limiter = make(TEN)
    await limiter.acquire(10)
    async with Crowd(limiter) as crowd:
        await crowd.come("small")
        await crowd.come("large", 8)
        for number in range(20):
            await crowd.come(number)
            await anyio.sleep(0.1)
        assert not limiter.try_acquire().allowed
    assert crowd.slots() == sorted(crowd.slots())


async def test_waiting_requests_keep_the_rate() -> None:
    limiter = MAKERS["bucket"](TEN)
    async with Crowd(limiter) as crowd:
        for number in range(14):
            await crowd.come(number)
    assert [at for _, at in crowd.done] == [0] * 10 + [1, 2, 3, 4]
    assert limiter.statistics() == (14, 0, 4, 0, 10.0)


async def test_a_leaky_bucket_spaces_evenly() -> None:
    limiter = AsyncLeakyBucket(TEN, clock=anyio.current_time)
    async with Crowd(limiter) as crowd:
        for number in range(4):
            await crowd.come(number)
    assert [at for _, at in crowd.done] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="never lets more than 1 through"):
        await limiter.acquire(2)
    limiter.update(RateLimitConfig(2, 1.0))
    assert limiter.config == RateLimitConfig(2, 1.0, 1)


async def test_a_sliding_window_lets_none_through_early() -> None:
    limiter = MAKERS["log"](RateLimitConfig(2, 10.0))
    async with Crowd(limiter) as crowd:
        await crowd.come(0)
        await anyio.sleep(4)
        for number in (1, 2, 3, 4):
            await crowd.come(number)
    assert [at for _, at in crowd.done] == [0, 4, 10, 14, 20]


# Against a model that has a queue and no tasks.

arrivals = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.25, 1.0, 3.0]),  # after the one before
        st.integers(1, 4),  # cost
        st.none() | st.integers(0, 12),  # gives up after so many seconds, and a bit
    ),
    min_size=1,
    max_size=14,
)


def model(meter: Meter, asked: list[tuple[float, int, int | None]]) -> list[tuple[int, int]]:
    """Who is let through when, by looking at the queue at each event."""
    coming: list[tuple[int, int, int, int]] = []
    at = 0
    for number, (pause, cost, patience) in enumerate(asked):
        at += round(pause * SECOND)
        gone = at + round((patience + 0.0123) * SECOND) if patience is not None else 1 << 60
        coming.append((at, number, cost, gone))
    queue: list[tuple[int, int, int, int]] = []
    done: list[tuple[int, int]] = []
    now = 0
    while coming or queue:
        while coming and coming[0][0] <= now:
            queue.append(coming.pop(0))
        queue = [one for one in queue if one[3] > now]
        while queue and meter.available_at(now, queue[0][2]) <= now:
            _, number, cost, _ = queue.pop(0)
            meter.charge(now, now, cost)
            done.append((number, now))
        events = [one[0] for one in coming[:1]] + [one[3] for one in queue]
        events += [meter.available_at(now, queue[0][2])] if queue else []
        now = min(events, default=now)
    return done


@pytest.mark.parametrize("name", VIRTUAL_BACKENDS)
@pytest.mark.parametrize("kind", METERS)
@given(asked=arrivals)
def test_waiting_and_leaving_is_as_in_the_model(
    kind: str, name: Literal["asyncio", "trio"], asked: list[tuple[float, int, int | None]]
) -> None:
    """Whoever leaves leaves no gap: the others go as if it had not been there from then on."""
    config = RateLimitConfig(4, 3.0)

    async def scenario() -> list[tuple[int, int]]:
        begin = anyio.current_time()
        limiter = SingleLimiter(METERS[kind](config), config, lambda: anyio.current_time() - begin)
        done: list[tuple[int, int]] = []

        async def request(number: int, at: float, cost: int, patience: int | None) -> None:
            await anyio.sleep_until(begin + at)
            with anyio.move_on_at(math.inf if patience is None else begin + at + patience + 0.0123):
                await limiter.acquire(cost)
                done.append((number, round((anyio.current_time() - begin) * SECOND)))

        at = 0.0
        async with anyio.create_task_group() as group:
            for number, (pause, cost, patience) in enumerate(asked):
                at += pause + 1e-6  # so that they come in this order
                group.start_soon(request, number, at, cost, patience)
        statistics = limiter.statistics()
        assert (statistics.admitted, statistics.waiting, limiter._queue) == (len(done), 0, None)
        return done

    expected = model(METERS[kind](config), [(pause + 1e-6, cost, patience) for pause, cost, patience in asked])
    done = run_on(virtual_backend(name), scenario)
    # Those that go at the same moment are let through in order, but the loop says which runs first.
    assert sorted(number for number, _ in done) == [number for number, _ in expected]
    for (_, at), (_, wanted) in zip(sorted(done), expected, strict=True):
        assert abs(at - wanted) <= 5_000  # a sleep is a microsecond at least


# Deadlines.


@every_kind
async def test_what_cannot_come_in_time_raises_at_once(make: Make) -> None:
    limiter = make(TEN)
    await limiter.acquire(10)
    before = anyio.current_time()
    with pytest.raises(TimeoutError, match=r"10 in 10 s.* has no room within 0.5 s for a cost of 5: .* in \d"):
        await limiter.acquire(5, timeout=0.5)
    with pytest.raises(TimeoutError):
        await limiter.acquire(timeout=0)
    assert anyio.current_time() == before
    assert limiter.statistics() == (1, 2, 0, 0, 0.0)
    await limiter.acquire(10, timeout=20)


async def test_a_deadline_that_a_pause_made_too_short_is_kept() -> None:
    limiter = MAKERS["bucket"](TEN)
    await limiter.acquire(10)
    async with Crowd(limiter) as crowd:
        await crowd.come("early", timeout=2)
        await crowd.come("late")
        limiter.pause_for(60, jitter=0)
    assert [(type(one), at) for one, at in crowd.done] == [(TimeoutError, 2), (str, 60)]
    assert limiter.statistics() == (2, 1, 1, 0, 60.0)


# Without waiting.


@every_kind
async def test_try_acquire_says_exactly_when(make: Make) -> None:
    limiter = make(TEN)
    assert limiter.try_acquire(9)[:3] == (True, 0.0, 1)
    refused = limiter.try_acquire(2)
    assert (refused.allowed, refused.remaining) == (False, 1)
    assert 0 < refused.retry_after <= refused.reset_after
    await anyio.sleep(refused.retry_after - 0.001)
    assert not limiter.try_acquire(2).allowed
    await anyio.sleep(0.001)
    assert limiter.try_acquire(2).allowed
    await anyio.sleep(30)
    assert limiter.idle
    assert limiter.try_acquire(0) == Decision(True, 0.0, 10, 0.0)


async def test_try_acquire_overtakes_nobody() -> None:
    limiter = MAKERS["bucket"](TEN)
    await limiter.acquire(10)
    async with Crowd(limiter) as crowd:
        await crowd.come("large", 10)
        await anyio.sleep(5)
        assert limiter.try_acquire(1) == Decision(False, 6.0, 0, 6.0)
        assert limiter.statistics().waiting == 1
    assert crowd.done == [("large", 10)]


# Leaving.


@every_kind
async def test_a_waiter_that_leaves_gives_way_at_once(make: Make) -> None:
    limiter = make(TEN)
    await limiter.acquire(10)
    async with Crowd(limiter) as crowd:
        await crowd.come("large", 10)
        await crowd.come("middle", 10)
        await crowd.come("small", 1)
        crowd.scopes["large"].cancel()
        await anyio.wait_all_tasks_blocked()
        crowd.scopes["middle"].cancel()
    assert [name for name, _ in crowd.done] == ["small"]
    assert crowd.done[0][1] <= 11
    assert limiter.statistics()[:4] == (2, 0, 1, 0)
    assert limiter._queue is None


async def test_a_request_cancelled_where_it_lets_others_run_is_not_charged() -> None:
    limiter = MAKERS["bucket"](RateLimitConfig(1000, 1.0))
    for _ in range(63):
        await limiter.acquire()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await limiter.acquire()
    assert scope.cancelled_caught
    assert limiter.statistics().admitted == 63


async def test_requests_that_need_not_wait_yield_once_in_64() -> None:
    limiter = MAKERS["bucket"](RateLimitConfig(1000, 1.0))
    seen: list[int] = []

    async def look() -> None:
        while True:
            seen.append(limiter.statistics().admitted)
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(look)
        for _ in range(200):
            await limiter.acquire()
        group.cancel_scope.cancel()
    assert set(seen) & {63, 127, 191}
    assert set(seen) <= {63, 127, 191, 200}


def test_a_waiter_whose_task_is_forgotten_leaves_even_in_the_middle_of_a_step() -> None:
    """The garbage collector may close a coroutine while its own thread holds the lock."""

    async def scenario() -> None:
        limiter = MAKERS["bucket"](TEN)
        await limiter.acquire(10)
        first, second = limiter.acquire(5), limiter.acquire(5)
        first.send(None)
        second.send(None)
        assert limiter.statistics().waiting == 2
        first.close()
        assert limiter.statistics().waiting == 1
        with limiter._step():
            second.close()
        assert limiter._queue is None
        assert limiter.statistics() == (1, 0, 0, 0, 0.0)

    run_on(virtual_backend("asyncio"), scenario)


def test_outside_of_a_loop_nothing_waits() -> None:
    limiter = AsyncTokenBucket(TEN)
    with pytest.raises(StopIteration):
        limiter.acquire(10).send(None)
    with pytest.raises(RuntimeError, match="no asyncio or trio event loop runs here"):
        limiter.acquire().send(None)
    assert limiter.statistics() == (1, 0, 0, 0, 0.0)
    assert limiter._queue is None


# Pauses and other limits.


@every_kind
async def test_a_pause_holds_all_up_and_can_only_grow(make: Make) -> None:
    limiter = make(TEN)
    assert limiter.pause_for(30, jitter=0) == 30
    limiter.pause_until(anyio.current_time() + 20)
    assert not limiter.idle
    assert limiter.try_acquire() == Decision(False, 30.0, 0, 30.0)
    async with Crowd(limiter) as crowd:
        await crowd.come("one")
        await crowd.come("two")
        await anyio.sleep(10)
        limiter.pause_until(anyio.current_time() + 40)
    assert sorted(crowd.done) == [("one", 50), ("two", 50)]
    limiter.pause_for(1000)
    async with Crowd(limiter) as crowd:
        await crowd.come("resumed")
        limiter.resume()
    assert crowd.done == [("resumed", 0)]


async def test_jitter_makes_a_pause_longer_and_never_shorter() -> None:
    spread = set[float]()
    for _ in range(200):
        spread.add(MAKERS["bucket"](TEN).pause_for(10, jitter=0.5))
    assert 10 <= min(spread) < 11
    assert 14 < max(spread) <= 15


@every_kind
async def test_a_new_limit_counts_at_once_for_all_that_wait(make: Make) -> None:
    limiter = make(TEN)
    await limiter.acquire(10)
    async with Crowd(limiter) as crowd:
        for number in range(5):
            await crowd.come(number)
        limiter.update(RateLimitConfig(1000, 10.0))
    assert sorted(crowd.done) == [(number, 0) for number in range(5)]
    assert limiter.try_acquire(985).allowed
    limiter.update(TEN)
    async with Crowd(limiter) as crowd:
        await crowd.come("after all that is owed")
    assert crowd.done[0][1] > 5


async def test_a_waiter_that_costs_more_than_a_lowered_limit_goes_when_nothing_is_owed() -> None:
    limiter = MAKERS["bucket"](TEN)
    await limiter.acquire(10)
    async with Crowd(limiter) as crowd:
        await crowd.come("eight", 8)
        limiter.update(RateLimitConfig(10, 10.0, 2))
        await crowd.come("one")
    assert crowd.done == [("eight", 10), ("one", 17)]


# As a decorator and as a context manager.


async def test_it_decorates_async_functions() -> None:
    limiter = MAKERS["bucket"](TEN)
    called: list[float] = []

    @limiter
    async def plain(word: str, *, loud: bool = False) -> str:
        """Says it."""
        called.append(anyio.current_time())
        return word.upper() if loud else word

    def length(text: str) -> int:
        return len(text)

    @limiter.limited(cost=length, timeout=30)
    async def weighed(text: str) -> int:
        return len(text)

    @limiter.limited(5)
    async def five() -> None: ...

    assert await plain("hello", loud=True) == "HELLO"
    assert (plain.__name__, plain.__doc__) == ("plain", "Says it.")
    assert await weighed("four") == 4
    await five()
    assert limiter.statistics() == (3, 0, 0, 0, 0.0)
    began = anyio.current_time()
    await plain("late")
    assert called[-1] == pytest.approx(began + 1)
    with pytest.raises(ValueError, match="cost=11"):
        await weighed("eleven long")


async def test_it_is_a_context_manager() -> None:
    limiter = MAKERS["log"](RateLimitConfig(1, 5.0))
    began = anyio.current_time()
    for _ in range(3):
        async with limiter:
            pass
    assert anyio.current_time() == pytest.approx(began + 10)
    with pytest.raises(KeyError):
        async with limiter:
            raise KeyError
    assert limiter.statistics().admitted == 4


# Bad input.


def sync_function() -> None: ...


def untyped(function: Any, *args: object) -> Any:
    """A call that a type checker would refuse."""
    return function(*args)


Refused = tuple[Callable[[Any], Any], type[Exception], str]

REFUSED: list[Refused] = [
    (
        lambda limiter: limiter.acquire(11),
        ValueError,
        "cost=11: <AsyncTokenBucket 10 in 10 s> never lets more than 10",
    ),
    (lambda limiter: limiter.acquire(-1), ValueError, "cost=-1: give 0 or more"),
    (lambda limiter: limiter.acquire(1.0), TypeError, "cost=1.0: give a whole number; .* smaller unit"),
    (lambda limiter: limiter.acquire(True), TypeError, "cost=True"),
    (lambda limiter: limiter.acquire(1, -1), ValueError, "timeout=-1: give seconds"),
    (lambda limiter: limiter.acquire(1, math.nan), ValueError, "timeout=nan"),
    (lambda limiter: limiter.try_acquire(11), ValueError, "cost=11"),
    (lambda limiter: limiter.update((1, 2)), TypeError, r"\(1, 2\): give a RateLimitConfig"),
    (lambda limiter: limiter.pause_for(-1), ValueError, r"pause_for\(seconds=-1\)"),
    (lambda limiter: limiter.pause_for(1, jitter=math.inf), ValueError, r"pause_for\(jitter=inf\)"),
    (lambda limiter: limiter.pause_until(math.nan), ValueError, r"pause_until\(nan\)"),
    (lambda limiter: limiter(sync_function), TypeError, "decorates `async def` functions, and <function sync_f"),
    (lambda limiter: limiter.limited(11), ValueError, "cost=11"),
    (lambda limiter: limiter.limited(timeout=-1), ValueError, "timeout=-1"),
    (lambda _: AsyncTokenBucket(0), ValueError, "rate=0: give more than 0"),
    (lambda _: untyped(AsyncTokenBucket, "fast"), TypeError, "rate='fast': give a number"),
    (lambda _: AsyncTokenBucket(1.0, 0), ValueError, "burst_size"),
    (lambda _: AsyncTokenBucket(TEN, 5), TypeError, "capacity=5: the limit says it"),
    (lambda _: untyped(AsyncLeakyBucket, 5), TypeError, "5: give a RateLimitConfig"),
    (lambda _: AsyncLeakyBucket(RateLimitConfig(1, 1, 2)), ValueError, "burst_size=2: a leaky bucket has 1"),
    (lambda _: AsyncSlidingWindow(5), TypeError, r"AsyncSlidingWindow\(5\): say in how many seconds"),
    (lambda _: AsyncSlidingWindow(TEN, 5), TypeError, "window_seconds=5: the limit says it already"),
    (lambda _: AsyncSlidingWindow(RateLimitConfig(2, 1, 5)), ValueError, "burst_size=5: a sliding window"),
]


@pytest.mark.parametrize(("attempt", "error", "text"), REFUSED)
async def test_bad_input_is_refused(attempt: Callable[[Any], Any], error: type[Exception], text: str) -> None:
    limiter = MAKERS["bucket"](TEN)
    with pytest.raises(error, match=text):
        result = attempt(limiter)
        if isinstance(result, Awaitable):
            await result
    assert limiter.statistics() == (0, 0, 0, 0, 0.0)


def test_it_is_made_as_the_documents_say() -> None:
    assert AsyncTokenBucket(5.0, 10).config == RateLimitConfig(5, 1.0, 10)
    assert AsyncTokenBucket(rate=2, capacity=None).config == RateLimitConfig(2, 1.0, 2)
    assert AsyncSlidingWindow(5, 60.0).config == RateLimitConfig(5, 60.0)
    assert AsyncSlidingWindow(limit=RateLimitConfig(5, 1, 5)).config.burst_size == 5
    assert repr(AsyncTokenBucket(RateLimitConfig(9, 60, 3))) == "<AsyncTokenBucket 9 in 60 s, burst 3>"
