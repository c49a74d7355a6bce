"""A limiter for each key."""

import gc
import random
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from cuelight.coordination import AsyncTokenBucket, KeyedLimiter, RateLimitConfig, RateLimiter

ONE = RateLimitConfig(1, 10.0)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def keyed(clock: Clock, config: RateLimitConfig = ONE) -> KeyedLimiter[str, AsyncTokenBucket]:
    return KeyedLimiter(lambda _: AsyncTokenBucket(config, clock=clock))


def test_each_key_has_a_limiter_of_its_own() -> None:
    users = keyed(Clock())
    assert users["ann"] is users["ann"]
    assert users["ann"].try_acquire().allowed
    assert not users["ann"].try_acquire().allowed
    assert users["bob"].try_acquire().allowed
    assert len(users) == 2
    assert repr(users) == "<KeyedLimiter 2 keys>"


def test_idle_keys_are_forgotten_while_others_are_looked_up() -> None:
    clock = Clock()
    users = keyed(clock)
    for number in range(10_000):
        assert users[f"user {number}"].try_acquire().allowed
    assert len(users) == 10_000
    clock.now = 20
    for _ in range(30_000):
        users["ann"].try_acquire()
    assert len(users) == 1
    assert users.statistics() == (1, 10_001, 10_000)


def test_a_key_that_is_not_idle_is_never_forgotten() -> None:
    clock = Clock()
    users = keyed(clock)
    assert users["ann"].try_acquire().allowed
    for number in range(5_000):
        users[f"user {number}"].try_acquire()
    assert users.forget_idle() == 0
    assert not users["ann"].try_acquire().allowed
    clock.now = 9.999
    assert users.forget_idle() == 0
    clock.now = 10
    assert users.forget_idle() == 5_001
    assert len(users) == 0


def test_a_limiter_that_somebody_holds_is_still_the_limiter_of_its_key() -> None:
    clock = Clock()
    users = keyed(clock)
    held = users["ann"]
    assert users.forget_idle() == 1
    assert users["ann"] is held, "forgotten, and found again"
    assert users.forget_idle() == 1
    assert len(users) == 0
    assert held.try_acquire().allowed
    assert len(users) == 1, "used, and so remembered again"
    del held
    gc.collect()
    assert not users["ann"].try_acquire().allowed
    assert users.statistics() == (1, 1, 0)


def test_a_forgotten_limiter_that_nobody_holds_is_gone() -> None:
    users = keyed(Clock())
    first = id(users["ann"])
    users.forget_idle()
    assert users.statistics() == (0, 1, 1)
    assert len(users._evicted) == 0
    users["ann"].try_acquire()
    assert users.statistics() == (1, 2, 1), first


def test_a_key_with_permits_out_is_remembered() -> None:
    users: KeyedLimiter[int, RateLimiter] = KeyedLimiter(lambda _: RateLimiter(concurrency=1))
    request = users[7].request()
    with pytest.raises(StopIteration):
        request.__aenter__().send(None)
    assert users.forget_idle() == 0
    with pytest.raises(StopIteration):
        request.__aexit__(None, None, None).send(None)
    assert users.forget_idle() == 1


def test_a_request_that_is_settled_late_brings_its_limiter_back() -> None:
    clock = Clock()
    users = KeyedLimiter[int, RateLimiter](lambda _: RateLimiter(tokens=RateLimitConfig(10, 10.0), clock=clock))
    request = users[7].request(tokens=1)
    for step in (request.__aenter__(), request.__aexit__(None, None, None)):
        with pytest.raises(StopIteration):
            step.send(None)
    clock.now = 5
    assert users.forget_idle() == 1
    request.settle(tokens=100)
    assert len(users) == 1
    del request
    assert users[7].remaining() == {"tokens": 0}


def test_what_ends_in_the_middle_of_a_look_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The garbage collector may end a task, which gives back or settles, while its limiter is being forgotten."""
    clock = Clock()
    users = KeyedLimiter[int, RateLimiter](lambda _: RateLimiter(tokens=RateLimitConfig(10, 10.0), clock=clock))
    request = users[7].request()
    with pytest.raises(StopIteration):
        request.__aenter__().send(None)
    with pytest.raises(StopIteration):
        request.__aexit__(None, None, None).send(None)

    def idle(limiter: RateLimiter, now: int) -> bool:
        was = all(meter.unused_at(now) <= now for meter in limiter._meters)
        request.settle(tokens=100)
        return was

    monkeypatch.setattr(RateLimiter, "_is_idle", idle)
    assert users.forget_idle() == 0
    assert len(users) == 1
    assert users[7].remaining() == {"tokens": 0}


def test_a_maker_that_fails_changes_nothing() -> None:
    def make(_: int) -> AsyncTokenBucket:
        raise LookupError("no such plan")

    users = KeyedLimiter(make)
    with pytest.raises(LookupError, match="no such plan"):
        users[1]
    assert users.statistics() == (0, 0, 0)


def test_one_limiter_may_serve_several_keys() -> None:
    clock = Clock()
    shared = AsyncTokenBucket(ONE, clock=clock)
    users = KeyedLimiter[str, AsyncTokenBucket](lambda _: shared)
    assert users["ann"] is users["bob"]
    assert users.forget_idle() == 2
    assert users["ann"].try_acquire().allowed
    assert not users["bob"].try_acquire().allowed
    assert len(users) == 2


def test_threads_share_the_limiters_and_no_key_is_let_through_too_often() -> None:
    """Keys come and go all the time: whatever is forgotten meanwhile, each is let through once in ten seconds."""
    clock = Clock()
    users = keyed(clock)
    let_through: list[Counter[tuple[str, int]]] = [Counter() for _ in range(4)]
    barrier = threading.Barrier(4)

    def use(number: int) -> None:
        chance = random.Random(number)
        for period in range(20):
            barrier.wait()
            clock.now = period * 10.0
            barrier.wait()
            for _ in range(400):
                key = f"user {chance.randrange(150)}"
                if users[key].try_acquire().allowed:
                    let_through[number][key, period] += 1

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = sum(let_through, Counter[tuple[str, int]]())
    assert set(total.values()) == {1}
    assert len(total) > 2_000
    assert users.statistics().forgotten > 500


@pytest.mark.parametrize("share", [1.0, 0.9, 0.7, 0.3])
@pytest.mark.parametrize("in_use", [0, 500])
def test_keys_that_come_once_leave_few_idle_keys_behind(share: float, in_use: int) -> None:
    """A client with another address each time does not make the memory of the limiter grow."""
    chance = random.Random(1)
    users = keyed(Clock())
    for number in range(in_use):
        assert users[f"in use {number}"].try_acquire().allowed
    max_cost = 0
    for number in range(20_000):
        _ = users[f"once {number}" if chance.random() < share else "often"]
        max_cost = max(max_cost, len(users))
    assert max_cost <= 3 * in_use + 100
    assert not any(users[f"in use {number}"].try_acquire().allowed for number in range(in_use)), "none was forgotten"


def test_each_look_up_looks_at_four_keys_at_most() -> None:
    looks = [0]

    class Looked(AsyncTokenBucket):
        def _try_evict(self, restore: Any) -> bool:
            looks[0] += 1
            return super()._try_evict(restore)

    users = KeyedLimiter[int, Looked](lambda _: Looked(ONE, clock=Clock()))
    for number in range(5_000):
        before = looks[0]
        _ = users[number]
        assert looks[0] - before <= 4


class Contrary:
    """A key that raises when it is compared, and has the hash of others."""

    raises = False

    def __hash__(self) -> int:
        return 7

    def __eq__(self, other: object) -> bool:
        if Contrary.raises:
            raise ValueError("not comparable")
        return self is other


@pytest.fixture
def comparable() -> Iterator[None]:
    yield
    Contrary.raises = False


@pytest.mark.usefixtures("comparable")
def test_a_key_that_cannot_be_compared_costs_no_limit(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    users = KeyedLimiter[object, AsyncTokenBucket](lambda _: AsyncTokenBucket(ONE, clock=clock))
    keys = [Contrary() for _ in range(5)]
    for key in keys:
        assert users[key].try_acquire().allowed
    assert users["ann"].try_acquire().allowed
    Contrary.raises = True
    with pytest.raises(ValueError, match="not comparable"):
        _ = users[Contrary()]
    clock.now = 5
    users.forget_idle()
    assert "is idle is not known: it is kept" in caplog.text
    for _ in range(300):
        assert not users["ann"].try_acquire().allowed, "others are looked up as before"
    Contrary.raises = False
    assert not any(users[key].try_acquire().allowed for key in keys), "nobody's limit was forgotten"
    assert len(users) == 6
    clock.now = 20
    assert users.forget_idle() == 6
    users.forget_idle()
    assert len(users) == 0


def test_a_key_that_cannot_be_compared_when_it_is_forgotten_is_looked_at_again() -> None:
    clock = Clock()
    users = KeyedLimiter[object, AsyncTokenBucket](lambda _: AsyncTokenBucket(ONE, clock=clock))
    keys = [Contrary() for _ in range(3)]
    held = [users[key] for key in keys]
    kept = users._evicted

    class Refusing(dict[Any, Any]):
        def __delitem__(self, key: object) -> None:
            raise ValueError("not comparable")

    limiters, users._limiters = users._limiters, Refusing(users._limiters)
    assert users.forget_idle() == 0
    users._limiters = limiters
    assert held[0].try_acquire().allowed
    assert len(kept) <= 3
    users.forget_idle()
    assert not users[keys[0]].try_acquire().allowed
    assert len(users) == 1


class Handed:
    """A limiter that keeps what it is to call before it is used again."""

    def __init__(self) -> None:
        self.restore: Any = None
        self.at_once = False

    def _try_evict(self, restore: Any) -> bool:
        self.restore = restore
        if self.at_once:
            restore()
        return True


def test_a_limiter_that_is_used_in_the_moment_in_which_it_is_forgotten_is_remembered() -> None:
    users = KeyedLimiter[int, Handed](lambda _: Handed())
    users[7].at_once = True
    assert users.forget_idle() == 0
    assert users.statistics() == (1, 1, 0)
    users[7].at_once = False
    restore = users[7].restore
    assert users.forget_idle() == 1
    restore()  # nobody has held it
    assert users.statistics() == (0, 1, 1)


def test_a_key_that_is_to_be_looked_at_twice_is_looked_at_once() -> None:
    users = keyed(Clock())
    _ = users["ann"]
    users._queue.append("ann")
    assert users.forget_idle() == 1
    assert len(users._queue) == 0


@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit])
def test_a_clock_that_raises_costs_no_other_key(ending: type[BaseException], caplog: pytest.LogCaptureFixture) -> None:
    error: list[BaseException] = []

    def broken() -> float:
        if error:
            raise error[0]
        return 0.0

    clocks: dict[str, Any] = {"broken": broken}
    users = KeyedLimiter[str, AsyncTokenBucket](lambda key: AsyncTokenBucket(ONE, clock=clocks.get(key, lambda: 0.0)))
    assert users["broken"].try_acquire().allowed
    assert users["ann"].try_acquire().allowed
    error.append(GeneratorExit("no time"))
    for _ in range(300):
        assert not users["ann"].try_acquire().allowed
    with pytest.raises(GeneratorExit):
        users["broken"].try_acquire()
    assert "the limiter of 'broken' is idle is not known" in caplog.text
    error[0] = ending()
    with pytest.raises(ending):
        users.forget_idle()
    error.clear()
    assert not users["broken"].try_acquire().allowed
    assert len(users) == 2
