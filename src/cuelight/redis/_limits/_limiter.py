"""The base of all limiters over Redis: clients of event loops, pauses, statistics, and outages of the server."""

from __future__ import annotations

import math
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Generic, TypedDict, TypeVar

from cuelight._text import safe_repr
from cuelight.coordination import LimiterStatistics, RateLimitConfig
from cuelight.coordination._limiter_queue import QueuedLimiter, jittered
from cuelight.coordination._meters import check_positive
from cuelight.mailbox import call_in_loop, has_ended, running_loop
from cuelight.redis._client import DEFAULT_URL, Server, server_for
from cuelight.redis._limits._calls import OnOutage, OutagePolicy
from cuelight.redis._limits._config import Algorithm, LimiterConfig, row_of
from cuelight.redis._limits._loop_client import MICROSECONDS, NEVER, LoopClient

L = TypeVar("L", bound=QueuedLimiter)


class RedisLimiterOptions(TypedDict, total=False):
    """The options of all limiters over Redis.

    Attributes:
        redis_url: the URL of the server, if no `server` is given; limiters with the same URL share a client.
        server: a `RedisClient`, or another `Server`; it stays open when the limiter is closed.
        prefix: separates the keys of one application from others on the same server.
        lease: seconds without a message after which a process is considered dead.
        on_outage: the handling of requests while the server is away: "closed" raises `StoreUnavailable` after the
            timeout of the client; "open" admits them without counting; with "local" each process counts for itself,
            with `local_share` of the limits.
        outage_after: seconds without an answer after which the server is considered away; not used with "closed".
        local_share: the share of the limits that this process may use while the server is away; more than 0 and at most
            1.
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
    """The base of the limiters over Redis. Create one of its subclasses."""

    __slots__ = (
        "__weakref__",
        "_clock",
        "_closed",
        "_ended_totals",
        "_given",
        "_lease",
        "_limiter_config",
        "_local",
        "_lock",
        "_loop_clients",
        "_outage",
        "_restore",
        "_server",
        "_uncounted",
        "name",
    )

    def __init__(  # noqa: PLR0917 - called only by subclasses in this package
        self,
        name: str,
        algorithm: Algorithm,
        limits: Mapping[str, RateLimitConfig],
        concurrency: int | None,
        local: Callable[[Callable[[RateLimitConfig], RateLimitConfig], float], L],
        options: RedisLimiterOptions,
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
        self._limiter_config = LimiterConfig(
            name,
            algorithm,
            rows,
            prefix=options.get("prefix", "cuelight"),
            permits=concurrency or 0,
            lease=lease,
        )
        self._outage = OutagePolicy(name, options.get("on_outage", "closed"), options.get("outage_after", 1.0))
        self._local: L | None = None
        if self._outage.mode == "local":
            self._local = local(lambda config: _scaled(config, share), share)
        self._server: Server = server_for(options.get("redis_url", DEFAULT_URL), options.get("server"))
        self._loop_clients: dict[Any, LoopClient] = {}
        self._ended_totals = _Totals()  # totals of the clients whose loops have ended
        self._lock = threading.Lock()
        self._uncounted = 0
        self._closed = False
        self._restore: Callable[[], None] | None = None

    # The clients, one for each event loop.

    def _loop_client(self) -> LoopClient:
        """Return the client of the running loop.

        Raises:
            RuntimeError: the limiter is closed, or no loop runs.
        """
        if self._closed:
            raise RuntimeError(f"{self!r} is closed")
        if self._restore is not None:
            restore, self._restore = self._restore, None
            restore()
        loop = running_loop()
        loop_client = self._loop_clients.get(loop)
        return loop_client if loop_client is not None else self._new_loop_client(loop)

    def _new_loop_client(self, loop: Any) -> LoopClient:
        if loop is None:
            raise RuntimeError("no asyncio or trio event loop runs here: call this inside anyio.run(...)")
        loop_client = LoopClient(self._server, self._limiter_config, self._lease, self._outage, self._clock)
        with self._lock:
            for other in [other for other in self._loop_clients if _has_ended(other)]:
                self._ended_totals.add(self._loop_clients.pop(other))
            self._loop_clients[loop] = loop_client
        return loop_client

    def _try_evict(self, restore: Callable[[], None]) -> bool:
        """Agree to be forgotten by a `KeyedLimiter`, if unused. The charges are on the server, so nothing is lost."""
        if any(loop_client.busy for loop_client in self._loop_clients.copy().values()):
            return False
        self._restore = restore
        for loop, loop_client in self._loop_clients.copy().items():
            call_in_loop(loop, loop_client.close)
        return True

    async def aclose(self) -> None:
        """Deliver pending messages to the server, and end the subscriptions. A checkpoint. The client of the server
        stays open.

        Requests that are under way in other loops are no longer settled. Later requests raise `RuntimeError`.
        """
        if self._closed:
            return
        self._closed = True
        own_client = self._loop_clients.get(running_loop())
        for loop, loop_client in self._loop_clients.items():
            if loop_client is not own_client:
                call_in_loop(loop, loop_client.close)
        if own_client is not None:
            await own_client.aclose()

    # The public methods of all limiters.

    async def pause_for(self, seconds: float, *, jitter: float = 0.1) -> float:
        """Admit no requests for some time, in all processes: for example after a response "429, Retry-After". A
        checkpoint.

        Waiting requests go on waiting. A pause that ends later already stays. Time goes on during the pause: at its end
        a token bucket has filled up.

        Args:
            seconds: the length of the pause.
            jitter: the greatest random extension, as a share of `seconds`, so that callers that pause do not all resume
                at the same moment. The pause is never shorter than `seconds`.

        Returns:
            The seconds until the end of the pause.

        Raises:
            StoreUnavailable: the server does not answer.
            ValueError: one of the numbers is negative or infinite.
        """
        seconds = jittered(seconds, jitter)
        if self._local is not None:
            self._local.pause_for(seconds, jitter=0)
        answer = await self._loop_client().control(pause=round(seconds * MICROSECONDS))
        return in_seconds(answer["pause"])

    async def resume(self) -> None:
        """End a pause, for all processes. A checkpoint.

        Raises:
            StoreUnavailable: the server does not answer.
        """
        if self._local is not None:
            self._local.resume()
        await self._loop_client().control(resume=True)

    async def _change(self, configs: Mapping[str, RateLimitConfig], permits: int) -> None:
        """Set new limits for all processes; limits that are not named stay as they are."""
        limiter_config = self._limiter_config
        given = {name: configs.get(name, config) for name, config in self._limits.items()}
        rows = [row_of(limiter_config.algorithm, config) for config in given.values()]
        numbers = [(config.max_requests, config.window_seconds, config.burst_size or 0) for config in given.values()]
        limiter_config.use_limits(rows, permits, -1, numbers)  # the answer contains their version
        await self._loop_client().control(limits=[rows, permits, numbers])

    @property
    def _limits(self) -> Mapping[str, RateLimitConfig]:
        """The current limits, as far as this process knows them."""
        numbers = self._limiter_config.numbers
        if numbers is None:
            return self._given
        return {
            name: RateLimitConfig(max_cost, window, burst or None)
            for name, (max_cost, window, burst) in zip(self._given, numbers, strict=True)
        }

    @property
    def away(self) -> bool:
        """Whether the server is considered away, so that requests are admitted without it; never with "closed"."""
        return self._outage.away

    @property
    def uncounted(self) -> int:
        """The number of requests that were admitted without the server."""
        return self._uncounted

    def statistics(self) -> LimiterStatistics:
        """Return the statistics of this process so far, except for requests admitted while the server was away."""
        with self._lock:
            totals = _Totals()
            totals.add(self._ended_totals)
            for loop_client in self._loop_clients.values():
                totals.add(loop_client)
        return LimiterStatistics(totals.admitted, totals.refused, totals.waited, totals.waiting, totals.total_wait)

    async def _admit_without(self, local: Callable[[L], Awaitable[Any]]) -> Any:
        """Admit a request without the server."""
        self._uncounted += 1
        return None if self._local is None else await local(self._local)


class _Totals:
    """The totals of several clients."""

    def __init__(self) -> None:
        self.admitted = self.refused = self.waited = self.waiting = 0
        self.total_wait = 0.0

    def add(self, other: LoopClient | _Totals) -> None:
        """Add the totals of another client."""
        self.admitted += other.admitted
        self.refused += other.refused
        self.waited += other.waited
        self.waiting += other.waiting
        self.total_wait += other.total_wait


def _has_ended(loop: Any) -> bool:
    closed = getattr(loop, "is_closed", None)
    return bool(closed()) if closed is not None else has_ended(loop)


def _scaled(config: RateLimitConfig, share: float) -> RateLimitConfig:
    """A share of a limit, with at least 1 unit."""
    burst = None if config.burst_size is None else max(1, int(config.burst_size * share))
    return RateLimitConfig(max(1, int(config.max_requests * share)), config.window_seconds, burst)


def in_seconds(microseconds: int) -> float:
    """Convert to seconds; `NEVER` becomes infinity."""
    return math.inf if microseconds >= NEVER else microseconds / MICROSECONDS
