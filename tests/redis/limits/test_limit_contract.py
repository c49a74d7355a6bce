"""What a limiter owes, whether its limit is that of a process or of all of them: in real time, so with short windows.

Times are only bounded from below: nothing goes early. That all go is what the tests wait for.
"""

import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import pytest

from cuelight.coordination import AsyncLeakyBucket, AsyncSlidingWindow, AsyncTokenBucket, RateLimitConfig, RateLimiter
from cuelight.redis import RedisClient
from cuelight.redis._limits import RedisLeakyBucket, RedisRateLimiter, RedisSlidingWindow, RedisTokenBucket
from helpers import BACKENDS, Backend
from helpers.limiters import done, unique, until
from helpers.redis_servers import shared_server

Made = Callable[..., Any]

TEN = RateLimitConfig(10, 0.5)  # one in a twentieth of a second, ten at once
EARLY = 0.002  # the clock of the loop against that of the server

SINGLE: dict[str, dict[str, Callable[[Any, RateLimitConfig], Any]]] = {
    "bucket": {
        "local": lambda _, config: AsyncTokenBucket(config),
        "redis": lambda client, config: RedisTokenBucket(unique(), config, server=client),
    },
    "log": {
        "local": lambda _, config: AsyncSlidingWindow(config),
        "redis": lambda client, config: RedisSlidingWindow(unique(), config, server=client),
    },
    "counter": {
        "local": lambda _, config: AsyncSlidingWindow(config, exact=False),
        "redis": lambda client, config: RedisSlidingWindow(unique(), config, exact=False, server=client),
    },
    "leaky": {
        "local": lambda _, config: AsyncLeakyBucket(config),
        "redis": lambda client, config: RedisLeakyBucket(unique(), config, server=client),
    },
}


@pytest.fixture(params=[("local", "asyncio"), ("redis", "asyncio"), ("redis", "trio")], ids=" ".join)
def where(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Where the limit is kept, and on which loop the test runs."""
    chosen: tuple[str, str] = request.param
    return chosen


@pytest.fixture
def anyio_backend(where: tuple[str, str]) -> Backend:
    return BACKENDS[where[1]]


@pytest.fixture
def place(where: tuple[str, str]) -> str:
    return where[0]


@pytest.fixture
async def make(place: str) -> AsyncIterator[Made]:
    """Makes a limiter of a kind, with a limit, here or on the server."""
    async with RedisClient(shared_server().url) as client:
        made: list[Any] = []

        def make(kind: str, config: RateLimitConfig = TEN, **limits: Any) -> Any:
            if kind != "several":
                limiter = SINGLE[kind][place](client, config)
            elif place == "local":
                limiter = RateLimiter(**limits)
            else:
                limiter = RedisRateLimiter(unique(), server=client, **limits)
            made.append(limiter)
            return limiter

        yield make
        for limiter in made:
            if place == "redis":
                await limiter.aclose()


several = pytest.mark.parametrize("kind", ["bucket", "log", "counter"])


class Crowd:
    """Tasks that acquire, and when each of them was let through."""

    def __init__(self, limiter: Any) -> None:
        self.limiter, self.group = limiter, anyio.create_task_group()
        self.began = anyio.current_time()
        self.done: list[tuple[Any, float]] = []
        self.scopes: dict[Any, anyio.CancelScope] = {}

    async def come(self, name: object, cost: int = 1, timeout: float | None = None) -> None:
        """Returns when the request waits, or was let through."""
        self.group.start_soon(self._acquire, name, cost, timeout)
        statistics = self.limiter.statistics
        asked = statistics().waiting + len(self.done)
        await until(lambda: statistics().waiting + len(self.done) > asked)

    async def _acquire(self, name: object, cost: int, timeout: float | None) -> None:
        with anyio.CancelScope() as self.scopes[name]:
            try:
                await self.limiter.acquire(cost, timeout)
            except TimeoutError as error:
                self.done.append((error, anyio.current_time() - self.began))
            else:
                self.done.append((name, anyio.current_time() - self.began))

    def not_before(self, *times: float) -> None:
        """Each went when it was allowed to, or later, and in this order."""
        went = [at for _, at in self.done]
        assert len(went) == len(times)
        assert all(at >= time - EARLY for at, time in zip(went, times, strict=True)), went


@asynccontextmanager
async def crowd_at(limiter: Any) -> AsyncGenerator[Crowd]:
    crowd = Crowd(limiter)
    with anyio.fail_after(20):
        async with crowd.group:
            yield crowd


@several
async def test_anywhere_what_waits_goes_in_order_and_a_large_request_is_not_starved(make: Made, kind: str) -> None:
    limiter = make(kind)
    await limiter.acquire(10)
    async with crowd_at(limiter) as crowd:
        await crowd.come("small")
        await crowd.come("large", 8)
        for number in range(8):
            await crowd.come(number)
        assert not (await done(limiter.try_acquire())).allowed
    # Those that go in the same moment may run in any order: of a log the large one and the next, else if the loop comes
    # late.
    assert {"small", "large"} <= {name for name, _ in crowd.done[:3]}
    assert limiter.statistics()[:4] == (11, 1, 10, 0)


async def test_anywhere_waiting_requests_keep_the_rate(make: Made) -> None:
    limiter = make("bucket")
    async with crowd_at(limiter) as crowd:
        for number in range(14):
            await crowd.come(number)
    # What waited counts as let through when its turn came, if that is no more than 10 ms ago.
    crowd.not_before(*[0] * 10, 0.04, 0.09, 0.14, 0.19)
    assert sorted(name for name, _ in crowd.done) == [*range(14)]


async def test_anywhere_a_leaky_bucket_spaces_evenly(make: Made) -> None:
    limiter = make("leaky")
    async with crowd_at(limiter) as crowd:
        for number in range(4):
            await crowd.come(number)
    crowd.not_before(0, 0.04, 0.09, 0.14)
    with pytest.raises(ValueError, match="never lets more than 1 through"):
        await limiter.acquire(2)
    await done(limiter.update(RateLimitConfig(2, 1.0)))
    assert limiter.config == RateLimitConfig(2, 1.0, 1)


async def test_anywhere_a_sliding_window_lets_none_through_early(make: Made) -> None:
    limiter = make("log", RateLimitConfig(2, 0.25))
    async with crowd_at(limiter) as crowd:
        await crowd.come(0)
        await anyio.sleep(0.1)
        for number in (1, 2, 3, 4):
            await crowd.come(number)
    crowd.not_before(0, 0.1, 0.25, 0.35, 0.5)


@several
async def test_anywhere_what_cannot_come_in_time_raises_at_once(make: Made, kind: str) -> None:
    limiter = make(kind, RateLimitConfig(10, 100.0))
    await limiter.acquire(10)
    with anyio.fail_after(5):
        with pytest.raises(TimeoutError, match=r"10 in 100 s.* has no room within 6 s for a cost of 5: .* in \d"):
            await limiter.acquire(5, timeout=6)
        with pytest.raises(TimeoutError):
            await limiter.acquire(timeout=0)
    assert limiter.statistics() == (1, 2, 0, 0, 0.0)


async def test_anywhere_a_deadline_that_a_pause_made_too_short_is_kept(make: Made) -> None:
    limiter = make("bucket")
    await limiter.acquire(10)
    async with crowd_at(limiter) as crowd:
        await crowd.come("early", timeout=0.1)
        await crowd.come("late")
        await done(limiter.pause_for(0.5, jitter=0))
        paused = anyio.current_time() - crowd.began
    assert [type(one) for one, _ in crowd.done] == [TimeoutError, str]
    crowd.not_before(0.1, paused + 0.4)
    assert limiter.statistics()[:4] == (2, 1, 1, 0)


@several
async def test_anywhere_try_acquire_says_when(make: Made, kind: str) -> None:
    limiter = make(kind)
    first = await done(limiter.try_acquire(9))
    assert first[:3] == (True, 0.0, 1)
    refused = await done(limiter.try_acquire(2))
    assert (refused.allowed, refused.remaining) == (False, 1)
    assert 0 < refused.retry_after <= refused.reset_after
    await anyio.sleep(refused.retry_after)
    assert (await done(limiter.try_acquire(2))).allowed


async def test_anywhere_try_acquire_overtakes_nobody(make: Made) -> None:
    limiter = make("bucket")
    await limiter.acquire(10)
    async with crowd_at(limiter) as crowd:
        await crowd.come("large", 10)
        await anyio.sleep(0.25)
        refused = await done(limiter.try_acquire(1))
        assert (refused.allowed, refused.remaining) == (False, 0)
        assert limiter.statistics().waiting == 1
    crowd.not_before(0.49)


@several
async def test_anywhere_a_waiter_that_leaves_gives_way_at_once(make: Made, kind: str) -> None:
    limiter = make(kind)
    await limiter.acquire(10)
    async with crowd_at(limiter) as crowd:
        for name, cost in {"large": 10, "middle": 10, "small": 1}.items():
            await crowd.come(name, cost)
        crowd.scopes["large"].cancel()
        crowd.scopes["middle"].cancel()
    assert [name for name, _ in crowd.done] == ["small"]
    assert limiter.statistics()[:4] == (2, 0, 1, 0)
    assert (await done(limiter.try_acquire(1))).remaining <= 9


@several
async def test_anywhere_a_pause_holds_all_up_and_can_only_grow(make: Made, kind: str) -> None:
    limiter = make(kind)
    assert await done(limiter.pause_for(0.5, jitter=0)) == pytest.approx(0.5, abs=0.01)
    assert await done(limiter.pause_for(0.1, jitter=0)) > 0.1
    refused = await done(limiter.try_acquire())
    assert (refused.allowed, refused.remaining) == (False, 0)
    assert 0 < refused.retry_after <= 0.5
    async with crowd_at(limiter) as crowd:
        await crowd.come("one")
        await crowd.come("two")
        await done(limiter.pause_for(0.6, jitter=0))
        paused = anyio.current_time() - crowd.began
    crowd.not_before(paused + 0.5, paused + 0.5)
    await done(limiter.pause_for(1000))
    async with crowd_at(limiter) as crowd:
        await crowd.come("resumed")
        await done(limiter.resume())


@several
async def test_anywhere_a_new_limit_counts_at_once_for_all_that_wait(make: Made, kind: str) -> None:
    limiter = make(kind, RateLimitConfig(10, 100.0))
    await limiter.acquire(10)
    async with crowd_at(limiter) as crowd:
        for number in range(5):
            await crowd.come(number)
        await done(limiter.update(RateLimitConfig(1000, 100.0)))
    assert limiter.config == RateLimitConfig(1000, 100.0)
    assert (await done(limiter.try_acquire(985))).allowed
    await done(limiter.update(RateLimitConfig(10, 100.0)))
    assert not (await done(limiter.try_acquire(1))).allowed


async def test_anywhere_a_waiter_that_costs_more_than_a_lowered_limit_goes_when_nothing_is_owed(make: Made) -> None:
    limiter = make("bucket")
    await limiter.acquire(10)
    async with crowd_at(limiter) as crowd:
        await crowd.come("eight", 8)
        await done(limiter.update(RateLimitConfig(10, 0.5, 2)))
        await crowd.come("one")
    crowd.not_before(0.45, 0.8)
    assert [name for name, _ in crowd.done] == ["eight", "one"]


async def test_anywhere_it_decorates_async_functions(make: Made) -> None:
    limiter = make("bucket")

    async def say(word: str, *, loud: bool = False) -> str:
        """Says it."""
        return word.upper() if loud else word

    async def length(text: str) -> int:
        return len(text)

    plain, weighed = limiter(say), limiter.limited(cost=len, timeout=30)(length)

    assert await plain("hello", loud=True) == "HELLO"
    assert (plain.__name__, plain.__doc__) == ("say", "Says it.")
    assert await weighed("four") == 4
    async with limiter:
        pass
    assert limiter.statistics() == (3, 0, 0, 0, 0.0)
    with pytest.raises(ValueError, match="cost=11"):
        await weighed("eleven long")


Refused = tuple[Callable[[Any], Any], type[Exception], str]

REFUSED: list[Refused] = [
    (lambda it: it.acquire(11), ValueError, "cost=11: <.*TokenBucket .*10 in 0.5 s.*> never lets more than 10"),
    (lambda it: it.acquire(-1), ValueError, "cost=-1: give 0 or more"),
    (lambda it: it.acquire(1.0), TypeError, "cost=1.0: give a whole number; .* smaller unit"),
    (lambda it: it.acquire(1, -1), ValueError, "timeout=-1: give seconds"),
    (lambda it: it.try_acquire(11), ValueError, "cost=11"),
    (lambda it: it.update((1, 2)), TypeError, r"\(1, 2\): give a RateLimitConfig"),
    (lambda it: it.pause_for(-1), ValueError, r"pause_for\(seconds=-1\)"),
    (lambda it: it.pause_for(1, jitter=math.inf), ValueError, r"pause_for\(jitter=inf\)"),
    (lambda it: it(len), TypeError, "decorates `async def` functions, and <built-in function len"),
    (lambda it: it.limited(11), ValueError, "cost=11"),
    (lambda it: it.limited(timeout=-1), ValueError, "timeout=-1"),
]


async def test_anywhere_bad_input_to_a_limiter_is_refused(make: Made) -> None:
    limiter = make("bucket")
    for attempt, error, text in REFUSED:
        with pytest.raises(error, match=text):
            await done(attempt(limiter))
    assert (await done(limiter.try_acquire(10))).allowed, "nothing was charged"


# Several limits.

REQUESTS = RateLimitConfig(60, 60.0, 5)  # one a second, five at once
TOKENS = RateLimitConfig(60, 60.0, 1000)  # one a second, a thousand at once


def both(make: Made, **options: Any) -> Any:
    return make("several", requests=REQUESTS, tokens=TOKENS, **options)


async def tokens_are(limiter: Any, right: Callable[[int], bool]) -> bool:
    return right((await done(limiter.remaining()))["tokens"])


async def test_anywhere_a_request_is_charged_in_all_limits_or_in_none(make: Made) -> None:
    limiter = both(make)
    async with limiter.request(tokens=900) as request:
        assert request.costs == {"requests": 1, "tokens": 900}
    assert await done(limiter.remaining()) == {"requests": 4, "tokens": 100}
    with pytest.raises(TimeoutError, match=r"no room within 0 s for requests=1, tokens=200: its turn comes in \d"):
        async with limiter.request(timeout=0, tokens=200):
            pytest.fail("not let through")
    left = await done(limiter.remaining())
    assert left["requests"] in {4, 5}
    assert 99 < await done(limiter.retry_after(tokens=200)) + left["tokens"] % 100 <= 101
    async with limiter.request(tokens=101) as request:
        pass
    assert request.waited > 0


async def test_anywhere_a_limit_that_a_request_does_not_use_does_not_hold_it_up(make: Made) -> None:
    limiter = both(make)
    async with limiter.request(tokens=1000) as request:
        request.settle(tokens=50_000)
    assert await done(limiter.retry_after()) == 0
    async with limiter.request(timeout=0):
        pass
    assert (await done(limiter.remaining()))["tokens"] == 0


async def test_anywhere_no_more_than_so_many_are_under_way_and_who_waits_goes_in_order(make: Made) -> None:
    limiter = make("several", requests=RateLimitConfig(1000, 1.0), concurrency=2)
    under_way, most, order = 0, 0, list[int]()
    release = anyio.Semaphore(0)

    async def work(number: int) -> None:
        nonlocal under_way, most
        async with limiter.request():
            order.append(number)
            under_way += 1
            most = max(most, under_way)
            await release.acquire()
            under_way -= 1

    def came(number: int) -> bool:
        return bool(len(order) + limiter.statistics().waiting > number)

    def went(number: int) -> bool:
        return len(order) >= number

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            for number in range(9):
                group.start_soon(work, number)
                await until(partial(came, number))
            assert await done(limiter.retry_after()) == math.inf
            assert (await done(limiter.remaining()))["concurrency"] == 0
            for number in range(9):
                release.release()
                await until(partial(went, min(9, number + 3)))
    assert (most, order) == (2, [*range(9)])
    assert (await done(limiter.remaining()))["concurrency"] == 2


async def test_anywhere_a_permit_comes_back_however_the_block_ends(make: Made) -> None:
    limiter = both(make, concurrency=1)
    with pytest.raises(KeyError):
        async with limiter.request():
            raise KeyError
    with anyio.move_on_after(0.2):
        async with limiter.request():
            await anyio.sleep_forever()
    block = limiter.request()
    await block.__aenter__()
    await block.__aexit__(None, None, None)
    await block.__aexit__(None, None, None)
    assert (await done(limiter.remaining()))["concurrency"] == 1
    with pytest.raises(RuntimeError, match="call `request` once for each"):
        await block.__aenter__()


async def test_anywhere_what_was_not_used_is_refunded_and_what_was_used_too_much_is_owed(make: Made) -> None:
    limiter = both(make)
    async with limiter.request(tokens=1000) as request:
        request.settle(tokens=400)
    assert (await done(limiter.remaining()))["tokens"] == pytest.approx(600, abs=2)
    request.settle(tokens=3000)
    assert request.costs == {"requests": 1, "tokens": 3000}
    await until(lambda: tokens_are(limiter, lambda left: left == 0))
    assert await done(limiter.retry_after(tokens=1)) == pytest.approx(2001, abs=5)
    request.settle(tokens=500, requests=0)
    await until(lambda: tokens_are(limiter, lambda left: left > 0))
    left = await done(limiter.remaining())
    assert left == {"requests": 5, "tokens": pytest.approx(500, abs=5)}


async def test_anywhere_a_refund_wakes_those_that_wait(make: Made) -> None:
    limiter = both(make)
    went = anyio.Event()

    async def small() -> None:
        async with limiter.request(tokens=500):
            went.set()

    with anyio.fail_after(20):  # by itself it would take 500 s
        async with anyio.create_task_group() as group:
            async with limiter.request(tokens=1000) as request:
                group.start_soon(small)
                await until(lambda: limiter.statistics().waiting)
                request.settle(tokens=100)
            await went.wait()


@pytest.mark.parametrize("refund", [False, True])
async def test_anywhere_a_failure_is_refunded_if_so_wanted(make: Made, refund: bool) -> None:
    limiter = both(make, concurrency=1)
    with pytest.raises(KeyError):
        async with limiter.request(tokens=700, refund_on_failure=refund):
            raise KeyError
    with anyio.move_on_after(0.05):
        async with limiter.request(tokens=200, refund_on_failure=refund):
            await anyio.sleep_forever()
    with pytest.raises(KeyError):
        async with limiter.request(tokens=90, refund_on_failure=refund) as request:
            request.settle(tokens=50)
            raise KeyError
    left = await done(limiter.remaining())
    assert left["concurrency"] == 1
    assert left["tokens"] == pytest.approx(950 if refund else 50, abs=3)
    assert left["requests"] == pytest.approx(4 if refund else 2, abs=1)


async def test_anywhere_limits_change_while_it_runs(make: Made) -> None:
    limiter = both(make, concurrency=1)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:

            async def spend() -> None:
                async with limiter.request(tokens=500):
                    pass

            async with limiter.request(tokens=1000):
                with pytest.raises(ValueError, match=r"tokens=1500: .* never lets more than 1000 through"):
                    limiter.request(tokens=1500)
                group.start_soon(spend)
                await until(lambda: limiter.statistics().waiting)
                await done(limiter.update(concurrency=2, tokens=RateLimitConfig(60, 60.0, 2000)))
                await until(lambda: limiter.statistics().admitted == 2)
    assert (await done(limiter.remaining()))["concurrency"] == 2


async def test_anywhere_headers_pause_and_lower_what_is_left(make: Made) -> None:
    limiter = both(make)
    await done(limiter.observe({"X-RateLimit-Remaining-Requests": "2", "x-ratelimit-remaining-tokens": "5000"}))
    left = await done(limiter.remaining())
    assert (left["requests"], left["tokens"]) == (2, 1000)
    await done(limiter.observe({"vendor-ratelimit-tokens-remaining": "10", "retry-after": "7"}))
    assert 6.5 <= await done(limiter.retry_after()) <= 7.7
    await done(limiter.resume())
    assert await done(limiter.retry_after()) == 0
    assert (await done(limiter.remaining()))["tokens"] <= 12


SEVERAL_REFUSED: list[Refused] = [
    (lambda it: it.request(cents=5), TypeError, "cents=5: <.*RateLimiter .*> has no limit of this name"),
    (lambda it: it.request(tokens=1001), ValueError, "tokens=1001: .* never lets more than 1000 through"),
    (lambda it: it.request(tokens=0.5), TypeError, "tokens=0.5: give a whole number"),
    (lambda it: it.request(tokens=-5), ValueError, "tokens=-5: give 0 or more"),
    (lambda it: it.request(timeout=-5), ValueError, "timeout=-5"),
    (lambda it: it.request().settle(tokens=5), RuntimeError, "once it was let through"),
    (lambda it: it.retry_after(cents=5), TypeError, "cents=5"),
    (lambda it: it.update(cents=TOKENS), TypeError, "has no limit of this name; make another limiter"),
    (lambda it: it.update(tokens=7), TypeError, "tokens=7: give a RateLimitConfig"),
    (lambda it: it.update(concurrency=0), ValueError, "concurrency=0"),
    (lambda it: it.limited(tokens=1001), ValueError, "tokens=1001"),
    (lambda it: it.limited()(len), TypeError, "decorates `async def` functions"),
]


async def test_anywhere_bad_input_to_several_limits_is_refused(make: Made) -> None:
    limiter = both(make, concurrency=3)
    for attempt, error, text in SEVERAL_REFUSED:
        with pytest.raises(error, match=text):
            await done(attempt(limiter))
    assert await done(limiter.remaining()) == {"requests": 5, "tokens": 1000, "concurrency": 3}
