"""Limiters over Redis with one limit: a token bucket, a leaky bucket and a sliding window.

With `chunk`, a loop takes units from the server at once, to spend them without asking it.

Invariants:
1. Prefetched units were charged on the server, and are no more than a chunk. So in any span of time all processes
   together admit the limit at most, plus a chunk for each loop that has prefetched units.
2. Units that are not spent for some time are refunded, except for the part that time has paid off already.
3. In each loop, requests are admitted in the order of arrival.
"""

from __future__ import annotations

import contextvars
from collections.abc import Awaitable, Callable
from typing import Final, Unpack

import anyio

from cuelight._text import safe_repr
from cuelight.coordination import AsyncLeakyBucket, AsyncSlidingWindow, AsyncTokenBucket, Decision, RateLimitConfig
from cuelight.coordination._limiter_queue import YIELD_MASK
from cuelight.coordination._limiters import (
    AcquireMixin,
    SingleLimiter,
    bucket_config,
    check_config,
    check_cost,
    smooth_config,
    window_config,
)
from cuelight.coordination._meters import check_timeout, check_whole
from cuelight.mailbox import Slot, await_until, current_backend, loop_time, new_slot, running_loop
from cuelight.mailbox._backend import yield_now
from cuelight.redis._limits._calls import AdmittedRequest, ServerAway
from cuelight.redis._limits._config import Algorithm
from cuelight.redis._limits._limiter import RedisLimiter, RedisLimiterOptions, in_seconds
from cuelight.redis._limits._loop_client import LoopClient, WouldExceedTimeout

_IDLE: Final = 0.5
"""Seconds without a request after which the rest is refunded; it may take twice as long."""

TakeUnits = Callable[[int, float | None, int], Awaitable[AdmittedRequest | None]]
"""Takes at least the first number of units, within a timeout, and at most the last number of units. Returns None if the
request was admitted without the server.
"""


class PrefetchedUnits:
    """The prefetched units of one limiter in one loop."""

    def __init__(self, loop_client: LoopClient, chunk: int, take: TakeUnits, name: str) -> None:
        self._loop_client, self._chunk, self._take_units, self._name = loop_client, chunk, take, name
        self._lock = anyio.Lock()
        self._charge: AdmittedRequest | None = None
        self._used = self._refunding = False
        self._sleep: Slot | None = None
        self.units = 0

    def spend(self, cost: int) -> bool:
        """Admit a request at once, if there are enough units and no request waits."""
        if not 0 < cost <= self.units or self._lock.locked():
            return False
        self.units -= cost
        self._used = True
        self._loop_client.admitted += 1
        return True

    async def acquire(self, cost: int, timeout: float | None) -> None:
        """Wait until a request is admitted. A checkpoint.

        Raises:
            TimeoutError: its turn does not come in time.
        """
        began, acquired = loop_time(), False
        with anyio.move_on_after(timeout):
            await self._lock.acquire()
            acquired = True
        if not acquired:
            raise TimeoutError(f"{self._name}: others wait for units, longer than {timeout} s")
        left = None if timeout is None else max(0.0, began + timeout - loop_time())
        try:
            if 0 < cost <= self.units:
                self.units -= cost
                self._loop_client.admitted += 1
                return
            charge = await self._take_units(cost - self.units, left, max(cost - self.units, self._chunk))
            if charge is not None:
                self.units += charge.charged[0] - cost
                self._charge = charge
                if self.units:
                    self._refund_later()
        finally:
            self._lock.release()

    def _refund_later(self) -> None:
        self._used = True
        if not self._refunding:
            self._refunding = True
            current_backend().spawn(
                self._refund_when_idle,
                context=contextvars.copy_context(),
                name=f"cuelight prefetched units: {self._name}",
            )

    async def _refund_when_idle(self) -> None:
        try:
            while self.units and self._used:
                self._used = False
                self._sleep = slot = new_slot()
                await await_until(slot, loop_time() + _IDLE)
                self._sleep = None
            await self.refund()
        finally:
            self._refunding, self._sleep = False, None

    async def refund(self) -> None:
        """Refund the units that are left. A checkpoint if there are any."""
        units, charge = self.units, self._charge
        self.units, self._charge = 0, None
        if charge is not None and units:
            # The rest of an older chunk stays charged: it is small, and mostly paid off.
            charge.costs = [max(0, charge.charged[0] - units)]
            await self._loop_client.settle(charge)
        if self._sleep is not None and not self._sleep.done():
            self._sleep.set_result(None)


_NAME = "limit"


class RedisSingleLimiter(RedisLimiter[SingleLimiter], AcquireMixin):
    """The base of the limiters with one limit, for all processes that use the same name on one server.

    They may be used from several event loops and threads at once. `async with limiter:` admits a block at a cost of 1,
    and `@limiter` does so for each call of an async function.
    """

    __slots__ = ("_chunk", "_prefetched")

    def __init__(  # noqa: PLR0917 - called only by subclasses in this package
        self,
        name: str,
        algorithm: Algorithm,
        config: RateLimitConfig,
        local: Callable[[RateLimitConfig], SingleLimiter],
        chunk: int | None,
        options: RedisLimiterOptions,
    ) -> None:
        super().__init__(name, algorithm, {_NAME: config}, None, lambda scaled, _: local(scaled(config)), options)
        if chunk is not None:
            check_whole("chunk", chunk, 1)
            if chunk > self._limiter_config.max_cost(0):
                raise ValueError(
                    f"chunk={safe_repr(chunk)}: {self!r} never lets more than {self._limiter_config.max_cost(0)} "
                    "through at once"
                )
        self._chunk = chunk
        self._prefetched: dict[LoopClient, PrefetchedUnits] = {}

    def __repr__(self) -> str:
        config = self.config
        burst = "" if config.burst_size is None else f", burst {config.burst_size}"
        return (
            f"<{type(self).__name__} {self.name!r} {config.max_requests} in {config.window_seconds:g} s{burst} "
            f"on {self._server.name}>"
        )

    @property
    def config(self) -> RateLimitConfig:
        """The limit, as far as this process knows it: a limit set by another process arrives with the next answer."""
        return self._limits[_NAME]

    async def acquire(self, cost: int = 1, timeout: float | None = None) -> None:
        """Wait until a request is admitted, in the order of the calls of all processes. A checkpoint.

        If it raises, also because of a cancellation, nothing was charged, or the charge is refunded. A request whose
        process dies while it waits may be charged, if it is admitted before the lease of the process ends.

        Args:
            cost: the cost of the request, a whole number. A request of cost 0 waits for its turn and for the end of a
                pause.
            timeout: seconds to wait; None waits without limit. If its turn would come too late, it raises at once.

        Raises:
            StoreRefused: the server has data of another kind under this name.
            StoreUnavailable: the server is away, and `on_outage` is "closed".
            TimeoutError: its turn would not come, or did not come, in time.
            TypeError: the cost is not a whole number.
            ValueError: the cost is negative, or more than is ever admitted at once; or the timeout is negative.
        """
        self._check_cost(cost)
        check_timeout(timeout)
        if self._chunk is None:
            await self._take_units(cost, timeout)
            return
        prefetched = self._prefetched_here(self._chunk)
        if self._loop_client().admitted & YIELD_MASK == YIELD_MASK:
            await yield_now()
        if not prefetched.spend(cost):
            await prefetched.acquire(cost, timeout)

    async def _take_units(self, cost: int, timeout: float | None, at_most: int | None = None) -> AdmittedRequest | None:
        if not self._outage.must_skip():
            try:
                return await self._loop_client().enter([cost], timeout, at_most)
            except ServerAway:
                pass
            except WouldExceedTimeout as error:
                wait = in_seconds(error.wait)
                raise TimeoutError(
                    f"{self!r} has no room within {timeout} s for a cost of {cost}: its turn comes in {wait:.3g} s"
                ) from None
        await self._admit_without(lambda limiter: limiter.acquire(min(cost, limiter._meter.max_cost), timeout))
        return None

    def _prefetched_here(self, chunk: int) -> PrefetchedUnits:
        loop_client = self._loop_client()
        prefetched = self._prefetched.get(loop_client)
        if prefetched is None:
            self._prefetched = {
                known: it for known, it in self._prefetched.items() if known in self._loop_clients.values()
            }
            prefetched = self._prefetched[loop_client] = PrefetchedUnits(
                loop_client, chunk, self._take_units, self.name
            )
        return prefetched

    async def try_acquire(self, cost: int = 1) -> Decision:
        """Admit a request now, or return when it could be admitted. A checkpoint. It does not overtake waiting
        requests.

        Args:
            cost: the cost of the request, a whole number.

        Raises:
            StoreRefused: the server has data of another kind under this name.
            StoreUnavailable: the server is away, and `on_outage` is "closed".
            TypeError: the cost is not a whole number.
            ValueError: the cost is negative, or more than is ever admitted at once.
        """
        self._check_cost(cost)
        if self._chunk is not None:
            prefetched = self._prefetched_here(self._chunk)
            if prefetched.spend(cost):
                return Decision(True, 0.0, prefetched.units, 0.0)
        if not self._outage.must_skip():
            try:
                answer = await self._loop_client().attempt([cost])
            except ServerAway:
                pass
            else:
                wait = 0.0 if answer["granted"] else in_seconds(answer["wait"])
                return Decision(answer["granted"], wait, answer["left"][0], max(wait, in_seconds(answer["unused"])))
        if self._local is None:
            self._uncounted += 1
            return Decision(True, 0.0, self._limiter_config.max_cost(0), 0.0)
        decision = self._local.try_acquire(min(cost, self._local._meter.max_cost))
        self._uncounted += decision.allowed
        return decision

    async def update(self, config: RateLimitConfig) -> None:
        """Change the limit for all processes, for waiting requests too. A checkpoint.

        Requests that were admitted still count. The limit stays for 30 days after its last use, whatever limit other
        processes gave to their limiters. A waiting request that costs more than the limit ever admits is admitted when
        nothing is owed.

        Args:
            config: the new limit.

        Raises:
            StoreUnavailable: the server does not answer; the limit may or may not have been changed.
            TypeError: `config` is not a limit.
            ValueError: this kind of limiter does not accept its `burst_size`.
        """
        await self._change({_NAME: self._normal(config)}, 0)

    @staticmethod
    def _normal(config: RateLimitConfig) -> RateLimitConfig:
        """Check a limit and convert it for this kind of limiter."""
        check_config(config)
        return config

    async def aclose(self) -> None:
        """Refund the prefetched units, and close as `RedisRateLimiter.aclose` does. A checkpoint."""
        own_client = self._loop_clients.get(running_loop())
        if own_client is not None and own_client in self._prefetched:
            await self._prefetched[own_client].refund()
        await super().aclose()

    def _check_cost(self, cost: int) -> None:
        check_cost(self, cost, self._limiter_config.max_cost(0))


class RedisTokenBucket(RedisSingleLimiter):
    """A limit on average, with bursts, for all processes: `RedisTokenBucket("mail", RateLimitConfig(100, 60))`.

    In any t seconds of the server's clock, the admitted requests cost at most
    `burst + t * max_requests / window_seconds`. See `AsyncTokenBucket`, which is the same in one process.

    With `chunk`, each event loop takes that many units from the server at once and spends them without asking again.
    This is for rates beyond those that a server can count one by one. All loops together may then admit one more chunk
    for each loop, and units that one loop has taken are not available to the others. Units that are not spent for half
    a second are refunded.
    """

    __slots__ = ()

    def __init__(
        self,
        name: str,
        rate: RateLimitConfig | float,
        capacity: int | None = None,
        *,
        chunk: int | None = None,
        **options: Unpack[RedisLimiterOptions],
    ) -> None:
        """Create the limiter; the server is asked for the first time with the first request.

        Args:
            name: the same name for all processes that share the limit.
            rate: the limit, or a number of units per second.
            capacity: only with a number per second: the units that are admitted at once; None for the units of one
                second.
            chunk: the number of units to take at once; None for the cost of each request.
            **options: see `RedisLimiterOptions`: `redis_url` or `server`, `on_outage`, ...

        Raises:
            TypeError: a limit was given together with a capacity, or a value is neither a limit nor a number.
            ValueError: a number is not more than 0, or the chunk is more than the burst.
        """
        config = bucket_config(rate, capacity)
        super().__init__(name, "token_bucket", config, AsyncTokenBucket, chunk, options)


class RedisLeakyBucket(RedisSingleLimiter):
    """Evenly spaced requests, for all processes: a token bucket that holds one. See `AsyncLeakyBucket`."""

    __slots__ = ()

    def __init__(self, name: str, config: RateLimitConfig, **options: Unpack[RedisLimiterOptions]) -> None:
        """Create the limiter; the server is asked for the first time with the first request.

        Args:
            name: the same name for all processes that share the limit.
            config: the limit; its `burst_size` is None or 1.
            **options: see `RedisLimiterOptions`: `redis_url` or `server`, `on_outage`, ...

        Raises:
            TypeError: `config` is not a limit.
            ValueError: the limit has another `burst_size`.
        """
        super().__init__(name, "token_bucket", smooth_config(config), AsyncLeakyBucket, None, options)

    @staticmethod
    def _normal(config: RateLimitConfig) -> RateLimitConfig:
        return smooth_config(config)


class RedisSlidingWindow(RedisSingleLimiter):
    """A limit for each window, for all processes: `RedisSlidingWindow("mail", RateLimitConfig(100, 60))`.

    The server keeps a log of the admitted requests, up to `max_requests` entries of about 100 bytes. With `exact=False`
    it keeps two numbers instead, with a weaker guarantee. See `AsyncSlidingWindow`, which is the same in one process.
    """

    __slots__ = ()

    def __init__(
        self,
        name: str,
        limit: RateLimitConfig | int,
        window_seconds: float | None = None,
        *,
        exact: bool = True,
        **options: Unpack[RedisLimiterOptions],
    ) -> None:
        """Create the limiter; the server is asked for the first time with the first request.

        Args:
            name: the same name for all processes that share the limit.
            limit: the limit, or a number of units in a window.
            window_seconds: only with a number of units: the window, in seconds.
            exact: whether to keep a log; otherwise two counters.
            **options: see `RedisLimiterOptions`: `redis_url` or `server`, `on_outage`, ...

        Raises:
            TypeError: a limit was given together with a window, a number without one, or a value of another type.
            ValueError: a number is not more than 0, or the limit has a `burst_size`.
        """
        config = window_config(limit, window_seconds)
        algorithm: Algorithm = "sliding_window" if exact else "sliding_counter"
        super().__init__(name, algorithm, config, lambda it: AsyncSlidingWindow(it, exact=exact), None, options)

    @staticmethod
    def _normal(config: RateLimitConfig) -> RateLimitConfig:
        check_config(config)
        return window_config(config)
