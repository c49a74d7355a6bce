"""A limiter over Redis with several limits that are charged together: requests, tokens, and how many are under way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from types import TracebackType

from cuelight._text import safe_repr
from cuelight.coordination import Admission, RateLimitConfig, RateLimiter
from cuelight.coordination._limit_headers import read_headers
from cuelight.coordination._limit_line import jittered
from cuelight.coordination._limit_meter import check_timeout, check_whole
from cuelight.coordination._limit_request import (
    USUAL,
    Requesting,
    check_costs,
    check_limits,
    check_named,
    order_costs,
)
from cuelight.errors import StoreUnavailable
from cuelight.mailbox import call_in_loop, running_loop
from cuelight.redis._client import DEFAULT_URL, Server
from cuelight.redis._limits._calls import Away
from cuelight.redis._limits._charge import Charge
from cuelight.redis._limits._desk import EVER, MICROSECONDS, Desk, TooLate
from cuelight.redis._limits._limiter import RedisLimiter, in_seconds
from cuelight.redis._limits._outage import OnOutage
from cuelight.redis._limits._plan import Algorithm

__all__ = ["RedisAdmission", "RedisRateLimiter"]


class RedisRateLimiter(RedisLimiter[RateLimiter], Requesting):
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

    A request is let through when all limits allow it, and charged in all or in none, in the order in which they came
    from all processes. It is `RateLimiter` over Redis; what asks the server is to be awaited here. It may be used from
    several event loops and threads at once.

    A permit of `concurrency` is held by a lease that this process renews. When a process dies, its permits come free
    within its lease and a third. One that is stopped for longer (or whose loop is blocked) is not counted meanwhile,
    and counted again as soon as it goes on: so long, more may be under way than allowed.
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
        """Make one; the server is asked for the first time with the first request.

        Args:
            name: the same for all that share the limits.
            redis_url: where the server is, if no `server` is given; limiters with the same URL share a client.
            server: a `RedisClient`, or another `Server`; it stays open when the limiter is closed.
            concurrency: how many requests may be under way at once, in all processes; None for any number.
            algorithm: how the limits are counted: as `RedisTokenBucket` does, or as `RedisSlidingWindow` does with a
                log or with counters.
            prefix: keeps the keys of one application apart from others on the same server.
            lease: seconds after which a process that says nothing any more is taken for dead.
            on_outage: what becomes of requests while the server is away: "closed" raises `StoreUnavailable`, "open"
                lets them through uncounted, "local" has each process count for itself.
            outage_after: seconds after which a server that does not answer is taken to be away; not for "closed".
            local_share: with "local", the share of the limits that this process may use then, at most 1.
            **limits: by name. A limit called `requests` is charged 1 for each request, unless it says otherwise.

        Raises:
            TypeError: a limit is no `RateLimitConfig`.
            ValueError: there is no limit at all, or something cannot be what it is.
        """
        check_limits(self, algorithm, concurrency, limits)

        def local(scaled: Callable[[RateLimitConfig], RateLimitConfig], share: float) -> RateLimiter:
            some = None if concurrency is None else max(1, int(concurrency * share))
            shares = {limit: scaled(config) for limit, config in limits.items()}
            return RateLimiter(concurrency=some, algorithm=algorithm, clock=None, **shares)

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
        if self._plan.permits:
            shown.append(f"{self._plan.permits} at once")
        return f"<RedisRateLimiter {self.name!r} {', '.join(shown)} on {self._server.name}>"

    def request(self, *, timeout: float | None = None, refund_on_failure: bool = False, **costs: int) -> RedisAdmission:
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
        return RedisAdmission(self, self._costs(costs), timeout, refund_on_failure)

    def _costs(self, given: Mapping[str, int]) -> list[int]:
        plan = self._plan
        costs = order_costs(self, plan.names, given, USUAL)
        check_costs(self, plan.names, costs, (plan.most(index) for index in range(len(costs))))
        return costs

    async def retry_after(self, **costs: int) -> float:
        """Seconds until such a request could go, if nobody leaves or comes first; 0.0 if it could now. A checkpoint.

        It is inf while that depends on when others end.

        Args:
            **costs: as for `request`.

        Raises:
            StoreUnavailable: the server does not answer.
            TypeError: as `request` does.
            ValueError: as `request` does.
        """
        return in_seconds((await self._desk().look(self._costs(costs)))["wait"])

    async def remaining(self) -> dict[str, int]:
        """What is left of each limit to be let through at once, by name; with `concurrency`, if that is limited.

        A checkpoint.

        Raises:
            StoreUnavailable: the server does not answer.
        """
        answer = await self._desk().look([0] * len(self._plan.names))
        left = dict(zip(self._plan.names, answer["left"], strict=True))
        if self._plan.permits:
            left["concurrency"] = max(0, self._plan.permits - answer["held"])
        return left

    async def update(self, *, concurrency: int | None = None, **limits: RateLimitConfig) -> None:
        """Change limits for all processes, also for those that wait. What was let through still counts. A checkpoint.

        They stay for 30 days after their last use, whatever the limiters of other processes were made with. A request
        that waits and costs more than a new limit ever lets through goes when nothing is owed there.

        Args:
            concurrency: how many requests may be under way at once; None leaves it as it is. More that are under way
                already may end.
            **limits: by name; those that are not named stay as they are.

        Raises:
            StoreUnavailable: the server does not answer: the limits may have been changed or not.
            TypeError: a limit is no `RateLimitConfig`, or there was none of this name.
            ValueError: the concurrency is less than 1, or was not limited.
        """
        for name, config in limits.items():
            check_named(name, config)
            if name not in self._plan.names:
                raise TypeError(f"{name}={safe_repr(config)}: {self!r} has no limit of this name; make another limiter")
        if concurrency is not None:
            check_whole("concurrency", concurrency, 1)
            if not self._plan.permits:
                raise ValueError(
                    f"concurrency={safe_repr(concurrency)}: {self!r} does not count what is under way; make another"
                )
        await self._desk().look([0] * len(self._plan.names))  # for the limits that others have set
        await self._change(limits, concurrency or self._plan.permits)

    async def observe(self, headers: Mapping[str, str]) -> None:
        """Learn from the headers of an answer, for all processes: to be called for each answer, whatever its status.

        `Retry-After` (seconds or a date) and `retry-after-ms` pause everything, for a day at most.
        `x-ratelimit-remaining-tokens`, `vendor-ratelimit-tokens-remaining` and their like lower what is left of the
        limit of that name (`requests` if they name none) to what the service says, and never raise it.
        A checkpoint, if there is anything to learn.

        Args:
            headers: names, in upper or lower case, and values. What is not understood is left alone.

        Raises:
            StoreUnavailable: the server does not answer, and `on_outage` is "closed".
        """
        if self._local is not None:
            self._local.observe(headers)
        seen = read_headers(headers)
        left = [seen.remaining.get(name, -1) for name in self._plan.names]
        lessons: dict[str, object] = {}
        if seen.retry_after is not None:
            lessons["pause"] = round(jittered(seen.retry_after, 0.1) * MICROSECONDS)
        if max(left, default=-1) >= 0:
            lessons["left"] = left
        if lessons and not self._outage.skips():
            try:
                await self._desk().steer(**lessons)
            except StoreUnavailable:
                if self._outage.mode == "closed":
                    raise


class RedisAdmission:
    """A request to a `RedisRateLimiter`, made by its `request`: an async context manager, for one use."""

    __slots__ = (
        "_charge",
        "_costs",
        "_desk",
        "_entered",
        "_limiter",
        "_loop",
        "_over",
        "_refund",
        "_timeout",
        "_without",
    )

    def __init__(
        self, limiter: RedisRateLimiter, costs: list[int], timeout: float | None, refund_on_failure: bool
    ) -> None:
        self._limiter, self._costs, self._timeout, self._refund = limiter, costs, timeout, refund_on_failure
        self._entered = self._over = False
        self._charge: Charge | None = None
        self._without: AsyncExitStack | None = None  # was let through while the server was away
        self._desk: Desk
        self._loop: object

    @property
    def costs(self) -> dict[str, int]:
        """What it is charged, by the name of the limit."""
        return dict(zip(self._limiter._plan.names, self._costs, strict=True))

    @property
    def waited(self) -> float:
        """Seconds that it waited for its turn."""
        charge = self._charge
        return 0.0 if charge is None or charge.waited is None else charge.waited

    def settle(self, **costs: int) -> None:
        """Say what it really costs, in place of what was said first; within the block or after it, also repeatedly.

        What it cost less is refunded, as far as it was not paid off by time yet. What it cost more is owed, without a
        bound, and those that come later wait for it. Within the block the server is told when the block ends; after it,
        soon.

        Args:
            **costs: by the name of the limit, in all, whole numbers. What is not named stays as it is.

        Raises:
            TypeError: a cost is no whole number, or there is no limit of this name.
            ValueError: a cost is negative.
            RuntimeError: it was not let through.
        """
        if self._charge is None and self._without is None:
            raise RuntimeError("a request settles once it was let through: call this inside `async with`, or after it")
        self._costs = order_costs(self._limiter, self._limiter._plan.names, costs, self.costs)
        self._refund = False
        charge = self._charge
        if charge is not None:
            charge.costs = self._costs
            if self._over and running_loop() is self._loop:
                self._desk.settle_later(charge)
            elif self._over:
                call_in_loop(self._loop, self._desk.settle_later, charge)

    async def __aenter__(self) -> RedisAdmission:
        if self._entered:
            raise RuntimeError("this request was made already: call `request` once for each `async with`")
        self._entered = True
        limiter = self._limiter
        self._loop = running_loop()
        self._desk = limiter._desk()
        if not limiter._outage.skips():
            try:
                self._charge = await self._desk.enter(self._costs, self._timeout)
            except Away:
                pass
            except TooLate as late:
                raise TimeoutError(self._too_late(late.wait)) from None
            else:
                return self
        self._without = stack = AsyncExitStack()

        async def enter(local: RateLimiter) -> None:
            costs = (min(cost, meter.most) for cost, meter in zip(self._costs, local._each, strict=False))
            admission = Admission(local, (*costs, 1), self._timeout, refund_on_failure=False)
            await stack.enter_async_context(admission)

        await limiter._without(enter)
        return self

    def _too_late(self, wait: int) -> str:
        limiter = self._limiter
        shown = ", ".join(f"{name}={cost}" for name, cost in self.costs.items() if cost) or "a request"
        earliest = "when others give something back" if wait >= EVER else f"in {wait / MICROSECONDS:.3g} s"
        return f"{limiter!r} has no room within {self._timeout} s for {shown}: its turn comes {earliest}"

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give back its place among those under way, and tell the server what was settled. A checkpoint if it has to.

        It is not cancelled here. It waits for the server for a second at most; after that, the server is told in the
        background.
        """
        self._over = True
        if self._without is not None:
            await self._without.aclose()
        charge = self._charge
        if charge is not None:
            if self._refund and kind is not None:
                self._costs = [0] * len(self._costs)
            charge.costs, charge.ended = self._costs, True
            await self._desk.settle(charge)
