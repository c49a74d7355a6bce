"""A limiter over Redis with several limits that are charged together: requests, tokens, and requests under way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from types import TracebackType

from cuelight._text import safe_repr
from cuelight.coordination import Admission, RateLimitConfig, RateLimiter
from cuelight.coordination._limiter_queue import jittered
from cuelight.coordination._meters import check_timeout, check_whole
from cuelight.coordination._rate_limiter import (
    DEFAULT_COSTS,
    RequestMixin,
    check_costs,
    check_limits,
    check_named,
    order_costs,
    read_headers,
)
from cuelight.errors import StoreUnavailable
from cuelight.mailbox import call_in_loop, running_loop
from cuelight.redis._client import DEFAULT_URL, Server
from cuelight.redis._limits._calls import AdmittedRequest, OnOutage, ServerAway
from cuelight.redis._limits._config import Algorithm
from cuelight.redis._limits._limiter import RedisLimiter, in_seconds
from cuelight.redis._limits._loop_client import MICROSECONDS, NEVER, LoopClient, WouldExceedTimeout


class RedisRateLimiter(RedisLimiter[RateLimiter], RequestMixin):
    """Several limits in one step, for all processes that use the same name on one server.

        limiter = RedisRateLimiter(
            "gpt",
            redis_url="redis://localhost:6379",
            requests=RateLimitConfig(500, window_seconds=60),
            tokens=RateLimitConfig(100_000, window_seconds=60),
            concurrency=10,
        )
        async with limiter.request(tokens=1500) as request:
            answer = await ask_the_model(...)
            request.settle(tokens=answer.tokens_used)

    A request is admitted when all limits allow it, and charged in all or in none. Requests of all processes are
    admitted in the order of arrival. This is `RateLimiter` over Redis; methods that ask the server are async here. It
    may be used from several event loops and threads at once.

    A permit of `concurrency` is held by a lease that this process renews. When a process dies, its permits are released
    within its lease and a third. A process that is stopped for longer, or whose loop is blocked, loses its permits, and
    gets them back as soon as it continues. In the meantime, more requests may be under way than allowed.
    """

    __slots__ = ()

    def __init__(
        self,
        name: str,
        *,
        redis_url: str = DEFAULT_URL,
        server: Server | None = None,
        concurrency: int | None = None,
        algorithm: Algorithm = "token_bucket",
        prefix: str = "cuelight",
        lease: float = 10.0,
        on_outage: OnOutage = "closed",
        outage_after: float = 1.0,
        local_share: float = 1.0,
        _clock: Callable[[], int] | None = None,
        **limits: RateLimitConfig,
    ) -> None:
        """Create the limiter; the server is asked for the first time with the first request.

        Args:
            name: the same name for all processes that share the limits.
            redis_url: the URL of the server, if no `server` is given; limiters with the same URL share a client.
            server: a `RedisClient`, or another `Server`; it stays open when the limiter is closed.
            concurrency: the number of requests that may be under way at once, in all processes; None for no limit.
            algorithm: how the limits are counted: as in `RedisTokenBucket`, or as in `RedisSlidingWindow` with a log or
                with counters.
            prefix: separates the keys of one application from others on the same server.
            lease: seconds without a message after which a process is considered dead.
            on_outage: the handling of requests while the server is away: "closed" raises `StoreUnavailable`, "open"
                admits them without counting, and with "local" each process counts for itself.
            outage_after: seconds without an answer after which the server is considered away; not used with "closed".
            local_share: with "local", the share of the limits that this process may use while the server is away, at
                most 1.
            **limits: by name. A limit called `requests` is charged 1 for each request, unless the request gives another
                cost.

        Raises:
            TypeError: a limit is not a `RateLimitConfig`.
            ValueError: there is no limit at all, or an argument has an invalid value.
        """
        check_limits(self, algorithm, concurrency, limits)

        def local(scaled: Callable[[RateLimitConfig], RateLimitConfig], share: float) -> RateLimiter:
            permits = None if concurrency is None else max(1, int(concurrency * share))
            shares = {limit: scaled(config) for limit, config in limits.items()}
            return RateLimiter(concurrency=permits, algorithm=algorithm, clock=None, **shares)

        super().__init__(
            name,
            algorithm,
            limits,
            concurrency,
            local,
            {
                "redis_url": redis_url,
                "server": server,
                "prefix": prefix,
                "lease": lease,
                "on_outage": on_outage,
                "outage_after": outage_after,
                "local_share": local_share,
                "_clock": _clock,
            },
        )

    def __repr__(self) -> str:
        shown = [
            f"{name} {config.max_requests} in {config.window_seconds:g} s" for name, config in self._limits.items()
        ]
        if self._limiter_config.permits:
            shown.append(f"{self._limiter_config.permits} at once")
        return f"<RedisRateLimiter {self.name!r} {', '.join(shown)} on {self._server.name}>"

    def request(self, *, timeout: float | None = None, refund_on_failure: bool = False, **costs: int) -> RedisAdmission:
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
        return RedisAdmission(self, self._costs(costs), timeout, refund_on_failure)

    def _costs(self, given: Mapping[str, int]) -> list[int]:
        limiter_config = self._limiter_config
        costs = order_costs(self, limiter_config.names, given, DEFAULT_COSTS)
        check_costs(self, limiter_config.names, costs, (limiter_config.max_cost(index) for index in range(len(costs))))
        return costs

    async def retry_after(self, **costs: int) -> float:
        """Return the seconds until such a request could be admitted, if no request leaves or comes first; 0.0 for now.

        A checkpoint. The result is `inf` while it depends on when other requests end.

        Args:
            **costs: as for `request`.

        Raises:
            StoreUnavailable: the server does not answer.
            TypeError: as `request` does.
            ValueError: as `request` does.
        """
        return in_seconds((await self._loop_client().look(self._costs(costs)))["wait"])

    async def remaining(self) -> dict[str, int]:
        """Return the units of each limit that could be admitted at once, by name; with `concurrency`, if that is
        limited.

        A checkpoint.

        Raises:
            StoreUnavailable: the server does not answer.
        """
        answer = await self._loop_client().look([0] * len(self._limiter_config.names))
        left = dict(zip(self._limiter_config.names, answer["left"], strict=True))
        if self._limiter_config.permits:
            left["concurrency"] = max(0, self._limiter_config.permits - answer["held"])
        return left

    async def update(self, *, concurrency: int | None = None, **limits: RateLimitConfig) -> None:
        """Change limits for all processes, for waiting requests too. Requests that were admitted still count. A
        checkpoint.

        The new limits stay for 30 days after their last use, whatever limits other processes gave to their limiters. A
        waiting request that costs more than a new limit ever admits is admitted when nothing is owed in that limit.

        Args:
            concurrency: the number of requests that may be under way at once; None leaves it as it is. Requests that
                are already under way may exceed it until they end.
            **limits: by name; limits that are not named stay as they are.

        Raises:
            StoreUnavailable: the server does not answer; the limits may or may not have been changed.
            TypeError: a limit is not a `RateLimitConfig`, or no limit has this name.
            ValueError: the concurrency is less than 1, or was not limited before.
        """
        for name, config in limits.items():
            check_named(name, config)
            if name not in self._limiter_config.names:
                raise TypeError(f"{name}={safe_repr(config)}: {self!r} has no limit of this name; make another limiter")
        if concurrency is not None:
            check_whole("concurrency", concurrency, 1)
            if not self._limiter_config.permits:
                raise ValueError(
                    f"concurrency={safe_repr(concurrency)}: {self!r} does not count what is under way; make another"
                )
        # This call also returns the limits that other processes have set.
        await self._loop_client().look([0] * len(self._limiter_config.names))
        await self._change(limits, concurrency or self._limiter_config.permits)

    async def observe(self, headers: Mapping[str, str]) -> None:
        """Apply the rate limit headers of a response, for all processes. Call this for each response, whatever its
        status.

        `Retry-After` (seconds or a date) and `retry-after-ms` pause everything, for a day at most.
        `x-ratelimit-remaining-tokens`, `vendor-ratelimit-tokens-remaining` and similar headers lower the remaining
        amount of the limit of that name (`requests` if they name none) to the value of the header, and never raise it.
        A checkpoint, if the headers change anything.

        Args:
            headers: names, in upper or lower case, and values. Unknown headers and values are ignored.

        Raises:
            StoreUnavailable: the server does not answer, and `on_outage` is "closed".
        """
        if self._local is not None:
            self._local.observe(headers)
        seen = read_headers(headers)
        left = [seen.remaining.get(name, -1) for name in self._limiter_config.names]
        changes: dict[str, object] = {}
        if seen.retry_after is not None:
            changes["pause"] = round(jittered(seen.retry_after, 0.1) * MICROSECONDS)
        if max(left, default=-1) >= 0:
            changes["left"] = left
        if changes and not self._outage.must_skip():
            try:
                await self._loop_client().control(**changes)
            except StoreUnavailable:
                if self._outage.mode == "closed":
                    raise


class RedisAdmission:
    """A request to a `RedisRateLimiter`, made by its `request`: an async context manager, for one use."""

    __slots__ = (
        "_charge",
        "_costs",
        "_ended",
        "_entered",
        "_limiter",
        "_local_stack",
        "_loop",
        "_loop_client",
        "_refund",
        "_timeout",
    )

    def __init__(
        self, limiter: RedisRateLimiter, costs: list[int], timeout: float | None, refund_on_failure: bool
    ) -> None:
        self._limiter, self._costs, self._timeout, self._refund = limiter, costs, timeout, refund_on_failure
        self._entered = self._ended = False
        self._charge: AdmittedRequest | None = None
        self._local_stack: AsyncExitStack | None = None  # set if the request was admitted while the server was away
        self._loop_client: LoopClient
        self._loop: object

    @property
    def costs(self) -> dict[str, int]:
        """The charged costs, by the name of the limit."""
        return dict(zip(self._limiter._limiter_config.names, self._costs, strict=True))

    @property
    def waited(self) -> float:
        """Seconds that the request waited."""
        charge = self._charge
        return 0.0 if charge is None or charge.waited is None else charge.waited

    def settle(self, **costs: int) -> None:
        """Replace the estimated costs by the real ones; inside the block or after it, and any number of times.

        A lower cost is refunded, except for the part that time has paid off already. A higher cost is owed, without a
        bound, and later requests wait for it. The server is told at the end of the block, or soon if the block has
        ended.

        Args:
            **costs: the total costs, whole numbers, by the name of the limit. Costs that are not named stay as they
                are.

        Raises:
            TypeError: a cost is not a whole number, or no limit has this name.
            ValueError: a cost is negative.
            RuntimeError: the request was not admitted.
        """
        if self._charge is None and self._local_stack is None:
            raise RuntimeError("a request settles once it was let through: call this inside `async with`, or after it")
        self._costs = order_costs(self._limiter, self._limiter._limiter_config.names, costs, self.costs)
        self._refund = False
        charge = self._charge
        if charge is not None:
            charge.costs = self._costs
            if self._ended and running_loop() is self._loop:
                self._loop_client.settle_later(charge)
            elif self._ended:
                call_in_loop(self._loop, self._loop_client.settle_later, charge)

    async def __aenter__(self) -> RedisAdmission:
        if self._entered:
            raise RuntimeError("this request was made already: call `request` once for each `async with`")
        self._entered = True
        limiter = self._limiter
        self._loop = running_loop()
        self._loop_client = limiter._loop_client()
        if not limiter._outage.must_skip():
            try:
                self._charge = await self._loop_client.enter(self._costs, self._timeout)
            except ServerAway:
                pass
            except WouldExceedTimeout as error:
                raise TimeoutError(self._timeout_error(error.wait)) from None
            else:
                return self
        self._local_stack = stack = AsyncExitStack()

        async def enter(local: RateLimiter) -> None:
            costs = (min(cost, meter.max_cost) for cost, meter in zip(self._costs, local._all_meters, strict=False))
            admission = Admission(local, (*costs, 1), self._timeout, refund_on_failure=False)
            await stack.enter_async_context(admission)

        await limiter._admit_without(enter)
        return self

    def _timeout_error(self, wait: int) -> str:
        limiter = self._limiter
        shown = ", ".join(f"{name}={cost}" for name, cost in self.costs.items() if cost) or "a request"
        earliest = "when others give something back" if wait >= NEVER else f"in {wait / MICROSECONDS:.3g} s"
        return f"{limiter!r} has no room within {self._timeout} s for {shown}: its turn comes {earliest}"

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the request, and tell the server the settled costs. A checkpoint if the server must be told.

        It cannot be cancelled here. It waits for the server for a second at most; after that, the server is told in the
        background.
        """
        self._ended = True
        if self._local_stack is not None:
            await self._local_stack.aclose()
        charge = self._charge
        if charge is not None:
            if self._refund and kind is not None:
                self._costs = [0] * len(self._costs)
            charge.costs, charge.ended = self._costs, True
            await self._loop_client.settle(charge)
