"""Limiters with one limit: a token bucket, a sliding window and a leaky bucket. They differ only in their meter."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from cuelight._text import safe_repr
from cuelight.coordination._limiter_queue import YIELD_MASK, QueuedLimiter
from cuelight.coordination._meters import (
    SECOND,
    Bucket,
    Decision,
    Meter,
    RateLimitConfig,
    WindowCounter,
    WindowLog,
    check_timeout,
    check_whole,
    from_rate,
)
from cuelight.mailbox._backend import yield_now

P = ParamSpec("P")
R = TypeVar("R")


def check_config(config: object) -> None:
    """Raise an error unless `config` is a limit.

    Raises:
        TypeError: it is not a `RateLimitConfig`.
    """
    if not isinstance(config, RateLimitConfig):
        raise TypeError(f"{safe_repr(config)}: give a RateLimitConfig, such as RateLimitConfig(100, window_seconds=60)")


def check_cost(limiter: object, cost: int, max_cost: int) -> None:
    """Raise an error if a limiter never admits this cost.

    Raises:
        TypeError: it is not a whole number.
        ValueError: it is negative, or more than `max_cost`.
    """
    check_whole("cost", cost)
    if cost > max_cost:
        raise ValueError(
            f"cost={safe_repr(cost)}: {limiter!r} never lets more than {max_cost} through at once; raise its burst"
        )


def bucket_config(rate: RateLimitConfig | float, capacity: int | None) -> RateLimitConfig:
    """Return the limit of a token bucket: as given, or from a rate per second and a capacity.

    Raises:
        TypeError: a limit was given together with a capacity, or a value is neither a limit nor a number.
        ValueError: a number is not more than 0.
    """
    if not isinstance(rate, RateLimitConfig):
        return from_rate(rate, capacity)
    if capacity is not None:
        raise TypeError(
            f"capacity={safe_repr(capacity)}: the limit says it, as RateLimitConfig(burst_size={safe_repr(capacity)})"
        )
    return rate


def smooth_config(config: RateLimitConfig) -> RateLimitConfig:
    """Return the limit of a leaky bucket.

    Raises:
        TypeError: `config` is not a limit.
        ValueError: its burst is not 1.
    """
    check_config(config)
    if config.burst_size not in {None, 1}:
        raise ValueError(f"burst_size={config.burst_size!r}: a leaky bucket has 1; take a token bucket for bursts")
    return RateLimitConfig(config.max_requests, config.window_seconds, 1)


def window_config(limit: RateLimitConfig | int, window_seconds: float | None = None) -> RateLimitConfig:
    """Return the limit of a sliding window: as given, or from a number and a window.

    Raises:
        TypeError: a limit was given together with a window, a number without one, or a value of another type.
        ValueError: a number is not more than 0, or the limit has a burst.
    """
    if not isinstance(limit, RateLimitConfig):
        if window_seconds is None:
            raise TypeError(
                f"AsyncSlidingWindow({safe_repr(limit)}): say in how many seconds, or give a RateLimitConfig"
            )
        limit = RateLimitConfig(limit, window_seconds)
    elif window_seconds is not None:
        raise TypeError(f"window_seconds={safe_repr(window_seconds)}: the limit says it already")
    if limit.burst_size not in {None, limit.max_requests}:
        raise ValueError(
            f"burst_size={limit.burst_size!r}: a sliding window lets max_requests through at once; "
            "leave burst_size out, or take a token bucket"
        )
    return limit


class AcquireMixin(ABC):
    """The base of limiters with one cost: a context manager, and a decorator of async functions."""

    __slots__ = ()

    @abstractmethod
    async def acquire(self, cost: int = 1, timeout: float | None = None) -> None:
        """Wait until a request is admitted."""

    @abstractmethod
    def _check_cost(self, cost: int) -> None: ...

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(self, *exc_info: object) -> None:  # noqa: B027 - only entering does something
        """Release nothing: an admitted request stays charged."""

    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]:
        """Decorate an async function: each call waits for its turn, at a cost of 1.

        Args:
            function: the function to limit.

        Raises:
            TypeError: it is not an `async def` function.
        """
        return self.limited()(function)

    def limited(
        self, cost: int | Callable[..., int] = 1, *, timeout: float | None = None
    ) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Callable[P, Coroutine[Any, Any, R]]]:
        """Make a decorator for async functions: each call waits for its turn, as `acquire` does.

        Args:
            cost: the cost of each call; or a function that returns it, called with the arguments of the call.
            timeout: seconds that a call may wait. After that it raises `TimeoutError`, without calling the function.

        Raises:
            TypeError: the cost is neither a whole number nor a function.
            ValueError: the cost is never admitted, or the timeout is negative.
        """
        check_timeout(timeout)
        if not callable(cost):
            self._check_cost(cost)

        def decorate(function: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]:
            check_function(function, self)

            @wraps(function)
            async def limited(*args: P.args, **kwargs: P.kwargs) -> R:
                await self.acquire(cost(*args, **kwargs) if callable(cost) else cost, timeout)
                return await function(*args, **kwargs)

            return limited

        return decorate


def check_function(function: object, limiter: object) -> None:
    """Raise an error unless a limiter can decorate this function.

    Raises:
        TypeError: it is not an `async def` function.
    """
    if not inspect.iscoroutinefunction(function):
        raise TypeError(
            f"{limiter!r} decorates `async def` functions, and {safe_repr(function)} is none: acquire inside of it"
        )


class SingleLimiter(QueuedLimiter, AcquireMixin):
    """The base of the limiters with one limit. They may be used from several event loops and threads at once.

    `async with limiter:` admits a block at a cost of 1, and `@limiter` does so for each call of an async function.
    """

    __slots__ = ("_config", "_meter")

    def __init__(self, meter: Meter, config: RateLimitConfig, clock: Callable[[], float] | None) -> None:
        super().__init__(clock)
        self._meter = meter
        self._config = config

    def __repr__(self) -> str:
        config = self._config
        burst = "" if config.burst_size is None else f", burst {config.burst_size}"
        return f"<{type(self).__name__} {config.max_requests} in {config.window_seconds:g} s{burst}>"

    @property
    def _meters(self) -> tuple[Meter, ...]:
        return (self._meter,)

    @property
    def config(self) -> RateLimitConfig:
        """The limit."""
        return self._config

    async def acquire(self, cost: int = 1, timeout: float | None = None) -> None:
        """Wait until a request is admitted, in the order of the calls. A checkpoint if it has to wait, and once in 64
        calls.

        If it raises, also because of a cancellation, nothing was charged.

        Args:
            cost: the cost of the request, a whole number. A request of cost 0 waits for its turn and for the end of a
                pause.
            timeout: seconds to wait; None waits without limit. If its turn would come too late, it raises at once.

        Raises:
            TimeoutError: its turn would not come, or did not come, in time.
            TypeError: the cost is not a whole number.
            ValueError: the cost is negative, or more than is ever admitted at once; or the timeout is negative.
        """
        if cost.__class__ is not int or cost < 0 or cost > self._meter.max_cost:
            self._check_cost(cost)
        if timeout is not None:
            check_timeout(timeout)
        if self._admitted & YIELD_MASK == YIELD_MASK:
            await yield_now()
        with self._lock:
            if self._queue is None:
                now = self._clock()
                if now >= self._not_before and self._meter.try_charge(now, cost):
                    self._admitted += 1
                    return
        await self._enter((cost,), timeout)

    def try_acquire(self, cost: int = 1) -> Decision:
        """Admit a request now, or return when it could be admitted. It does not overtake waiting requests. Not a
        checkpoint.

        Args:
            cost: the cost of the request, a whole number.

        Raises:
            TypeError: the cost is not a whole number.
            ValueError: the cost is negative, or more than is ever admitted at once.
        """
        self._check_cost(cost)
        with self._step() as now:
            queue, meter = self._queue, self._meter
            waits = queue is not None and bool(queue.waiting)
            allowed = not waits and now >= self._not_before and meter.try_charge(now, cost)
            if allowed:
                self._admitted += 1
                due = now
            else:
                self._refused += 1
                due = self._estimate(now, (cost,), (0,) if queue is None else queue.end_cost)
            unused = max(now, due if waits else now, self._not_before, meter.unused_at(now))
            left = 0 if waits or now < self._not_before else meter.remaining(now)
            return Decision(allowed, (due - now) / SECOND, left, (unused - now) / SECOND)

    def update(self, config: RateLimitConfig) -> None:
        """Change the limit, for waiting requests too. Requests that were admitted still count.

        A waiting request that costs more than the new limit ever admits is admitted when nothing is owed.

        Args:
            config: the new limit.
        """
        self._check_config(config)
        with self._step() as now:
            self._meter.update(config, now)
            self._config = config
            self._admit_due(now)

    def _check_config(self, config: RateLimitConfig) -> None:
        check_config(config)

    def _check_cost(self, cost: int) -> None:
        check_cost(self, cost, self._meter.max_cost)


class AsyncTokenBucket(SingleLimiter):
    """A limit on average, with bursts: `AsyncTokenBucket(RateLimitConfig(100, 60))`, `AsyncTokenBucket(5.0, 10)`.

    In any t seconds, the admitted requests cost at most `burst + t * max_requests / window_seconds`. With the default
    burst, a window after an idle time can therefore see twice the limit. If that is too much, give a smaller
    `burst_size`, or use `AsyncSlidingWindow`. Timers fire late. So that this does not lower the rate, a request that
    waited counts as admitted when its turn came, if that was no more than 10 milliseconds ago.
    """

    __slots__ = ()

    def __init__(
        self,
        rate: RateLimitConfig | float,
        capacity: int | None = None,
        *,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """Create a full bucket.

        Args:
            rate: the limit, or a number of units per second.
            capacity: only with a number per second: the units that are admitted at once; None for the units of one
                second.
            clock: returns the time in seconds; None for `time.monotonic`. With virtual time, pass `anyio.current_time`.

        Raises:
            TypeError: a limit was given together with a capacity, or a value is neither a limit nor a number.
            ValueError: a number is not more than 0.
        """
        config = bucket_config(rate, capacity)
        super().__init__(Bucket(config), config, clock)


class AsyncLeakyBucket(SingleLimiter):
    """Evenly spaced requests: a token bucket that holds one, `AsyncLeakyBucket(RateLimitConfig(100, 60))`.

    A cost of more than 1 is never admitted at once; call `acquire` for each part of it.
    """

    __slots__ = ()

    def __init__(self, config: RateLimitConfig, *, clock: Callable[[], float] | None = None) -> None:
        """Create a leaky bucket that admits the first request at once.

        Args:
            config: the limit; its `burst_size` is None or 1.
            clock: returns the time in seconds; None for `time.monotonic`. With virtual time, pass `anyio.current_time`.

        Raises:
            TypeError: `config` is not a limit.
            ValueError: the limit has another `burst_size`.
        """
        smooth = smooth_config(config)
        super().__init__(Bucket(smooth), smooth, clock)

    def update(self, config: RateLimitConfig) -> None:
        """Change the limit: see `AsyncTokenBucket.update`.

        Args:
            config: the new limit; its `burst_size` is None or 1.

        Raises:
            ValueError: the limit has another `burst_size`.
        """
        super().update(smooth_config(config))


class AsyncSlidingWindow(SingleLimiter):
    """A limit for each window, wherever it begins: `AsyncSlidingWindow(RateLimitConfig(100, 60))`.

    It keeps a log of the admitted requests, up to `max_requests` entries. In any window, its beginning excluded, the
    admitted requests cost at most `max_requests`. With `exact=False` it keeps two numbers instead: the limit then holds
    for windows that begin at multiples of their length, and other windows may admit up to twice as much.
    """

    __slots__ = ()

    def __init__(
        self,
        limit: RateLimitConfig | int,
        window_seconds: float | None = None,
        *,
        exact: bool = True,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """Create an empty window.

        Args:
            limit: the limit, or a number of units in a window.
            window_seconds: only with a number of units: the window, in seconds.
            exact: whether to keep a log; otherwise two counters.
            clock: returns the time in seconds; None for `time.monotonic`. With virtual time, pass `anyio.current_time`.

        Raises:
            TypeError: a limit was given together with a window, a number without one, or a value of another type.
            ValueError: a number is not more than 0, or the limit has a `burst_size`.
        """
        limit = window_config(limit, window_seconds)
        super().__init__(WindowLog(limit) if exact else WindowCounter(limit), limit, clock)

    def _check_config(self, config: RateLimitConfig) -> None:
        check_config(config)
        window_config(config)
