"""The client of one limiter in one event loop. On the server it is a party with a lease.

Invariants:
1. A request that raises has charged nothing, or its charge is refunded: at once, or as soon as the server is back,
   for a minute; after that the charge stays.
2. A message that is sent again carries the same name, so that the server applies it once.
3. A waiting request asks again when the server notifies it, when its turn may have come, and once in a lease. A lost
   notification costs no more than that.
4. A background task runs only while a request waits for long, holds a permit, or has an undelivered message.
"""

from __future__ import annotations

import contextvars
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import anyio

from cuelight._log import get_log
from cuelight.coordination._spread import spread
from cuelight.errors import StoreRefused, StoreUnavailable
from cuelight.mailbox import Slot, await_until, current_backend, loop_time, new_slot
from cuelight.redis._client import Server, Subscription, answer_time, publishing_command
from cuelight.redis._limits._answers import ScriptAnswer
from cuelight.redis._limits._calls import AdmittedRequest, OutagePolicy, PendingUpdates, ScriptCalls
from cuelight.redis._limits._config import LimiterConfig

NEVER: Final = 1 << 52
"""Microseconds: stands for a time that never comes."""

MICROSECONDS: Final = 1_000_000

LONGEST_UNNOTIFIED: Final = 50_000
"""Microseconds: a request that waits no longer than this does not subscribe to notifications, but asks again at the
end.
"""

RETRY_SUBSCRIBE: Final = 0.25
"""Seconds between two attempts of a request that cannot subscribe to notifications."""

ACKNOWLEDGE_AFTER: Final = 32
"""The number of received answers after which the server is told to forget them, all at once, because telling it takes
time.
"""

log = get_log("cuelight.redis")


class WouldExceedTimeout(Exception):
    """The turn of a request does not come in time; `wait` is the time until then in microseconds, or `NEVER`."""

    def __init__(self, wait: int) -> None:
        super().__init__(wait)
        self.wait = wait


class _WaitingRequest:
    """A waiting request: whether the server can notify it, and whether it did."""

    __slots__ = ("notified", "queued", "reachable", "slot")

    def __init__(self) -> None:
        self.slot: Slot | None = None
        self.queued = self.reachable = self.notified = False

    def notify(self) -> None:
        self.notified = True
        if self.slot is not None and not self.slot.done():
            self.slot.set_result(None)


class LoopClient:
    """The client of one limiter in one event loop."""

    def __init__(
        self,
        server: Server,
        limiter_config: LimiterConfig,
        lease: float,
        outage: OutagePolicy,
        clock: Callable[[], int] | None,
    ) -> None:
        self._server, self._lease = server, lease
        self._calls = ScriptCalls(server, limiter_config, outage, clock)
        self._updates = PendingUpdates(self._calls)
        self._number = 0
        self._acknowledged: list[str] = []
        self._waiting_by_name: dict[str, _WaitingRequest] = {}
        self._held: set[str] = set()
        self._known = False  # whether the server has registered this party, though it may have taken it for dead since
        self._maybe_expired = False  # whether the server took this party for dead, so that its permits must be asserted
        self._asserted: set[str] = set()  # permits that a beat may have restored although they have ended
        self._subscription: Subscription | None = None
        self._publish_command: str | None = None  # the command with which scripts publish notifications
        self._subscribing = anyio.Lock()
        self._renewing = False
        self._sleep: Slot | None = None
        self.admitted = self.refused = self.waited = self.waiting = 0
        self.total_wait = 0.0

    @property
    def busy(self) -> bool:
        """Whether a request waits, holds a permit, or has an undelivered message."""
        return bool(self._waiting_by_name or self._held or not self._updates.over)

    async def ask(
        self,
        name: str,
        costs: Sequence[int],
        wait: int,
        *,
        at_most: int | None = None,
        timeout: float | None = None,
    ) -> ScriptAnswer:
        """Ask once for a request to be admitted; asking again is harmless. A checkpoint."""
        acknowledged: list[str] = []
        if len(self._acknowledged) >= ACKNOWLEDGE_AFTER:
            acknowledged, self._acknowledged = self._acknowledged, []
        fields: dict[str, Any] = {
            "id": name,
            "party": self._calls.client_id,
            "costs": costs,
            "wait": wait,
            "got": acknowledged,
            "version": self._calls.limiter_config.version,
        }
        if at_most is not None:
            fields["at_most"] = at_most
        if self._subscription is not None:
            fields["word"] = self._publish_command
        try:
            answer = await self._calls.run_unless_away(self._calls.scripts.ask, fields, timeout)
        except BaseException:
            self._acknowledged += acknowledged
            raise
        if answer["fresh"]:
            if self._known and self._held:
                self._maybe_expired = True
                self._wake_background()
            self._known = True
        return answer

    async def control(self, **fields: Any) -> ScriptAnswer:
        """Pause, resume, change limits, or lower the remaining amounts to those reported by a service. A checkpoint."""
        return await self._calls.run(
            self._calls.scripts.control, {"version": self._calls.limiter_config.version, **fields}
        )

    async def look(self, costs: Sequence[int]) -> ScriptAnswer:
        """Return the remaining amounts, and the time until such a request could be admitted. A checkpoint."""
        return await self._calls.run(
            self._calls.scripts.look, {"costs": costs, "version": self._calls.limiter_config.version}
        )

    # Requests.

    async def enter(self, costs: list[int], timeout: float | None, at_most: int | None = None) -> AdmittedRequest:
        """Wait until a request is admitted. A checkpoint.

        Raises:
            WouldExceedTimeout: it would not be, or was not, admitted in time.
        """
        self._number += 1
        name, began = f"{self._calls.client_id}:{self._number}", time.monotonic()
        # Registered before the first call, because a notification may overtake the answer.
        waiting = self._waiting_by_name[name] = _WaitingRequest()
        try:
            while True:
                longest_wait, limit = NEVER, None
                if timeout is not None and timeout * MICROSECONDS < NEVER:
                    left = began + timeout - time.monotonic()
                    longest_wait, limit = max(0, round(left * MICROSECONDS)), answer_time(timeout, left)
                waiting.reachable = self._subscription is not None
                answer = await self.ask(name, costs, longest_wait, at_most=at_most, timeout=limit)
                if answer["granted"]:
                    return self._admitted(name, answer, time.monotonic() - began if waiting.queued else None)
                if not answer["queued"]:
                    self.refused += 1
                    raise WouldExceedTimeout(answer["wait"])
                self.waiting += not waiting.queued
                waiting.queued = True
                if not longest_wait:
                    self.refused += 1
                    await self._updates.send(partial(self._cancel_on_server, name, costs))
                    raise WouldExceedTimeout(answer["wait"])
                await self._wait(waiting, answer["wait"], longest_wait, limit)
        except BaseException as error:
            await self._refund_failed(error, name, costs)
            raise
        finally:
            del self._waiting_by_name[name]
            self.waiting -= waiting.queued
            self._wake_background()

    async def attempt(self, costs: list[int]) -> ScriptAnswer:
        """Admit a request at once or not at all. A checkpoint."""
        self._number += 1
        name = f"{self._calls.client_id}:{self._number}"
        try:
            answer = await self.ask(name, costs, 0)
        except BaseException as error:
            await self._refund_failed(error, name, costs)
            raise
        if answer["granted"]:
            self._admitted(name, answer, None)
        else:
            self.refused += 1
        return answer

    async def _refund_failed(self, error: BaseException, name: str, costs: Sequence[int]) -> None:
        """Refund the charge, if any, of a request that raises."""
        if isinstance(error, GeneratorExit):
            self._updates.later(partial(self._cancel_on_server, name, costs))
        elif not isinstance(error, WouldExceedTimeout | StoreRefused | ValueError):
            await self._updates.send(partial(self._cancel_on_server, name, costs))

    def _admitted(self, name: str, answer: ScriptAnswer, waited: float | None) -> AdmittedRequest:
        self._acknowledged.append(name)
        self.admitted += 1
        if waited is not None:
            self.waited += 1
            self.total_wait += waited
        if self._calls.limiter_config.permits:
            self._held.add(name)
            self._start_renewing()
        return AdmittedRequest(name, answer["costs"], answer["tickets"], waited, not self._calls.limiter_config.permits)

    async def _wait(self, waiting: _WaitingRequest, wait: int, longest_wait: int, limit: float | None) -> None:
        longest = self._lease * spread.uniform(0.9, 1.0)
        if wait > LONGEST_UNNOTIFIED and not waiting.reachable:
            try:
                await self._subscribe(limit)
            except StoreUnavailable:
                longest = RETRY_SUBSCRIBE  # the next call shows whether the server can be reached again
            else:
                return  # ask again, so that the server knows the command for its notifications
        if waiting.notified:
            waiting.notified = False
            return
        seconds = min(wait / MICROSECONDS, longest)
        if seconds > self._lease / 3:
            self._start_renewing()
        waiting.slot = slot = new_slot()
        try:
            await await_until(slot, loop_time() + min(seconds, longest_wait / MICROSECONDS))
        finally:
            waiting.slot, waiting.notified = None, False

    async def _cancel_on_server(self, name: str, costs: Sequence[int]) -> None:
        await self._calls.run(self._calls.scripts.leave, {"id": name, "costs": costs})

    async def settle(self, charge: AdmittedRequest) -> None:
        """Tell the server the real costs of a request, and that it ended. Does not raise if the server is away."""
        if charge.ended:
            self._held.discard(charge.id)
            self._wake_background()
        if not charge.settled and not charge.busy:
            charge.busy = True
            await self._updates.send(partial(self._settle, charge))

    def settle_later(self, charge: AdmittedRequest) -> None:
        """Settle as `settle` does, in the background."""
        if not charge.settled and not charge.busy:
            charge.busy = True
            self._updates.later(partial(self._settle, charge))

    async def _settle(self, charge: AdmittedRequest) -> None:
        try:
            await self._send_changes(charge)
        except Exception as error:
            charge.busy = isinstance(error, StoreUnavailable)  # in that case the delivery is retried
            raise
        charge.busy = False

    async def _send_changes(self, charge: AdmittedRequest) -> None:
        while not charge.settled:
            attempt = charge.next_attempt()
            answer = await self._calls.run(self._calls.scripts.adjust, attempt)
            charge.answered(answer.get("tickets"))
            if "as" in attempt:
                self._acknowledged.append(attempt["as"])

    # Notifications and the lease.

    async def _subscribe(self, limit: float | None) -> None:
        with anyio.move_on_after(limit):
            async with self._subscribing:
                if self._publish_command is None:
                    self._publish_command = await publishing_command(self._server)
                if self._subscription is None:
                    self._subscription = await self._server.subscribe(
                        self._calls.limiter_config.channel(self._calls.client_id), self._on_message, self._notify_all
                    )
            return
        raise StoreUnavailable(f"{self._server.name} did not begin to tell of changes within {limit:.3g} s")

    def _on_message(self, message: bytes) -> None:
        for name in message.decode("ascii", "replace").split():
            if (waiting := self._waiting_by_name.get(name)) is not None:
                waiting.notify()

    def _notify_all(self) -> None:
        for waiting in self._waiting_by_name.values():
            waiting.notify()

    def _start_renewing(self) -> None:
        if not self._renewing:
            self._renewing = True
            name = f"cuelight lease of a limiter: {self._calls.limiter_config.tag}"
            current_backend().spawn(self._renew_while_needed, context=contextvars.copy_context(), name=name)

    def _wake_background(self) -> None:
        """Wake the task that renews the lease, if it is no longer needed or the server took this party for dead."""
        if (
            self._sleep is not None
            and not self._sleep.done()
            and (self._maybe_expired or not (self._held or self.waiting))
        ):
            self._sleep.set_result(None)

    async def _renew_while_needed(self) -> None:
        """Renew the lease, as long as a request waits or holds a permit."""
        try:
            while self._held or self.waiting or self._asserted:
                if not (self._maybe_expired or self._asserted):
                    self._sleep = slot = new_slot()
                    await await_until(slot, loop_time() + self._lease / 3)
                    self._sleep = None
                    if not (self._held or self.waiting):
                        return
                try:
                    await self._renew()
                except StoreUnavailable:
                    await anyio.sleep(self._lease / 10)
                except Exception:
                    log.exception("limiter %s: its lease is not renewed", self._calls.limiter_config.tag)
                    await anyio.sleep(self._lease / 3)
        finally:
            self._renewing = False
            self._sleep = None

    async def _renew(self) -> None:
        # A beat that is sent again may arrive after the end of a permit that it asserts; the next beat corrects that.
        maybe_expired, self._maybe_expired = self._maybe_expired, False
        held, ended = [*self._held] if maybe_expired else [], [*(self._asserted - self._held)]
        self._asserted.update(held)
        fields = {"party": self._calls.client_id, "held": held, "ended": ended}
        try:
            answer = await self._calls.run(self._calls.scripts.renew, fields)
        except Exception:
            self._maybe_expired = self._maybe_expired or maybe_expired
            raise
        self._asserted = {name for name in self._asserted if name not in self._held}.difference(ended)
        if answer["fresh"] and not maybe_expired:
            self._maybe_expired = True
            self._notify_all()

    async def aclose(self) -> None:
        """Deliver pending messages, for a second at most, and end the subscription. A checkpoint."""
        await self._updates.flush()
        self.close()

    def close(self) -> None:
        """End the subscription."""
        if self._subscription is not None:
            self._subscription.close()
            self._subscription = None
