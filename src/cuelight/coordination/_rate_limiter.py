"""A limiter with several limits that are charged together: requests, tokens, and requests under way."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from functools import partial, wraps
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, ParamSpec, TypeVar

from cuelight._text import safe_repr
from cuelight.coordination._limiter_queue import YIELD_MASK, LimiterQueue, QueuedLimiter, QueuedRequest
from cuelight.coordination._limiters import check_function
from cuelight.coordination._meters import (
    NEVER,
    SECOND,
    Bucket,
    Meter,
    Permits,
    RateLimitConfig,
    WindowCounter,
    WindowLog,
    check_timeout,
    check_whole,
)
from cuelight.mailbox._backend import yield_now

# Reads the rate limit headers of the responses of services.


# x-ratelimit-remaining-tokens, vendor-ratelimit-input-tokens-remaining, ratelimit-remaining
_REMAINING = re.compile(r"(?:[a-z]+-)?ratelimit-(?:remaining(?:-(?P<last>[a-z-]+))?|(?P<first>[a-z-]+)-remaining)")

LONGEST_PAUSE: Final = 86_400.0
"""The longest pause, in seconds, that a header can cause: a day. No service means more, and no caller should wait so
long.
"""

_LONGEST_DATE: Final = 100
"""Characters."""


class Headers(NamedTuple):
    """The values read from the headers.

    Attributes:
        retry_after: seconds, a day at most; None if no header gives a time.
        remaining: the remaining amount, by the name of the limit.
    """

    retry_after: float | None
    remaining: dict[str, int]


def read_headers(headers: Mapping[str, str]) -> Headers:
    """Read the usual rate limit headers and ignore all others.

    Args:
        headers: names, in upper or lower case, and values.
    """
    given = {_text(name).lower(): _text(value).strip() for name, value in headers.items()}
    remaining: dict[str, int] = {}
    for name, value in given.items():
        if (match := _REMAINING.fullmatch(name)) and re.fullmatch(r"[0-9]{1,15}", value):
            remaining[(match["last"] or match["first"] or "requests").replace("-", "_")] = int(value)
    seconds = _number(given.get("retry-after-ms", ""))
    seconds = _seconds(given.get("retry-after", "")) if seconds is None else seconds / 1000
    return Headers(None if seconds is None else min(seconds, LONGEST_PAUSE), remaining)


def _text(part: object) -> str:
    """A name or a value as text; some libraries give bytes."""
    if isinstance(part, bytes):
        return part.decode("latin-1")
    return part if isinstance(part, str) else ""


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"[0-9]{1,15}(\.[0-9]{1,15})?", text) else None


def _seconds(text: str) -> float | None:
    """The seconds given by `120`, `0.5` or a date; never negative."""
    if (number := _number(text)) is not None:
        return number
    if not text or len(text) > _LONGEST_DATE:
        return None
    from email.utils import parsedate_to_datetime  # noqa: PLC0415 - costs milliseconds, and few services send a date

    try:
        when = parsedate_to_datetime(text)
        if when.tzinfo is None:  # "-0000": UTC, with an unknown local time zone
            when = when.replace(tzinfo=UTC)
        return max(0.0, (when - datetime.now(UTC)).total_seconds())
    except Exception:  # numbers out of range raise errors of several types
        return None


P = ParamSpec("P")
R = TypeVar("R")

Algorithm = Literal["token_bucket", "sliding_window", "sliding_counter"]

_METERS: Final[Mapping[Algorithm, Callable[[RateLimitConfig], Meter]]] = {
    "token_bucket": Bucket,
    "sliding_window": WindowLog,
    "sliding_counter": WindowCounter,
}

DEFAULT_COSTS: Final = {"requests": 1}
"""The cost of a request, unless the caller gives it."""

_RESERVED_NAMES: Final = frozenset({"refund_on_failure", "timeout"})


class RequestMixin(ABC):
    """The base of limiters whose requests have several costs; its decorators limit async functions."""

    __slots__ = ()

    @abstractmethod
    def request(
        self, *, timeout: float | None = None, refund_on_failure: bool = False, **costs: int
    ) -> AbstractAsyncContextManager[Any]:
        """Make a request with its costs."""

    def limited(
        self, *, timeout: float | None = None, refund_on_failure: bool = False, **costs: int
    ) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Callable[P, Coroutine[Any, Any, R]]]:
        """Make a decorator for async functions: each call is a request.

        Args:
            timeout: as for `request`.
            refund_on_failure: as for `request`.
            **costs: as for `request`.

        Raises:
            TypeError: as `request` does. The decorator raises it if the function is not an `async def` function.
            ValueError: as `request` does.
        """
        self.request(timeout=timeout, refund_on_failure=refund_on_failure, **costs)  # only to raise its errors now

        def decorate(function: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]:
            check_function(function, self)

            @wraps(function)
            async def limited(*args: P.args, **kwargs: P.kwargs) -> R:
                async with self.request(timeout=timeout, refund_on_failure=refund_on_failure, **costs):
                    return await function(*args, **kwargs)

            return limited

        return decorate


class RateLimiter(QueuedLimiter, RequestMixin):
    """Several limits in one step: a request is admitted when all limits allow it, and charged in all or in none.

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

    __slots__ = ("_all_meters", "_configs", "_names", "_own_queue", "_permits")

    def __init__(
        self,
        *,
        concurrency: int | None = None,
        algorithm: Algorithm = "token_bucket",
        clock: Callable[[], float] | None = None,
        **limits: RateLimitConfig,
    ) -> None:
        """Create an unused limiter.

        Args:
            concurrency: the number of requests that may be under way at once; None for no limit.
            algorithm: how the limits are counted: as in `AsyncTokenBucket`, or as in `AsyncSlidingWindow` with a log or
                with counters.
            clock: returns the time in seconds; None for `time.monotonic`. With virtual time, pass `anyio.current_time`.
            **limits: by name. A limit called `requests` is charged 1 for each request, unless the request gives another
                cost.

        Raises:
            TypeError: a limit is not a `RateLimitConfig`.
            ValueError: there is no limit at all, the algorithm is unknown, or the concurrency is less than 1.
        """
        super().__init__(clock)
        check_limits(self, algorithm, concurrency, limits)
        self._names = (*limits,)
        self._configs = dict(limits)
        # A request charges each named limit, and then a permit.
        self._permits = Permits(NEVER if concurrency is None else concurrency)
        self._all_meters: tuple[Meter, ...] = (
            *(_METERS[algorithm](config) for config in limits.values()),
            self._permits,
        )
        # This queue is never removed: a request may settle its real cost at any time.
        self._queue = self._own_queue = LimiterQueue(len(self._all_meters))
        self._own_queue.users = 1

    def __repr__(self) -> str:
        shown = [
            f"{name} {config.max_requests} in {config.window_seconds:g} s" for name, config in self._configs.items()
        ]
        if self._permits.max_cost != NEVER:
            shown.append(f"{self._permits.max_cost} at once")
        return f"<RateLimiter {', '.join(shown)}>"

    @property
    def _meters(self) -> tuple[Meter, ...]:
        return self._all_meters

    def request(self, *, timeout: float | None = None, refund_on_failure: bool = False, **costs: int) -> Admission:
        """Make a request with its costs. `async with` waits until it is admitted, and keeps it under way for the block.

        Args:
            timeout: seconds to wait; None waits without limit. If its turn would come too late, it raises at once.
            refund_on_failure: whether an exception that leaves the block, including a cancellation, refunds all costs,
                unless they were settled.
            **costs: whole numbers, by the name of the limit. A limit without a cost is charged nothing, except
                `requests`, which is charged 1.

        Raises:
            TypeError: a cost is not a whole number, or no limit has this name.
            ValueError: a cost is negative, or more than is ever admitted at once; or the timeout is negative.
        """
        check_timeout(timeout)
        return Admission(self, (*self._costs(costs), 1), timeout, refund_on_failure)

    def _costs(self, given: Mapping[str, int], among: Mapping[str, int] | None = None) -> list[int]:
        """The costs in the order of the limits. Costs that are not given come from `among`, or are the usual ones."""
        costs = order_costs(self, self._names, given, DEFAULT_COSTS if among is None else among)
        if among is None:
            check_costs(self, self._names, costs, (meter.max_cost for meter in self._all_meters))
        return costs

    def retry_after(self, **costs: int) -> float:
        """Return the seconds until such a request could be admitted, if no request leaves or comes first; 0.0 for now.

        The result is `inf` while it depends on when other requests end.

        Args:
            **costs: as for `request`.

        Raises:
            TypeError: as `request` does.
            ValueError: as `request` does.
        """
        needed = (*self._costs(costs), 1)
        with self._step() as now:
            wait = self._estimate(now, needed, self._own_queue.end_cost) - now
        return float("inf") if wait > NEVER // 2 else wait / SECOND

    def remaining(self) -> dict[str, int]:
        """Return the units of each limit that could be admitted at once, by name; with `concurrency`, if that is
        limited.
        """
        with self._step() as now:
            left = {name: meter.remaining(now) for name, meter in zip(self._names, self._all_meters, strict=False)}
            if self._permits.max_cost != NEVER:
                left["concurrency"] = self._permits.remaining(now)
            return left

    def update(self, *, concurrency: int | None = None, **limits: RateLimitConfig) -> None:
        """Change limits, for waiting requests too. Requests that were admitted still count.

        A waiting request that costs more than a new limit ever admits is admitted when nothing is owed in that limit.

        Args:
            concurrency: the number of requests that may be under way at once; None leaves it as it is. Requests that
                are already under way may exceed it until they end.
            **limits: by name; limits that are not named stay as they are.

        Raises:
            TypeError: a limit is not a `RateLimitConfig`, or no limit has this name.
            ValueError: the concurrency is less than 1.
        """
        for name, config in limits.items():
            check_named(name, config)
            if name not in self._configs:
                raise TypeError(f"{name}={safe_repr(config)}: {self!r} has no limit of this name; make another limiter")
        if concurrency is not None:
            check_whole("concurrency", concurrency, 1)
        with self._step() as now:
            for name, meter in zip(self._names, self._all_meters, strict=False):
                if name in limits:
                    meter.update(limits[name], now)
                    self._configs[name] = limits[name]
            if concurrency is not None:
                self._permits.update(concurrency, now)
            self._admit_due(now)

    def observe(self, headers: Mapping[str, str]) -> None:
        """Apply the rate limit headers of a response. Call this for each response, whatever its status.

        `Retry-After` (seconds or a date) and `retry-after-ms` pause everything, for a day at most.
        `x-ratelimit-remaining-tokens`, `vendor-ratelimit-tokens-remaining` and similar headers lower the remaining
        amount of the limit of that name (`requests` if they name none) to the value of the header, and never raise it.

        Args:
            headers: names, in upper or lower case, and values. Unknown headers and values are ignored.
        """
        seen = read_headers(headers)
        if seen.retry_after is not None:
            self.pause_for(seen.retry_after)
        with self._step() as now:
            for name, meter in zip(self._names, self._all_meters, strict=False):
                excess = meter.remaining(now) - seen.remaining.get(name, NEVER)
                if excess > 0:
                    meter.charge(now, now, excess)

    def _format_costs(self, costs: tuple[int, ...]) -> str:
        return (
            ", ".join(f"{name}={cost}" for name, cost in zip(self._names, costs, strict=False) if cost) or "a request"
        )

    def _settle(self, request: QueuedRequest, costs: tuple[int, ...], now: int) -> None:
        request.charges = [
            meter.adjust(charge, was, cost, now)
            for meter, charge, was, cost in zip(self._all_meters, request.charges, request.costs, costs, strict=True)
        ]
        request.costs = costs


class Admission:
    """A request to a `RateLimiter`, made by `RateLimiter.request`: an async context manager, for one use."""

    __slots__ = ("_costs", "_entered", "_limiter", "_refund", "_request", "_timeout")

    def __init__(
        self, limiter: RateLimiter, costs: tuple[int, ...], timeout: float | None, refund_on_failure: bool
    ) -> None:
        self._limiter = limiter
        self._costs = costs  # the last is the permit: 1 while the request is under way
        self._timeout = timeout
        self._refund = refund_on_failure
        self._entered = False
        self._request: QueuedRequest | None = None

    @property
    def costs(self) -> dict[str, int]:
        """The charged costs, by the name of the limit."""
        return dict(zip(self._limiter._names, self._costs, strict=False))

    @property
    def waited(self) -> float:
        """Seconds that the request waited."""
        request = self._request
        return 0.0 if request is None or request.waited is None else request.waited / SECOND

    def settle(self, **costs: int) -> None:
        """Replace the estimated costs by the real ones; inside the block or after it, and any number of times.

        A lower cost is refunded, except for the part that time has paid off already. A higher cost is owed, without a
        bound, and later requests wait for it.

        Args:
            **costs: the total costs, whole numbers, by the name of the limit. Costs that are not named stay as they
                are.

        Raises:
            TypeError: a cost is not a whole number, or no limit has this name.
            ValueError: a cost is negative.
            RuntimeError: the request was not admitted.
        """
        if self._request is None:
            raise RuntimeError("a request settles once it was let through: call this inside `async with`, or after it")
        self._refund = False
        self._charge((*self._limiter._costs(costs, self.costs), self._costs[-1]))

    def _charge(self, costs: tuple[int, ...]) -> None:
        if self._request is not None and costs != self._costs:
            self._costs, limiter = costs, self._limiter
            limiter._post(limiter._own_queue, partial(limiter._settle, self._request, costs))

    async def __aenter__(self) -> Admission:
        if self._entered:
            raise RuntimeError("this request was made already: call `request` once for each `async with`")
        self._entered = True
        if self._limiter._admitted & YIELD_MASK == YIELD_MASK:
            await yield_now()
        self._request = await self._limiter._enter(self._costs, self._timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the request, which is no longer under way. Not a checkpoint."""
        refunded = self._refund and kind is not None
        self._charge((*((0,) * len(self._limiter._names) if refunded else self._costs[:-1]), 0))


def check_limits(
    limiter: object, algorithm: str, concurrency: int | None, limits: Mapping[str, RateLimitConfig]
) -> None:
    """Raise an error unless a limiter can be made with these arguments.

    Raises:
        TypeError: a limit is not a `RateLimitConfig`.
        ValueError: there is no limit at all, the algorithm is unknown, or the concurrency is less than 1.
    """
    if algorithm not in _METERS:
        raise ValueError(f"algorithm={safe_repr(algorithm)}: it is one of {', '.join(_METERS)}")
    if not limits and concurrency is None:
        kind = type(limiter).__name__
        raise ValueError(f"{kind}() limits nothing: give limits by name, such as requests=RateLimitConfig(5, 1)")
    for name, config in limits.items():
        check_named(name, config)
        if name in _RESERVED_NAMES:
            raise ValueError(f"a limit cannot be called {name!r}: `request` has an argument of this name")
    if concurrency is not None:
        check_whole("concurrency", concurrency, 1)


def order_costs(limiter: object, names: Sequence[str], given: Mapping[str, int], usual: Mapping[str, int]) -> list[int]:
    """Return the costs in the order of the limits, with the usual costs for limits that are not given.

    Raises:
        TypeError: a cost is not a whole number, or no limit has this name.
        ValueError: a cost is negative.
    """
    for name in given:
        if name not in names:
            raise TypeError(f"{name}={safe_repr(given[name])}: {limiter!r} has no limit of this name")
    return [check_whole(name, given.get(name, usual.get(name, 0))) for name in names]


def check_costs(limiter: object, names: Iterable[str], costs: Iterable[int], max_cost: Iterable[int]) -> None:
    """Raise an error if one of the costs is never admitted.

    Raises:
        ValueError: a cost is more than is admitted at once.
    """
    for name, cost, limit in zip(names, costs, max_cost, strict=False):
        if cost > limit:
            raise ValueError(f"{name}={safe_repr(cost)}: {limiter!r} never lets more than {limit} through at once")


def check_named(name: str, config: object) -> None:
    """Raise an error unless `config` is a limit.

    Raises:
        TypeError: it is not a `RateLimitConfig`.
    """
    if not isinstance(config, RateLimitConfig):
        raise TypeError(
            f"{name}={safe_repr(config)}: give a RateLimitConfig, such as RateLimitConfig(100, window_seconds=60)"
        )
