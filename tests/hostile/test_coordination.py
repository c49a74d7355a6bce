"""Whatever blocks, clocks, factories and keys of users do, locks are given back and limits hold for everybody else."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from cuelight import (
    AsyncLeakyBucket,
    AsyncSlidingWindow,
    AsyncTokenBucket,
    KeyedLimiter,
    LocalLock,
    LocalSemaphore,
    LockManager,
    RateLimitConfig,
    RateLimiter,
    ReadWriteLock,
    Semaphore,
)
from cuelight._text import format_traceback
from cuelight.testing import VIRTUAL_BACKENDS, virtual_backend
from helpers import Backend
from hostile.cases import (
    AWAITED,
    CALLED,
    CASES,
    Case,
    Unprintable,
    catch_a_stray_cancellation,
    comes_out,
    covers,
    is_of,
)

Place = Callable[[Case], Awaitable[None]]

PLACES: list[Any] = []


def place(*names: str, cases: list[Case]) -> Callable[[Place], Place]:
    """Enter a place, to be tried with these cases."""

    def enter(function: Place) -> Place:
        covers(*names)(function)
        PLACES.extend(
            pytest.param(function, case, id=f"{function.__name__}-{case.name.replace(' ', '_')}") for case in cases
        )
        return function

    return enter


@pytest.fixture(params=VIRTUAL_BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    return virtual_backend(request.param)


@pytest.mark.parametrize(("function", "case"), PLACES)
async def test_locks_are_given_back_and_limits_hold_whatever_code_of_users_does(function: Place, case: Case) -> None:
    with anyio.CancelScope():
        await catch_a_stray_cancellation()
    raised: BaseException | None = None
    try:
        with anyio.fail_after(1000):
            await function(case)
    except BaseException as error:
        raised = error
    if raised is not None:  # as text, because the runner of the tests is no match for some of these errors
        pytest.fail(format_traceback(raised), pytrace=False)


async def body(case: Case) -> None:
    """A block that does what the case does, and is cancelled if it does not end."""
    with anyio.move_on_after(1):
        await case.act_async()


# Locks.

LOCKS: dict[str, Callable[[], Any]] = {
    "lock": lambda: LocalLock("it"),
    "semaphore": lambda: LocalSemaphore(1),
    "two places": lambda: LocalSemaphore(2).hold(2),
    "Semaphore": lambda: Semaphore(1),
    "read": lambda: ReadWriteLock().read(),
    "write": lambda: ReadWriteLock().write(),
}


@place("async with LocalLock", cases=AWAITED)
async def the_block_of_a_lock(case: Case) -> None:
    for make in LOCKS.values():
        lock = make()
        waited = anyio.Event()

        async def wait(lock: Any = lock, waited: anyio.Event = waited) -> None:
            async with lock:
                waited.set()

        with comes_out(case):
            async with lock:
                await body(case)
        await wait()
        assert waited.is_set()


@place("async with LocalLock, others wait", cases=[case for case in AWAITED if not case.ends_the_program])
async def the_block_of_a_lock_for_which_others_wait(case: Case) -> None:
    lock = LocalLock("it")
    order: list[int] = []

    async def wait(number: int) -> None:
        async with lock:
            order.append(number)

    async with anyio.create_task_group() as tasks:
        with comes_out(case):
            async with lock:
                for number in range(3):
                    tasks.start_soon(wait, number)
                await anyio.wait_all_tasks_blocked()
                await body(case)
    assert sorted(order) == [0, 1, 2]
    assert not lock.locked


@place("with LocalLock", cases=CALLED)
async def the_block_of_a_lock_in_a_thread(case: Case) -> None:
    def use() -> None:
        for make in LOCKS.values():
            lock = make()
            with comes_out(case), lock:
                case.act()
            with lock:
                pass
        manager = LockManager()
        with comes_out(case), manager.acquire_all(["a", "b", "c"]):
            case.act()
        assert manager.stats["active"] == 0

    in_a_thread(use)


def in_a_thread(function: Callable[[], None]) -> None:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


@place("LockManager.acquire_all", cases=AWAITED)
async def the_block_of_several_locks(case: Case) -> None:
    manager = LockManager()
    with comes_out(case):
        async with manager.acquire_all(["a", "b", "c"]):
            await body(case)
    assert manager.stats["active"] == 0


class Refuses(LocalLock):
    """Raises when it is given back, after it was."""

    case: Case = CASES["blocks"]

    async def __aexit__(self, *exc_info: Any) -> None:
        await super().__aexit__(*exc_info)
        self.case.act()

    def __exit__(self, *exc_info: Any) -> None:
        super().__exit__(*exc_info)
        self.case.act()


@place("LockManager(factory), release", cases=CALLED)
async def a_lock_that_raises_when_it_is_given_back(case: Case) -> None:
    def make(name: str, **options: Any) -> LocalLock:
        if name != "b":
            return LocalLock(name, **options)
        lock = Refuses(name, **options)
        lock.case = case
        return lock

    manager = LockManager(make)
    with comes_out(case):
        async with manager.acquire_all(["a", "b", "c"]):
            await checkpoint()
    assert manager.stats["active"] == 0

    def use() -> None:
        with comes_out(case), manager.acquire_all(["a", "b", "c"]):
            pass

    in_a_thread(use)
    assert manager.stats["active"] == 0


@place("LockManager(factory)", cases=CALLED)
async def a_factory_of_locks(case: Case) -> None:
    def make(name: str, **options: Any) -> LocalLock:
        if name == "odd":
            case.act()
        return LocalLock(name, **options)

    manager = LockManager(make)
    with comes_out(case):
        async with manager.acquire_all(["a", "odd", "z"]):
            pass
    assert manager.stats["active"] == 0
    async with manager.acquire("a"), manager.acquire("z"):
        pass


# Limiters.


class Clock:
    """Raises when it is told to."""

    def __init__(self) -> None:
        self.case: Case | None = None

    def __call__(self) -> float:
        if self.case is not None:
            self.case.act()
        return anyio.current_time()


PER_SECOND = RateLimitConfig(2, window_seconds=1)

LIMITERS: dict[str, Callable[[Any], Any]] = {
    "token bucket": lambda clock: AsyncTokenBucket(PER_SECOND, clock=clock),
    "leaky bucket": lambda clock: AsyncLeakyBucket(RateLimitConfig(2, window_seconds=1, burst_size=1), clock=clock),
    "sliding window": lambda clock: AsyncSlidingWindow(PER_SECOND, clock=clock),
    "two counters": lambda clock: AsyncSlidingWindow(PER_SECOND, exact=False, clock=clock),
}


@place("AsyncTokenBucket(clock)", cases=CALLED)
async def a_clock_that_is_asked(case: Case) -> None:
    for make in LIMITERS.values():
        clock = Clock()
        limiter = make(clock)
        clock.case = case
        with comes_out(case):
            limiter.try_acquire()
        with comes_out(case):
            await limiter.acquire()
        with comes_out(case):
            limiter.pause_for(0)
        clock.case = None
        for _ in range(5):
            with anyio.fail_after(10):
                await limiter.acquire()
        assert limiter.statistics().waiting == 0


@place("AsyncTokenBucket(clock), others wait", cases=[case for case in CALLED if not case.ends_the_program])
async def a_clock_while_others_wait(case: Case) -> None:
    for make in LIMITERS.values():
        clock = Clock()
        limiter = make(clock)
        ended, through = [0], [0]

        async def wait(limiter: Any = limiter, ended: list[int] = ended, through: list[int] = through) -> None:
            try:
                await limiter.acquire()
                through[0] += 1
            except BaseException as error:
                if not is_of(case, error):
                    raise
            ended[0] += 1

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            clock.case = case
            await anyio.sleep(0.6)
            clock.case = None
            await anyio.sleep(30)
            assert ended == [8], "nobody is left behind"
        assert limiter.statistics().waiting == 0
        assert through[0] >= 5 if case.raises else through == [8]


@place("RateLimiter(clock)", cases=CALLED)
async def a_clock_at_the_end_of_a_request(case: Case) -> None:
    clock = Clock()
    limiter = RateLimiter(requests=RateLimitConfig(100, window_seconds=1), concurrency=1, clock=clock)
    with comes_out(case):
        async with limiter.request():
            clock.case = case
    clock.case = None
    with anyio.fail_after(10):
        async with limiter.request():
            pass
    assert limiter.statistics().waiting == 0


@place("RateLimiter.request", cases=AWAITED)
async def the_block_of_a_request(case: Case) -> None:
    for refund in (False, True):
        limiter = RateLimiter(requests=RateLimitConfig(10, window_seconds=1000), concurrency=1)
        with comes_out(case):
            async with limiter.request(refund_on_failure=refund):
                await body(case)
        assert limiter.remaining()["requests"] == (10 if refund and case.raises else 9)
        with anyio.fail_after(10):
            async with limiter.request():
                pass


@place("RateLimiter.limited", "AsyncTokenBucket.limited", cases=AWAITED)
async def a_function_that_is_limited(case: Case) -> None:
    for limiter in (RateLimiter(requests=PER_SECOND, concurrency=1), AsyncTokenBucket(PER_SECOND)):
        limited: Any = limiter.limited()(body)
        with comes_out(case):
            await limited(case)
        with anyio.fail_after(10):
            await limited(CASES["blocks"])


@place("AsyncTokenBucket.limited(cost)", cases=CALLED)
async def a_function_that_says_a_cost(case: Case) -> None:
    def cost(case: Case) -> int:
        case.act()
        return 2

    limiter = AsyncTokenBucket(PER_SECOND)
    with comes_out(case):
        await limiter.limited(cost)(body)(case)
    if case.raises:
        assert limiter.try_acquire(2).allowed, "nothing was charged"


class Headers(Mapping[str, str]):
    def __init__(self, case: Case) -> None:
        self.case = case

    def __getitem__(self, name: str) -> str:
        self.case.act()
        return "7"

    def __iter__(self) -> Iterator[str]:
        return iter(["retry-after", "x-ratelimit-remaining"])

    def __len__(self) -> int:
        return 2


@place("RateLimiter.observe", cases=CALLED)
async def headers_of_a_service(case: Case) -> None:
    limiter = RateLimiter(requests=PER_SECOND)
    with comes_out(case):
        limiter.observe(Headers(case))
    assert (limiter.retry_after() == 0) is case.raises
    limiter.resume()
    async with limiter.request():
        pass


# Limiters by key.


class Key:
    def __init__(self, name: str, case: Case) -> None:
        self.name, self.case, self.armed = name, case, False

    def __hash__(self) -> int:
        if self.armed:
            self.case.act()
        return 1

    def __eq__(self, other: object) -> bool:
        if self.armed:
            self.case.act()
        return self is other

    def __repr__(self) -> str:
        raise ValueError("it cannot be printed")


@place("KeyedLimiter(make)", cases=CALLED)
async def a_function_that_makes_limiters(case: Case) -> None:
    def make(key: str) -> AsyncTokenBucket:
        if key == "odd":
            case.act()
        return AsyncTokenBucket(PER_SECOND)

    users = KeyedLimiter(make)
    with comes_out(case):
        _ = users["odd"]
    assert users["ann"].try_acquire().allowed
    assert len(users) == 1 + (not case.raises)


@place("KeyedLimiter[key]", cases=[case for case in CALLED if not case.ends_the_program])
async def a_key_of_a_limiter(case: Case) -> None:
    users = KeyedLimiter[object, AsyncTokenBucket](lambda _: AsyncTokenBucket(RateLimitConfig(1, window_seconds=100)))
    keys = [Key("a", case), Key("b", case)]
    for key in (*keys, "ann"):
        assert users[key].try_acquire().allowed
    keys[0].armed = True
    with ExitStack() as stack:
        if case.raises:
            stack.enter_context(comes_out(case))
        _ = users[keys[0]]
    for _ in range(300):
        assert not users["ann"].try_acquire().allowed
    keys[0].armed = False
    assert not any(users[key].try_acquire().allowed for key in (*keys, "ann"))


@place("KeyedLimiter[key], program ends", cases=[case for case in CALLED if case.ends_the_program])
async def a_key_of_a_limiter_that_ends_the_program(case: Case) -> None:
    users = KeyedLimiter[object, AsyncTokenBucket](lambda _: AsyncTokenBucket(RateLimitConfig(1, window_seconds=100)))
    key = Key("a", case)
    assert users[key].try_acquire().allowed
    key.armed = True
    with comes_out(case):
        users.forget_idle()
    key.armed = False
    assert not users[key].try_acquire().allowed


# Texts about values.

ODD: Any = Unprintable()

REFUSED: list[Callable[[], Any]] = [
    lambda: AsyncTokenBucket(ODD),
    lambda: AsyncTokenBucket(PER_SECOND).try_acquire(ODD),
    lambda: AsyncTokenBucket(PER_SECOND).limited(ODD),
    lambda: AsyncTokenBucket(PER_SECOND)(ODD),
    lambda: AsyncSlidingWindow(ODD),
    lambda: AsyncSlidingWindow(PER_SECOND, ODD),
    lambda: RateLimiter(requests=ODD),
    lambda: RateLimiter(requests=PER_SECOND, concurrency=ODD),
    lambda: RateLimiter(requests=PER_SECOND).request(requests=ODD),
    lambda: RateLimiter(requests=PER_SECOND).request(nothing=ODD),
    lambda: RateLimitConfig(ODD, 1),
    lambda: LockManager().get_lock(ODD),
]


@pytest.mark.parametrize("call", REFUSED)
def test_what_cannot_be_printed_is_refused_all_the_same(call: Callable[[], Any]) -> None:
    with pytest.raises(TypeError, match=r"<Unprintable: its repr\(\) raised ValueError>"):
        call()
