"""A limiter with several limits, which are charged together: requests, tokens, and how many are under way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial, wraps
from types import TracebackType
from typing import Any, Final, Literal, ParamSpec, TypeVar

from cuelight._text import safe_repr
from cuelight.coordination._gcra import Bucket
from cuelight.coordination._limit_headers import read_headers
from cuelight.coordination._limit_line import YIELD, Limiter
from cuelight.coordination._limit_meter import (
    EVER,
    SECOND,
    Meter,
    Permits,
    RateLimitConfig,
    check_timeout,
    check_whole,
)
from cuelight.coordination._limit_waiter import Line, Waiter
from cuelight.coordination._limiters import check_function
from cuelight.coordination._window import WindowCounter, WindowLog
from cuelight.mailbox._backend import yield_now

__all__ = [
    "Admission",
    "RateLimiter",
    "Requesting",
    "USUAL",
    "check_costs",
    "check_limits",
    "check_named",
    "order_costs",
]

P = ParamSpec("P")
R = TypeVar("R")

Algorithm = Literal["token_bucket", "sliding_window", "sliding_counter"]

_METERS: Final[Mapping[Algorithm, Callable[[RateLimitConfig], Meter]]] = {
    "token_bucket": Bucket,
    "sliding_window": WindowLog,
    "sliding_counter": WindowCounter,
}

USUAL: Final = {"requests": 1}
"""What a request costs if it does not say."""

_TAKEN: Final = frozenset({"refund_on_failure", "timeout"})


class Requesting(ABC):
    """What takes requests with several costs: a decorator of async functions."""

    __slots__ = ()

    @abstractmethod
    def request(
        self, *, timeout: float | None = None, refund_on_failure: bool = False, **costs: int
    ) -> AbstractAsyncContextManager[Any]:
        """Say what a request will cost."""

    def limited(
        self, *, timeout: float | None = None, refund_on_failure: bool = False, **costs: int
    ) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Callable[P, Coroutine[Any, Any, R]]]:
        """Make a decorator for async functions: each call is a request.

        Args:
            timeout: as for `request`.
            refund_on_failure: as for `request`.
            **costs: as for `request`.

        Raises:
            TypeError: as `request` does; and the decorator, for what is not an `async def` function.
            ValueError: as `request` does.
        """
        self.request(timeout=timeout, refund_on_failure=refund_on_failure, **costs)  # for its errors

        def decorate(function: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]:
            check_function(function, self)

            @wraps(function)
            async def limited(*args: P.args, **kwargs: P.kwargs) -> R:
                async with self.request(timeout=timeout, refund_on_failure=refund_on_failure, **costs):
                    return await function(*args, **kwargs)

            return limited

        return decorate


class RateLimiter(Limiter, Requesting):
    """Several limits in one step: a request is let through when all of them allow it, and charged in all or in none.

        limiter = RateLimiter(
            requests=RateLimitConfig(500, window_seconds=60),
            tokens=RateLimitConfig(100_000, window_seconds=60),
            concurrency=10,
        )
        async with limiter.request(tokens=1500) as request:
            answer = await ask_the_model(...)
            request.settle(tokens=answer.tokens_used)

    It may be used from several event loops and threads at once.
    """

    __slots__ = ("_configs", "_each", "_names", "_own", "_permits")

    def __init__(
        self,
        *,
        concurrency: int | None = None,
        algorithm: Algorithm = "token_bucket",
        clock: Callable[[], float] | None = None,
        **limits: RateLimitConfig,
    ) -> None:
        """Make one that is unused.

        Args:
            concurrency: how many requests may be under way at once; None for any number.
            algorithm: how the limits are counted: as `AsyncTokenBucket` does, or as `AsyncSlidingWindow` does with a
                log or with counters.
            clock: tells the time in seconds; None for `time.monotonic`. With virtual time give `anyio.current_time`.
            **limits: by name. A limit called `requests` is charged 1 for each request, unless it says otherwise.

        Raises:
            TypeError: a limit is no `RateLimitConfig`.
            ValueError: there is no limit at all, the algorithm is not known, or the concurrency not 1 or more.
        """
        super().__init__(clock)
        check_limits(self, algorithm, concurrency, limits)
        self._names = (*limits,)
        self._configs = dict(limits)
        # A request charges each limit by name, and then a permit.
        self._permits = Permits(EVER if concurrency is None else concurrency)
        self._each: tuple[Meter, ...] = (*(_METERS[algorithm](config) for config in limits.values()), self._permits)
        # It stays: a request may come back with its real cost at any time.
        self._line = self._own = Line(len(self._each))
        self._own.users = 1

    def __repr__(self) -> str:
        shown = [
            f"{name} {config.max_requests} in {config.window_seconds:g} s" for name, config in self._configs.items()
        ]
        if self._permits.most != EVER:
            shown.append(f"{self._permits.most} at once")
        return f"<RateLimiter {', '.join(shown)}>"

    @property
    def _meters(self) -> tuple[Meter, ...]:
        return self._each

    def request(self, *, timeout: float | None = None, refund_on_failure: bool = False, **costs: int) -> Admission:
        """Say what a request will cost. `async with` waits until it may go, and holds its place among those under way.

        Args:
            timeout: how long to wait, in seconds; None for as long as it takes. If its turn will come too late, it
                raises at once.
            refund_on_failure: whether an exception that leaves the block, cancellation included, takes back all costs,
                unless they were settled.
            **costs: by the name of the limit, whole numbers. What is not named costs nothing, but for `requests`,
                which costs 1.

        Raises:
            TypeError: a cost is no whole number, or there is no limit of this name.
            ValueError: a cost is negative, or more than may ever be let through at once; or the time-out is negative.
        """
        check_timeout(timeout)
        return Admission(self, (*self._costs(costs), 1), timeout, refund_on_failure)

    def _costs(self, given: Mapping[str, int], among: Mapping[str, int] | None = None) -> list[int]:
        """The costs in the order of the limits; those not given are `among` them, or the usual ones."""
        costs = order_costs(self, self._names, given, USUAL if among is None else among)
        if among is None:
            check_costs(self, self._names, costs, (meter.most for meter in self._each))
        return costs

    def retry_after(self, **costs: int) -> float:
        """Seconds until such a request could go, if nobody leaves or comes first; 0.0 if it could now.

        It is inf while that depends on when others end.

        Args:
            **costs: as for `request`.

        Raises:
            TypeError: as `request` does.
            ValueError: as `request` does.
        """
        needed = (*self._costs(costs), 1)
        with self._step() as now:
            wait = self._estimate(now, needed, self._own.end) - now
        return float("inf") if wait > EVER // 2 else wait / SECOND

    def remaining(self) -> dict[str, int]:
        """What is left of each limit to be let through at once, by name; with `concurrency`, if that is limited."""
        with self._step() as now:
            left = {name: meter.left(now) for name, meter in zip(self._names, self._each, strict=False)}
            if self._permits.most != EVER:
                left["concurrency"] = self._permits.left(now)
            return left

    def update(self, *, concurrency: int | None = None, **limits: RateLimitConfig) -> None:
        """Change limits, also for those that wait. What was let through still counts.

        A request that waits and costs more than a new limit ever lets through goes when nothing is owed there.

        Args:
            concurrency: how many requests may be under way at once; None leaves it as it is. More that are under way
                already may end.
            **limits: by name; those that are not named stay as they are.

        Raises:
            TypeError: a limit is no `RateLimitConfig`, or there was none of this name.
            ValueError: the concurrency is less than 1.
        """
        for name, config in limits.items():
            check_named(name, config)
            if name not in self._configs:
                raise TypeError(f"{name}={safe_repr(config)}: {self!r} has no limit of this name; make another limiter")
        if concurrency is not None:
            check_whole("concurrency", concurrency, 1)
        with self._step() as now:
            for name, meter in zip(self._names, self._each, strict=False):
                if name in limits:
                    meter.update(limits[name], now)
                    self._configs[name] = limits[name]
            if concurrency is not None:
                self._permits.update(concurrency, now)
            self._advance(now)

    def observe(self, headers: Mapping[str, str]) -> None:
        """Learn from the headers of an answer: to be called for each answer, whatever its status.

        `Retry-After` (seconds or a date) and `retry-after-ms` pause everything, for a day at most.
        `x-ratelimit-remaining-tokens`, `vendor-ratelimit-tokens-remaining` and their like lower what is left of the
        limit of that name (`requests` if they name none) to what the service says, and never raise it.

        Args:
            headers: names, in upper or lower case, and values. What is not understood is left alone.
        """
        seen = read_headers(headers)
        if seen.retry_after is not None:
            self.pause_for(seen.retry_after)
        with self._step() as now:
            for name, meter in zip(self._names, self._each, strict=False):
                excess = meter.left(now) - seen.remaining.get(name, EVER)
                if excess > 0:
                    meter.book(now, now, excess)

    def _shown(self, costs: tuple[int, ...]) -> str:
        return (
            ", ".join(f"{name}={cost}" for name, cost in zip(self._names, costs, strict=False) if cost) or "a request"
        )

    def _settle(self, waiter: Waiter, costs: tuple[int, ...], now: int) -> None:
        waiter.tickets = [
            meter.amend(ticket, was, cost, now)
            for meter, ticket, was, cost in zip(self._each, waiter.tickets, waiter.costs, costs, strict=True)
        ]
        waiter.costs = costs


class Admission:
    """A request to a `RateLimiter`, made by `RateLimiter.request`: an async context manager, for one use."""

    __slots__ = ("_costs", "_entered", "_limiter", "_refund", "_timeout", "_waiter")

    def __init__(
        self, limiter: RateLimiter, costs: tuple[int, ...], timeout: float | None, refund_on_failure: bool
    ) -> None:
        self._limiter = limiter
        self._costs = costs  # the last is the permit: 1 while the request is under way
        self._timeout = timeout
        self._refund = refund_on_failure
        self._entered = False
        self._waiter: Waiter | None = None

    @property
    def costs(self) -> dict[str, int]:
        """What it is charged, by the name of the limit."""
        return dict(zip(self._limiter._names, self._costs, strict=False))

    @property
    def waited(self) -> float:
        """Seconds that it waited for its turn."""
        waiter = self._waiter
        return 0.0 if waiter is None or waiter.waited is None else waiter.waited / SECOND

    def settle(self, **costs: int) -> None:
        """Say what it really costs, in place of what was said first; within the block or after it, also repeatedly.

        What it cost less is refunded, as far as it was not paid off by time yet. What it cost more is owed, without a
        bound, and those that come later wait for it.

        Args:
            **costs: by the name of the limit, in all, whole numbers. What is not named stays as it is.

        Raises:
            TypeError: a cost is no whole number, or there is no limit of this name.
            ValueError: a cost is negative.
            RuntimeError: it was not let through.
        """
        if self._waiter is None:
            raise RuntimeError("a request settles once it was let through: call this inside `async with`, or after it")
        self._refund = False
        self._charge((*self._limiter._costs(costs, self.costs), self._costs[-1]))

    def _charge(self, costs: tuple[int, ...]) -> None:
        if self._waiter is not None and costs != self._costs:
            self._costs, limiter = costs, self._limiter
            limiter._post(limiter._own, partial(limiter._settle, self._waiter, costs))

    async def __aenter__(self) -> Admission:
        if self._entered:
            raise RuntimeError("this request was made already: call `request` once for each `async with`")
        self._entered = True
        if self._limiter._admitted & YIELD == YIELD:
            await yield_now()
        self._waiter = await self._limiter._enter(self._costs, self._timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give back its place among those under way. No checkpoint."""
        refunded = self._refund and kind is not None
        self._charge((*((0,) * len(self._limiter._names) if refunded else self._costs[:-1]), 0))


def check_limits(
    limiter: object, algorithm: str, concurrency: int | None, limits: Mapping[str, RateLimitConfig]
) -> None:
    """Refuse what no limiter can be made of.

    Raises:
        TypeError: a limit is no `RateLimitConfig`.
        ValueError: there is no limit at all, the algorithm is not known, or the concurrency not 1 or more.
    """
    if algorithm not in _METERS:
        raise ValueError(f"algorithm={safe_repr(algorithm)}: it is one of {', '.join(_METERS)}")
    if not limits and concurrency is None:
        kind = type(limiter).__name__
        raise ValueError(f"{kind}() limits nothing: give limits by name, such as requests=RateLimitConfig(5, 1)")
    for name, config in limits.items():
        check_named(name, config)
        if name in _TAKEN:
            raise ValueError(f"a limit cannot be called {name!r}: `request` has an argument of this name")
    if concurrency is not None:
        check_whole("concurrency", concurrency, 1)


def order_costs(limiter: object, names: Sequence[str], given: Mapping[str, int], usual: Mapping[str, int]) -> list[int]:
    """Costs in the order of the limits; those not given are the usual ones.

    Raises:
        TypeError: a cost is no whole number, or there is no limit of this name.
        ValueError: a cost is negative.
    """
    for name in given:
        if name not in names:
            raise TypeError(f"{name}={safe_repr(given[name])}: {limiter!r} has no limit of this name")
    return [check_whole(name, given.get(name, usual.get(name, 0))) for name in names]


def check_costs(limiter: object, names: Iterable[str], costs: Iterable[int], most: Iterable[int]) -> None:
    """Refuse costs that are never let through.

    Raises:
        ValueError: one is more than may be let through at once.
    """
    for name, cost, limit in zip(names, costs, most, strict=False):
        if cost > limit:
            raise ValueError(f"{name}={safe_repr(cost)}: {limiter!r} never lets more than {limit} through at once")


def check_named(name: str, config: object) -> None:
    """Refuse what is no limit.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(config, RateLimitConfig):
        raise TypeError(
            f"{name}={safe_repr(config)}: give a RateLimitConfig, such as RateLimitConfig(100, window_seconds=60)"
        )
