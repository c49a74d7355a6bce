"""A limiter for each key."""

import gc
import random
import threading
from collections import Counter

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
    assert len(users._kept) == 0
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
