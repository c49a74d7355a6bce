"""Several limits in one step: all or none, settled afterwards; with virtual time."""

import asyncio
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, Literal

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuelight.coordination import RateLimitConfig, RateLimiter
from cuelight.coordination._rate_limiter import read_headers
from cuelight.testing import VIRTUAL_BACKENDS, virtual_backend
from helpers import Backend, run_on

REQUESTS = RateLimitConfig(60, 60.0, 5)  # one a second, five at once
TOKENS = RateLimitConfig(6000, 60.0, 1000)  # a hundred a second, a thousand at once


@pytest.fixture(params=VIRTUAL_BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    return virtual_backend(request.param)


def both(concurrency: int | None = None, **options: Any) -> RateLimiter:
    return RateLimiter(requests=REQUESTS, tokens=TOKENS, concurrency=concurrency, clock=anyio.current_time, **options)


async def test_a_request_is_charged_in_all_limits_or_in_none() -> None:
    limiter = both()
    async with limiter.request(tokens=900) as request:
        assert request.costs == {"requests": 1, "tokens": 900}
    assert limiter.remaining() == {"requests": 4, "tokens": 100}
    assert limiter.retry_after(tokens=200) == 1.0
    with pytest.raises(TimeoutError, match="has no room within 0 s for requests=1, tokens=200: its turn comes in 1 s"):
        async with limiter.request(timeout=0, tokens=200):
            pytest.fail("not let through")
    assert limiter.remaining() == {"requests": 4, "tokens": 100}
    began = anyio.current_time()
    async with limiter.request(tokens=200) as request:
        assert request.waited == pytest.approx(1)
    assert anyio.current_time() - began == pytest.approx(1)


async def test_a_limit_that_a_request_does_not_use_does_not_hold_it_up() -> None:
    limiter = both()
    async with limiter.request(tokens=1000) as request:
        request.settle(tokens=50_000)
    assert limiter.retry_after() == 0
    async with limiter.request(timeout=0):
        pass
    assert limiter.remaining() == {"requests": 3, "tokens": 0}


async def test_no_more_than_so_many_are_under_way_and_who_waits_goes_in_order() -> None:
    limiter = both(concurrency=2)
    under_way, max_cost, order = 0, 0, list[int]()

    async def work(number: int) -> None:
        nonlocal under_way, max_cost
        async with limiter.request(tokens=10):
            order.append(number)
            under_way += 1
            max_cost = max(max_cost, under_way)
            await anyio.sleep(1)
            under_way -= 1

    async with anyio.create_task_group() as group:
        for number in range(9):
            group.start_soon(work, number)
            await anyio.wait_all_tasks_blocked()
        assert limiter.retry_after() == math.inf
        assert limiter.remaining()["concurrency"] == 0
        await anyio.wait_all_tasks_blocked()
    assert max_cost == 2
    assert [{order[at], order[at + 1]} for at in range(0, 8, 2)] == [{0, 1}, {2, 3}, {4, 5}, {6, 7}]
    assert limiter.remaining()["concurrency"] == 2


async def test_a_permit_comes_back_however_the_block_ends() -> None:
    limiter = both(concurrency=1)
    with pytest.raises(KeyError):
        async with limiter.request():
            raise KeyError
    with anyio.move_on_after(5):
        async with limiter.request():
            await anyio.sleep_forever()
    block = limiter.request()
    await block.__aenter__()
    await block.__aexit__(None, None, None)
    await block.__aexit__(None, None, None)
    assert limiter.remaining()["concurrency"] == 1
    with pytest.raises(RuntimeError, match="call `request` once for each"):
        await block.__aenter__()


async def test_a_waiter_that_was_let_through_and_is_cancelled_gives_its_permit_on() -> None:
    """In every order of the three: the permit comes free, the first waiter is cancelled, the loop runs."""
    for native in (False, True):
        for cancel_first in (False, True):
            limiter = both(concurrency=1)
            done: list[str] = []
            scopes: list[anyio.CancelScope] = []
            tasks: list[asyncio.Task[Any] | None] = []

            async def work(name: str) -> None:
                with anyio.CancelScope() as scope:
                    scopes.append(scope)  # noqa: B023
                    tasks.append(_task())  # noqa: B023
                    try:
                        async with limiter.request():  # noqa: B023
                            done.append(name)  # noqa: B023
                    except asyncio.CancelledError:
                        if not native or name == "second":  # noqa: B023
                            raise

            async with anyio.create_task_group() as group:
                async with limiter.request():
                    for name in ("first", "second"):
                        group.start_soon(work, name)
                        await anyio.wait_all_tasks_blocked()
                    task = tasks[0]
                    stop = task.cancel if native and task is not None else scopes[0].cancel
                    if cancel_first:
                        stop()
                if not cancel_first:
                    stop()
            assert done[-1:] == ["second"]
            assert limiter.remaining()["concurrency"] == 1
            assert limiter._own_queue.users == 1
            assert limiter.statistics().admitted == 1 + len(done)


def _task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


async def test_a_time_out_waits_for_a_permit_and_not_longer() -> None:
    limiter = both(concurrency=1)
    async with limiter.request():
        began = anyio.current_time()
        with pytest.raises(TimeoutError, match="its turn comes when others give something back"):
            async with limiter.request(timeout=0):
                pass
        assert anyio.current_time() == began
        with pytest.raises(TimeoutError, match="no room within 3 s for requests=1"):
            async with limiter.request(timeout=3):
                pass
        assert anyio.current_time() == began + 3
        assert limiter.statistics() == (1, 2, 0, 0, 0.0)


# The real cost.


async def test_what_was_not_used_is_refunded_and_what_was_used_too_much_is_owed() -> None:
    limiter = both()
    async with limiter.request(tokens=1000) as request:
        assert limiter.remaining()["tokens"] == 0
        request.settle(tokens=400)
        assert limiter.remaining()["tokens"] == 600
    request.settle(tokens=3000)
    assert request.costs == {"requests": 1, "tokens": 3000}
    assert limiter.retry_after(tokens=1) == 20.01
    request.settle(tokens=500, requests=0)
    assert limiter.remaining() == {"requests": 5, "tokens": 500}


async def test_a_refund_wakes_those_that_wait() -> None:
    limiter = both()
    began = anyio.current_time()
    woken: list[float] = []

    async def small() -> None:
        async with limiter.request(tokens=500):
            woken.append(anyio.current_time() - began)

    async with anyio.create_task_group() as group, limiter.request(tokens=1000) as request:
        group.start_soon(small)
        await anyio.sleep(1)
        request.settle(tokens=100)
    assert woken == [1]


async def test_debt_holds_up_those_that_wait_already() -> None:
    limiter = both()
    began = anyio.current_time()
    async with limiter.request(tokens=1000) as request, anyio.create_task_group() as group:

        async def small() -> None:
            async with limiter.request(tokens=100):
                pass

        group.start_soon(small)
        await anyio.wait_all_tasks_blocked()
        request.settle(tokens=2000)
    assert anyio.current_time() - began == pytest.approx(11)


@pytest.mark.parametrize("refund", [False, True])
async def test_a_failure_is_refunded_if_so_wanted(refund: bool) -> None:
    limiter = both(concurrency=1)
    with pytest.raises(KeyError):
        async with limiter.request(tokens=700, refund_on_failure=refund):
            raise KeyError
    with anyio.move_on_after(0):
        async with limiter.request(tokens=200, refund_on_failure=refund):
            await anyio.sleep_forever()
    spent = {"requests": 0, "tokens": 0} if refund else {"requests": 2, "tokens": 900}
    assert limiter.remaining() == {
        "requests": 5 - spent["requests"],
        "tokens": 1000 - spent["tokens"],
        "concurrency": 1,
    }


async def test_a_failure_after_a_settlement_is_not_refunded() -> None:
    limiter = both()
    with pytest.raises(KeyError):
        async with limiter.request(tokens=700, refund_on_failure=True) as request:
            request.settle(tokens=50)
            raise KeyError
    assert limiter.remaining() == {"requests": 4, "tokens": 950}


plans = st.lists(
    st.tuples(
        st.integers(0, 4),  # comes after so many seconds
        st.integers(0, 1000),  # estimate
        st.integers(0, 3000),  # real
        st.integers(0, 5),  # takes so many seconds
        st.sampled_from(["settle", "fail", "cancel", "keep"]),
    ),
    min_size=1,
    max_size=12,
)


@pytest.mark.parametrize("name", VIRTUAL_BACKENDS)
@pytest.mark.parametrize("algorithm", ["token_bucket", "sliding_window", "sliding_counter"])
@given(plan=plans)
def test_what_is_charged_is_what_was_settled(
    algorithm: Any, name: Literal["asyncio", "trio"], plan: list[tuple[int, int, int, int, str]]
) -> None:
    """Whatever ends how: permits are all back, and with none of the time passing the sum of the charges is right."""

    async def scenario() -> None:
        limit = RateLimitConfig(1000, 1e7)  # nothing to speak of is paid off while this runs
        limiter = RateLimiter(
            tokens=limit, concurrency=2, algorithm=algorithm, clock=lambda: anyio.current_time() + 1e8
        )
        spent = 0

        async def work(wait: int, estimate: int, real: int, takes: int, end: str) -> None:
            nonlocal spent
            await anyio.sleep(wait)
            request = limiter.request(tokens=estimate, refund_on_failure=end != "keep")
            entered = False
            with anyio.move_on_after(takes + 0.5 if end == "cancel" else 100) as scope:
                try:
                    async with request:
                        entered = True
                        await anyio.sleep(100 if end == "cancel" else takes)
                        if end == "settle":
                            request.settle(tokens=real)
                        elif end == "fail":
                            raise KeyError
                except KeyError:
                    pass
            if entered:
                charged = {"keep": estimate, "settle": 0 if scope.cancelled_caught else real}
                assert request.costs["tokens"] == charged.get(end, 0)
                spent += request.costs["tokens"]

        async with anyio.create_task_group() as group:
            for one in plan:
                group.start_soon(work, *one)
        remaining = limiter.remaining()
        assert remaining["concurrency"] == 2
        assert limiter._own_queue.users == 1
        assert limiter.statistics().waiting == 0
        # Something is paid off, and refunds stop at what is not, so that a unit may be missing either way.
        assert abs(remaining["tokens"] - max(0, 1000 - spent)) <= 2

    run_on(virtual_backend(name), scenario)


# Other limits, pauses, headers.


async def test_limits_change_while_it_runs() -> None:
    limiter = both(concurrency=1)
    async with anyio.create_task_group() as group, limiter.request(tokens=1000):
        group.start_soon(_spend, limiter, 1500)
        await anyio.wait_all_tasks_blocked()
        assert limiter.statistics().waiting == 0, "1500 is more than the burst: refused"
        group.start_soon(_spend, limiter, 500)
        await anyio.wait_all_tasks_blocked()
        limiter.update(concurrency=2, tokens=RateLimitConfig(60_000, 60.0, 2000))
        await anyio.wait_all_tasks_blocked()
        assert limiter.statistics()[:4] == (2, 0, 1, 0)
    assert repr(limiter) == "<RateLimiter requests 60 in 60 s, tokens 60000 in 60 s, 2 at once>"
    left = limiter.remaining()
    assert 500 <= left.pop("tokens") <= 700, "time passes where the tests wait for all tasks"
    assert left == {"requests": 3, "concurrency": 2}


async def _spend(limiter: RateLimiter, tokens: int) -> None:
    try:
        async with limiter.request(tokens=tokens):
            pass
    except ValueError:
        pass


async def test_headers_pause_and_lower_what_is_left() -> None:
    limiter = both()
    limiter.observe({"X-RateLimit-Remaining-Requests": "2", "x-ratelimit-remaining-tokens": "5000", "Date": "today"})
    assert limiter.remaining() == {"requests": 2, "tokens": 1000}
    limiter.observe({"vendor-ratelimit-tokens-remaining": "10", "retry-after": "7"})
    assert limiter.remaining() == {"requests": 2, "tokens": 10}
    assert 7 <= limiter.retry_after() <= 7.7
    limiter.resume()
    assert limiter.retry_after() == 0


@pytest.mark.parametrize(
    ("headers", "retry_after", "remaining"),
    [
        ({}, None, {}),
        ({"Retry-After": "120"}, 120.0, {}),
        ({"retry-after": " 0.5 "}, 0.5, {}),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5, {}),
        ({"retry-after": "soon"}, None, {}),
        ({"retry-after": ""}, None, {}),
        ({"retry-after": "-5"}, None, {}),
        ({"retry-after": "nan"}, None, {}),
        ({"retry-after": "9" * 400}, None, {}),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0, {}),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 -0000"}, 0.0, {}),
        ({"RateLimit-Remaining": "3"}, None, {"requests": 3}),
        ({"x-ratelimit-remaining": "x"}, None, {}),
        ({"x-ratelimit-remaining-tokens": "-1"}, None, {}),
        ({"vendor-ratelimit-input-tokens-remaining": "9"}, None, {"input_tokens": 9}),
        ({"x-ratelimit-limit-tokens": "9", "x-ratelimit-reset-tokens": "1s"}, None, {}),
    ],
)
def test_headers_are_read(headers: dict[str, str], retry_after: float | None, remaining: Mapping[str, int]) -> None:
    assert read_headers(headers) == (retry_after, remaining)


def test_a_date_in_a_header_is_seconds_from_now() -> None:
    seconds = read_headers({"Retry-After": format_datetime(datetime.now(UTC) + timedelta(minutes=5), usegmt=True)})[0]
    assert seconds is not None
    assert 290 < seconds <= 300


DAY = 86_400


@pytest.mark.parametrize(
    "headers",
    [
        {"Retry-After": "999999999"},
        {"retry-after-ms": "999999999999999"},
        {"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT"},
    ],
)
async def test_no_header_pauses_for_more_than_a_day(headers: dict[str, str]) -> None:
    assert read_headers(headers) == (DAY, {})
    limiter = both()
    limiter.observe(headers)
    assert DAY <= limiter.retry_after() <= 1.1 * DAY + 1


@pytest.mark.parametrize("digits", [16, 400, 5_000, 1_000_000])
async def test_headers_with_numbers_that_nobody_means_are_left_alone(digits: int) -> None:
    number = "9" * digits
    limiter = both()
    before = limiter.remaining()
    for value in (
        number,
        f"{number}.{number}",
        f"Wed, 21 Oct {number} 07:28:00 GMT",
        f"Wed, 21 Oct 2015 {number}:28:00",
    ):
        assert read_headers({"retry-after": value, "retry-after-ms": value}) == (None, {})
        limiter.observe({"x-ratelimit-remaining-requests": value, "retry-after": value})
    assert limiter.remaining() == before
    assert limiter.retry_after() == 0


def test_headers_may_be_bytes_and_what_is_no_text_is_left_alone() -> None:
    odd: Any = {b"Retry-After": b"7", b"x-ratelimit-remaining-tokens": b"5", "x-ratelimit-remaining": None, 7: 8}
    assert read_headers(odd) == (7.0, {"tokens": 5})


DATES = st.builds(
    "{}, {} {} {} {}:{}:{} {}".format,
    st.sampled_from(["Wed", "Xxx"]),
    *(st.integers(-1, 10**6) | st.integers() for _ in range(1)),
    st.sampled_from(["Oct", "Feb", "Foo"]),
    *(st.integers(-1, 10**5) for _ in range(4)),
    st.sampled_from(["GMT", "-0000", "+9999", "-99999999", "EST", ""]),
)


@given(st.text(max_size=40) | st.from_regex(r"[0-9]{0,30}\.?[0-9]{0,30}", fullmatch=True) | DATES)
def test_no_header_is_an_accident(value: str) -> None:
    seconds, remaining = read_headers(
        {"retry-after": value, "retry-after-ms": value, "x-ratelimit-remaining": value, value: value}
    )
    assert seconds is None or 0 <= seconds <= DAY
    assert all(0 <= left < 10**15 for left in remaining.values())


# As a decorator; bad input.


async def test_it_decorates_async_functions_too() -> None:
    limiter = both(concurrency=1)

    @limiter.limited(tokens=300, refund_on_failure=True)
    async def double(number: int) -> int:
        await anyio.sleep(1)
        return 2 * number

    async with anyio.create_task_group() as group:
        for number in range(3):
            group.start_soon(double, number)
    assert await double(4) == 8
    assert limiter.statistics()[:3] == (4, 0, 2)


async def test_one_in_64_requests_lets_others_run() -> None:
    limiter = RateLimiter(requests=RateLimitConfig(1000, 1.0), clock=anyio.current_time)
    ran = False

    async def other() -> None:
        nonlocal ran
        ran = True

    async with anyio.create_task_group() as group:
        group.start_soon(other)
        for _ in range(63):
            async with limiter.request():
                assert not ran
        async with limiter.request():
            assert limiter.statistics().admitted == 64
    assert ran


def untyped(**options: Any) -> RateLimiter:
    """A call that a type checker would refuse."""
    return RateLimiter(**options)


Refused = tuple[Callable[[Any], Any], type[Exception], str]

REFUSED: list[Refused] = [
    (lambda _: RateLimiter(), ValueError, r"RateLimiter\(\) limits nothing"),
    (lambda _: untyped(tokens=5), TypeError, "tokens=5: give a RateLimitConfig"),
    (lambda _: RateLimiter(timeout=TOKENS), ValueError, "a limit cannot be called 'timeout'"),
    (lambda _: RateLimiter(concurrency=0), ValueError, "concurrency=0: give 1 or more"),
    (lambda _: untyped(tokens=TOKENS, algorithm="magic"), ValueError, "algorithm='magic': it is one of token_"),
    (lambda limiter: limiter.request(cents=5), TypeError, "cents=5: <RateLimiter .*> has no limit of this name"),
    (lambda limiter: limiter.request(tokens=1001), ValueError, "tokens=1001: .* never lets more than 1000 through"),
    (lambda limiter: limiter.request(tokens=0.5), TypeError, "tokens=0.5: give a whole number"),
    (lambda limiter: limiter.request(tokens=-5), ValueError, "tokens=-5: give 0 or more"),
    (lambda limiter: limiter.request(timeout=-5), ValueError, "timeout=-5"),
    (lambda limiter: limiter.request().settle(tokens=5), RuntimeError, "once it was let through"),
    (lambda limiter: limiter.retry_after(cents=5), TypeError, "cents=5"),
    (lambda limiter: limiter.update(cents=TOKENS), TypeError, "has no limit of this name; make another limiter"),
    (lambda limiter: limiter.update(tokens=7), TypeError, "tokens=7: give a RateLimitConfig"),
    (lambda limiter: limiter.update(concurrency=0), ValueError, "concurrency=0"),
    (lambda limiter: limiter.limited(tokens=1001), ValueError, "tokens=1001"),
    (lambda limiter: limiter.limited()(len), TypeError, "decorates `async def` functions"),
]


@pytest.mark.parametrize(("attempt", "error", "text"), REFUSED)
async def test_bad_input_to_a_rate_limiter_is_refused(
    attempt: Callable[[Any], Any], error: type[Exception], text: str
) -> None:
    limiter = both(concurrency=3)
    with pytest.raises(error, match=text):
        attempt(limiter)
    assert limiter.idle


async def test_a_settlement_is_checked_too() -> None:
    limiter = both()
    async with limiter.request(tokens=5) as request:
        with pytest.raises(TypeError, match="cents=5"):
            request.settle(cents=5)
        with pytest.raises(ValueError, match="tokens=-5"):
            request.settle(tokens=-5)
    assert limiter.remaining()["tokens"] == 995
