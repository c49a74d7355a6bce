"""What all limiters over Redis share: their desks, pauses, statistics, and what they do without their server."""

from __future__ import annotations

import math
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Generic, TypedDict, TypeVar

from cuelight._text import safe_repr
from cuelight.coordination import LimiterStatistics, RateLimitConfig
from cuelight.coordination._limit_line import Limiter, jittered
from cuelight.coordination._limit_meter import check_positive
from cuelight.mailbox import call_in_loop, has_ended, running_loop
from cuelight.redis._client import DEFAULT_URL, Server, server_for
from cuelight.redis._limits._desk import EVER, MICROSECONDS, Desk
from cuelight.redis._limits._outage import OnOutage, Outage
from cuelight.redis._limits._plan import Algorithm, Plan, row_of

__all__ = ["Options", "RedisLimiter", "in_seconds"]

L = TypeVar("L", bound=Limiter)


class Options(TypedDict, total=False):
    """What every limiter over Redis can be told.

    Attributes:
        redis_url: where the server is, if no `server` is given; limiters with the same URL share a client.
        server: a `RedisClient`, or another `Server`; it stays open when the limiter is closed.
        prefix: keeps the keys of one application apart from others on the same server.
        lease: seconds after which a process that says nothing any more is taken for dead.
        on_outage: what becomes of requests while the server is away: "closed" raises `StoreUnavailable` when the
            time-out of the client is over; "open" lets them through uncounted; "local" has each process count for
            itself, with `local_share` of the limits.
        outage_after: seconds after which a server that does not answer is taken to be away; not for "closed".
        local_share: the share of the limits that this process may use while the server is away; more than 0 and at
            most 1.
    """

    redis_url: str
    server: Server | None
    prefix: str
    lease: float
    on_outage: OnOutage
    outage_after: float
    local_share: float
    _clock: Callable[[], int] | None


class RedisLimiter(Generic[L]):
    """What the limiters over Redis share. Make one of its subclasses."""

    __slots__ = (
        "__weakref__",
        "_clock",
        "_closed",
        "_desks",
        "_given",
        "_gone",
        "_lease",
        "_local",
        "_lock",
        "_outage",
        "_plan",
        "_revive",
        "_server",
        "_uncounted",
        "name",
    )

    def __init__(  # noqa: PLR0917 - of our own subclasses
        self,
        name: str,
        algorithm: Algorithm,
        limits: Mapping[str, RateLimitConfig],
        concurrency: int | None,
        local: Callable[[Callable[[RateLimitConfig], RateLimitConfig], float], L],
        options: Options,
    ) -> None:
        self.name: Final = name
        share, lease = options.get("local_share", 1.0), options.get("lease", 10.0)
        check_positive("lease", lease, 0.1)
        check_positive("local_share", share)
        if share > 1:
            raise ValueError(f"local_share={safe_repr(share)}: give a share of the limits, at most 1")
        self._given = dict(limits)
        self._lease, self._clock = lease, options.get("_clock")
        rows = {limit: row_of(algorithm, config) for limit, config in limits.items()}
        self._plan = Plan(
            name,
            algorithm,
            rows,
            prefix=options.get("prefix", "cuelight"),
            permits=concurrency or 0,
            lease=lease,
        )
        self._outage = Outage(name, options.get("on_outage", "closed"), options.get("outage_after", 1.0))
        self._local: L | None = None
        if self._outage.mode == "local":
            self._local = local(lambda config: _scaled(config, share), share)
        self._server: Server = server_for(options.get("redis_url", DEFAULT_URL), options.get("server"))
        self._desks: dict[Any, Desk] = {}
        self._gone = _Totals()  # of desks whose loops have ended
        self._lock = threading.Lock()
        self._uncounted = 0
        self._closed = False
        self._revive: Callable[[], None] | None = None

    # Desks.

    def _desk(self) -> Desk:
        """That of the running loop.

        Raises:
            RuntimeError: the limiter is closed, or no loop runs.
        """
        if self._closed:
            raise RuntimeError(f"{self!r} is closed")
        if self._revive is not None:
            revive, self._revive = self._revive, None
            revive()
        loop = running_loop()
        desk = self._desks.get(loop)
        return desk if desk is not None else self._new_desk(loop)

    def _new_desk(self, loop: Any) -> Desk:
        if loop is None:
            raise RuntimeError("no asyncio or trio event loop runs here: call this inside anyio.run(...)")
        desk = Desk(self._server, self._plan, self._lease, self._outage, self._clock)
        with self._lock:
            for other in [other for other in self._desks if _has_ended(other)]:
                self._gone.add(self._desks.pop(other))
            self._desks[loop] = desk
        return desk

    def _retire(self, revive: Callable[[], None]) -> bool:
        """Be forgotten by a `KeyedLimiter`, if nobody uses it: what counts is on the server."""
        if any(desk.busy for desk in self._desks.copy().values()):
            return False
        self._revive = revive
        for loop, desk in self._desks.copy().items():
            call_in_loop(loop, desk.close)
        return True

    async def aclose(self) -> None:
        """Deliver what the server is to know yet, and listen no more. A checkpoint. Its client stays open.

        Requests that are under way in other loops are no longer settled. Nothing can be asked of it after that.
        """
        if self._closed:
            return
        self._closed = True
        here = self._desks.get(running_loop())
        for loop, desk in self._desks.items():
            if desk is not here:
                call_in_loop(loop, desk.close)
        if here is not None:
            await here.aclose()

    # What every limiter can do.

    async def pause_for(self, seconds: float, *, jitter: float = 0.1) -> float:
        """Let nothing through for a while, in all processes: a service said "429, Retry-After". A checkpoint.

        What waits goes on waiting. A pause that ends later already stays. Time goes on: when the pause is over, a token
        bucket has filled up.

        Args:
            seconds: how long.
            jitter: how much longer at random, as a share, so that not all who pause come back in the same moment. Never
                shorter.

        Returns:
            The seconds after which it is over.

        Raises:
            StoreUnavailable: the server does not answer.
            ValueError: a number is negative or infinite.
        """
        seconds = jittered(seconds, jitter)
        if self._local is not None:
            self._local.pause_for(seconds, jitter=0)
        answer = await self._desk().steer(pause=round(seconds * MICROSECONDS))
        return in_seconds(answer["pause"])

    async def resume(self) -> None:
        """End a pause, for all processes. A checkpoint.

        Raises:
            StoreUnavailable: the server does not answer.
        """
        if self._local is not None:
            self._local.resume()
        await self._desk().steer(resume=True)

    async def _change(self, configs: Mapping[str, RateLimitConfig], permits: int) -> None:
        """Set other limits for all: those that are not named stay as they are."""
        plan = self._plan
        given = {name: configs.get(name, config) for name, config in self._limits.items()}
        rows = [row_of(plan.algorithm, config) for config in given.values()]
        numbers = [(config.max_requests, config.window_seconds, config.burst_size or 0) for config in given.values()]
        plan.learn(rows, permits, -1, numbers)  # with the answer comes their version
        await self._desk().steer(limits=[rows, permits, numbers])

    @property
    def _limits(self) -> Mapping[str, RateLimitConfig]:
        """The limits as they are now, as far as is known here."""
        numbers = self._plan.numbers
        if numbers is None:
            return self._given
        return {
            name: RateLimitConfig(most, window, burst or None)
            for name, (most, window, burst) in zip(self._given, numbers, strict=True)
        }

    @property
    def away(self) -> bool:
        """Whether the server is taken to be away, so that requests go without it. Always False for "closed"."""
        return self._outage.away

    @property
    def uncounted(self) -> int:
        """Requests that were let through without the server."""
        return self._uncounted

    def statistics(self) -> LimiterStatistics:
        """What this process has done so far, without what was let through while the server was away."""
        with self._lock:
            totals = _Totals()
            totals.add(self._gone)
            for desk in self._desks.values():
                totals.add(desk)
        return LimiterStatistics(totals.admitted, totals.refused, totals.waited, totals.waiting, totals.total_wait)

    async def _without(self, local: Callable[[L], Awaitable[Any]]) -> Any:
        """Let a request through without the server."""
        self._uncounted += 1
        return None if self._local is None else await local(self._local)


class _Totals:
    """What several desks have done."""

    def __init__(self) -> None:
        self.admitted = self.refused = self.waited = self.waiting = 0
        self.total_wait = 0.0

    def add(self, other: Desk | _Totals) -> None:
        """Add what another has done."""
        self.admitted += other.admitted
        self.refused += other.refused
        self.waited += other.waited
        self.waiting += other.waiting
        self.total_wait += other.total_wait


def _has_ended(loop: Any) -> bool:
    closed = getattr(loop, "is_closed", None)
    return bool(closed()) if closed is not None else has_ended(loop)


def _scaled(config: RateLimitConfig, share: float) -> RateLimitConfig:
    """A share of a limit: at least 1."""
    burst = None if config.burst_size is None else max(1, int(config.burst_size * share))
    return RateLimitConfig(max(1, int(config.max_requests * share)), config.window_seconds, burst)


def in_seconds(microseconds: int) -> float:
    """Seconds; inf for a time that does not come."""
    return math.inf if microseconds >= EVER else microseconds / MICROSECONDS
