"""Calls of the limiter scripts by one client ("party"), and the delivery of messages that must not be lost."""

from __future__ import annotations

import contextvars
import math
import secrets
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, Literal, TypeVar, get_args

import anyio
from redis.exceptions import ResponseError

from cuelight._log import get_log
from cuelight._text import safe_repr, safe_str
from cuelight.coordination._meters import check_positive
from cuelight.errors import StoreRefused, StoreUnavailable
from cuelight.mailbox import current_backend, loop_time
from cuelight.redis._client import Script, Server, read_reply
from cuelight.redis._limits._answers import ScriptAnswer, unpack
from cuelight.redis._limits._config import LimiterConfig, Scripts, pack, scripts_of

T = TypeVar("T")

OnOutage = Literal["closed", "open", "local"]
"""The handling of requests while the server is away: they raise `StoreUnavailable`, are admitted without being counted,
or are counted by this process alone.
"""

OUTAGE_MODES: Final = get_args(OnOutage)

RETRY_SERVER: Final = 1.0
"""Seconds between two checks whether the server is back. The first request after that time checks for all."""

log = get_log("cuelight.redis")


class OutagePolicy:
    """Whether the server is considered away. Shared by all loops and threads without a lock: a race costs one check too
    many.

    Attributes:
        mode: the handling of requests while it is away.
    """

    __slots__ = ("_longest_wait", "_name", "_retry_at", "away", "mode")

    def __init__(self, name: str, mode: OnOutage, longest_wait: float) -> None:
        if mode not in OUTAGE_MODES:
            raise ValueError(f"on_outage={safe_repr(mode)}: it is one of {', '.join(OUTAGE_MODES)}")
        check_positive("outage_after", longest_wait)
        self.mode, self.away = mode, False
        self._name, self._longest_wait = name, longest_wait
        self._retry_at = 0.0

    async def call_server(self, call: Callable[[float | None], Awaitable[T]], timeout: float | None) -> T | None:
        """Make a call that waits only for the server. Returns None if the server is away and the mode is not "closed".

        Args:
            call: makes the call, with a timeout in seconds or None for that of the client.
            timeout: seconds that the caller has. If they end before the server is considered away, this request is
                admitted without it, and other requests go on asking.

        Raises:
            StoreUnavailable: the server is away, and the mode is "closed".
        """
        if self.mode == "closed":
            return await call(timeout)
        with anyio.move_on_after(self._longest_wait if timeout is None else min(self._longest_wait, timeout)):
            try:
                result = await call(None)
            except StoreUnavailable:
                pass
            else:
                if self.away:
                    log.warning("limiter %s: its server is back", self._name)
                self.away = False
                return result
        if timeout is not None and timeout < self._longest_wait:
            return None
        if not self.away:
            log.warning("limiter %s: its server is away, requests are %s", self._name, MODE_DESCRIPTIONS[self.mode])
        self.away, self._retry_at = True, time.monotonic() + RETRY_SERVER
        return None

    def must_skip(self) -> bool:
        """Whether a request must not try the server."""
        if not self.away:
            return False
        now = time.monotonic()
        if now < self._retry_at:
            return True
        self._retry_at = now + RETRY_SERVER
        return False


MODE_DESCRIPTIONS: Final = {"open": "let through uncounted", "local": "counted in this process alone"}


LONGEST_DELIVERY: Final = 1.0
"""Seconds that the end of a request waits for the server, before it leaves the delivery to the background."""

SLOW_ANSWER: Final = 0.25
"""Seconds without an answer after which the end of a request no longer waits for the server."""

ANSWER_MEMORY: Final = 90.0
"""Seconds for which the server remembers its answers."""

LONGEST_RETRY: Final = 60.0
"""Seconds for which the delivery of a message is retried."""


class ServerAway(Exception):
    """The server is away, and `on_outage` lets requests be admitted without it."""


class ScriptCalls:
    """The scripts of one limiter, called by one party.

    Attributes:
        party: the name of the party.
        plan: the plan of the limiter.
        scripts: the scripts of its algorithm.
        away: whether the last call did not reach the server.
    """

    def __init__(
        self, server: Server, limiter_config: LimiterConfig, outage: OutagePolicy, clock: Callable[[], int] | None
    ) -> None:
        self._server, self._outage, self._clock = server, outage, clock
        self.limiter_config = limiter_config
        self.scripts: Scripts = scripts_of(limiter_config.algorithm)
        self.client_id = secrets.token_hex(8)
        self._keys = limiter_config.keys(self.client_id)
        self.away = False
        self._keep_at = -math.inf  # when to ask the server again to keep recent answers longer

    async def run(self, script: Script, fields: dict[str, Any], timeout: float | None = None) -> ScriptAnswer:
        """Run a script. A checkpoint.

        Args:
            script: one of `scripts`.
            fields: the arguments of the script.
            timeout: seconds that the caller has; None for the timeout of the client.

        Raises:
            StoreRefused: the state on the server belongs to another kind of limiter, or to a newer version.
            StoreUnavailable: the server does not answer.
            ValueError: a cost is more than is ever admitted.
        """
        limiter_config = self.limiter_config
        began = time.monotonic()
        fields["keep"] = began > self._keep_at
        if self._clock is not None:
            fields["now"] = self._clock()
        try:
            reply = await self._server.run(script, self._keys, (limiter_config.packed, pack(fields)), timeout=timeout)
        except (ResponseError, StoreRefused) as error:
            raise self._translate_error(error) from error
        except BaseException as error:
            # If the caller was cancelled after a wait, its end must not wait again for a server that does not answer.
            if isinstance(error, StoreUnavailable) or time.monotonic() - began > SLOW_ANSWER:
                self.away = True
            raise
        asked, size = f"{script.name!r} of {limiter_config.tag}", len(limiter_config.names)
        answer = read_reply(self._server.name, asked, partial(unpack, script.name, size), reply)
        self.away = False
        if fields["keep"]:
            self._keep_at = began + ANSWER_MEMORY / 4
        if "rows" in answer:
            read_reply(self._server.name, asked, limiter_config.use_limits_of, answer)
        if "error" in answer:
            raise self._refusal(answer)
        return answer

    async def run_unless_away(self, script: Script, fields: dict[str, Any], timeout: float | None) -> ScriptAnswer:
        """Run a script for a request that may be admitted without the server.

        Raises:
            Away: the server is away, and `on_outage` is not "closed".
        """
        answer = await self._outage.call_server(partial(self.run, script, fields), timeout)
        if answer is None:
            self.away = True
            raise ServerAway
        return answer

    def _refusal(self, answer: ScriptAnswer) -> Exception:
        where, error = f"{self.limiter_config.tag} on {self._server.name}", answer["error"]
        if error == "cost":
            index: int = answer.get("limit", 1) - 1
            name, max_cost = self.limiter_config.names[index], self.limiter_config.max_cost(index)
            return ValueError(
                f"{name}: the limits were changed, and never let more than {max_cost} through at once now"
            )
        if error == "other":
            return StoreRefused(
                f"{where} is in use as a limiter of {safe_repr(answer.get('of'))}, and this one is of "
                f"{self.limiter_config.kind!r}: give it another name, or stop using the other one for as long as its "
                "longest window"
            )
        if error == "future":
            return StoreRefused(
                f"{where} is of format {safe_repr(answer.get('format'))}, which this version of cuelight does not "
                "know: update it here"
            )
        return StoreRefused(f"{where} is no state of a limiter: something else wrote to its key; {self._advice}")

    def _translate_error(self, error: Exception) -> StoreRefused:
        where, text = f"{self.limiter_config.tag} on {self._server.name}", safe_str(error)
        if "script" not in text:
            return StoreRefused(f"a call of the limiter {where} was refused: {text}")
        return StoreRefused(f"the state of the limiter {where} is not to be used: {text}; {self._advice}")

    @property
    def _advice(self) -> str:
        return f"delete the keys that begin with {self.limiter_config.tag}, or give the limiter another name"


class PendingUpdates:
    """Delivers messages to the server even if the requests that sent them have been cancelled."""

    def __init__(self, calls: ScriptCalls) -> None:
        self._calls = calls
        self._tag = calls.limiter_config.tag
        self._updates: list[Callable[[], Awaitable[object]]] = []
        self._delivered: anyio.Event | None = None

    @property
    def over(self) -> bool:
        """Whether everything was delivered."""
        return not self._updates

    async def send(self, send: Callable[[], Awaitable[object]]) -> None:
        """Send a message now, shielded from cancellation, if the server is there; otherwise in the background."""
        if not self._calls.away:
            with anyio.CancelScope(shield=True, deadline=loop_time() + LONGEST_DELIVERY):
                try:
                    await send()
                except StoreUnavailable:
                    pass
                except Exception:
                    log.exception("limiter %s: could not settle a request", self._tag)
                    return
                else:
                    return
            self._calls.away = True
        self.later(send)

    def later(self, send: Callable[[], Awaitable[object]]) -> None:
        self._updates.append(send)
        if self._delivered is None:
            self._delivered = anyio.Event()
            current_backend().spawn(
                self._deliver_all,
                self._delivered,
                context=contextvars.copy_context(),
                name=f"cuelight what a limiter owes: {self._tag}",
            )

    async def _deliver_all(self, delivered: anyio.Event) -> None:
        pause, until = 0.05, loop_time() + LONGEST_RETRY
        try:
            while self._updates:
                try:
                    await self._updates[0]()
                except StoreUnavailable as error:
                    if loop_time() > until:
                        log.warning("limiter %s: gave up to settle a request: %s", self._tag, error)
                        self._updates.pop(0)
                    await anyio.sleep(pause)
                    pause = min(1.0, 2 * pause)
                    continue
                except Exception:
                    log.exception("limiter %s: could not settle a request", self._tag)
                self._updates.pop(0)
                pause, until = 0.05, loop_time() + LONGEST_RETRY
        finally:
            delivered.set()
            self._delivered = None

    async def flush(self) -> None:
        """Wait for the delivery of pending messages, for a second at most. A checkpoint."""
        if self._delivered is not None:
            with anyio.move_on_after(LONGEST_DELIVERY):
                await self._delivered.wait()


class AdmittedRequest:
    """An admitted request: the costs charged on the server, and the costs to charge.

    Attributes:
        id: the name of the request.
        costs: the costs to charge.
        charged: the costs that the server has charged.
        tickets: the records that the server needs to change the charge.
        ended: whether the request has ended.
        known_ended: whether the server knows that it has ended.
        attempt: the message that was sent to the server and not answered yet.
        busy: whether a task is about to send a message.
        waited: seconds that the request waited; None if it did not have to.
    """

    __slots__ = (
        "_adjustments",
        "_target",
        "attempt",
        "busy",
        "charged",
        "costs",
        "ended",
        "id",
        "known_ended",
        "tickets",
        "waited",
    )

    def __init__(self, name: str, costs: list[int], tickets: list[Any], waited: float | None, ended: bool) -> None:
        self.id, self.tickets, self.waited = name, tickets, waited
        self.costs = self.charged = costs
        self.ended = self.known_ended = ended
        self.attempt: dict[str, Any] | None = None
        self.busy = False
        self._adjustments = 0
        self._target = self.costs, ended

    @property
    def settled(self) -> bool:
        """Whether the server knows everything."""
        return self.attempt is None and self.costs == self.charged and self.ended == self.known_ended

    def next_attempt(self) -> dict[str, Any]:
        """Return the message for the server. It stays the same until the server has answered."""
        if self.attempt is None:
            self._target = self.costs, self.ended
            self.attempt = {"id": self.id, "was": self.charged, "costs": self.costs, "ended": self.ended}
            if self.costs != self.charged:
                self._adjustments += 1
                self.attempt |= {"as": f"{self.id}/{self._adjustments}", "tickets": self.tickets}
        return self.attempt

    def answered(self, tickets: list[Any] | None) -> None:
        """Record the answer of the server, with new tickets if the costs changed."""
        self.tickets = tickets or self.tickets
        self.charged, self.known_ended = self._target
        self.attempt = None
