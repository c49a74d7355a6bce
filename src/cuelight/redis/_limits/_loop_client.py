"""The client of one limiter in one event loop. The server knows it as a party with a lease.

The invariants:

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
from cuelight.redis._limits._answers import Answer
from cuelight.redis._limits._calls import Calls, Charge, Delivery, Outage
from cuelight.redis._limits._config import Plan

NEVER: Final = 1 << 52
"""Microseconds: stands for a time that never comes."""

MICROSECONDS: Final = 1_000_000

_SHORT: Final = 50_000
"""Microseconds: a request that waits no longer than this does not subscribe to notifications, but asks again at the
end.
"""

_DEAF: Final = 0.25
"""Seconds between two attempts of a request that cannot subscribe to notifications."""

_GOT: Final = 32
"""The number of received answers after which the server is told to forget them, all at once, because telling it takes
time.
"""

log = get_log("cuelight.redis")


class TooLate(Exception):
    """The turn of a request does not come in time; `wait` is the time until then in microseconds, or `NEVER`."""

    def __init__(self, wait: int) -> None:
        super().__init__(wait)
        self.wait = wait


class _Waiting:
    """A waiting request: whether the server can notify it, and whether it did."""

    __slots__ = ("queued", "reachable", "slot", "told")

    def __init__(self) -> None:
        self.slot: Slot | None = None
        self.queued = self.reachable = self.told = False

    def tell(self) -> None:
        self.told = True
        if self.slot is not None and not self.slot.done():
            self.slot.set_result(None)


class Desk:
    """The client of one limiter in one event loop."""

    def __init__(
        self, server: Server, plan: Plan, lease: float, outage: Outage, clock: Callable[[], int] | None
    ) -> None:
        self._server, self._lease = server, lease
        self._calls = Calls(server, plan, outage, clock)
        self._delivery = Delivery(self._calls)
        self._number = 0
        self._got: list[str] = []
        self._entering: dict[str, _Waiting] = {}
        self._held: set[str] = set()
        self._known = False  # whether the server has registered this party, though it may have taken it for dead since
        self._doubt = False  # whether the server took this party for dead, so that its permits must be asserted
        self._asserted: set[str] = set()  # permits that a beat may have restored although they have ended
        self._listening: Subscription | None = None
        self._word: str | None = None  # the command with which scripts publish notifications
        self._listener = anyio.Lock()
        self._beating = False
        self._rest: Slot | None = None
        self.admitted = self.refused = self.waited = self.waiting = 0
        self.total_wait = 0.0

    @property
    def busy(self) -> bool:
        """Whether a request waits, holds a permit, or has an undelivered message."""
        return bool(self._entering or self._held or not self._delivery.over)

    async def ask(
        self,
        name: str,
        costs: Sequence[int],
        wait: int,
        *,
        at_most: int | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """Ask once for a request to be admitted; asking again is harmless. A checkpoint."""
        got: list[str] = []
        if len(self._got) >= _GOT:
            got, self._got = self._got, []
        fields: dict[str, Any] = {
            "id": name,
            "party": self._calls.party,
            "costs": costs,
            "wait": wait,
            "got": got,
            "version": self._calls.plan.version,
        }
        if at_most is not None:
            fields["at_most"] = at_most
        if self._listening is not None:
            fields["word"] = self._word
        try:
            answer = await self._calls.run_or_not(self._calls.scripts.ask, fields, timeout)
        except BaseException:
            self._got += got
            raise
        if answer["fresh"]:
            if self._known and self._held:
                self._doubt = True
                self._stir()
            self._known = True
        return answer

    async def steer(self, **fields: Any) -> Answer:
        """Pause, resume, change limits, or lower the remaining amounts to those reported by a service. A checkpoint."""
        return await self._calls.run(self._calls.scripts.steer, {"version": self._calls.plan.version, **fields})

    async def look(self, costs: Sequence[int]) -> Answer:
        """Return the remaining amounts, and the time until such a request could be admitted. A checkpoint."""
        return await self._calls.run(self._calls.scripts.look, {"costs": costs, "version": self._calls.plan.version})

    # Requests.

    async def enter(self, costs: list[int], timeout: float | None, at_most: int | None = None) -> Charge:
        """Wait until a request is admitted. A checkpoint.

        Raises:
            TooLate: it would not be, or was not, admitted in time.
        """
        self._number += 1
        name, began = f"{self._calls.party}:{self._number}", time.monotonic()
        waiting = self._entering[name] = (
            _Waiting()
        )  # registered before the first call, because a notification may overtake the answer
        try:
            while True:
                patience, limit = NEVER, None
                if timeout is not None and timeout * MICROSECONDS < NEVER:
                    left = began + timeout - time.monotonic()
                    patience, limit = max(0, round(left * MICROSECONDS)), answer_time(timeout, left)
                waiting.reachable = self._listening is not None
                answer = await self.ask(name, costs, patience, at_most=at_most, timeout=limit)
                if answer["granted"]:
                    return self._let_through(name, answer, time.monotonic() - began if waiting.queued else None)
                if not answer["queued"]:
                    self.refused += 1
                    raise TooLate(answer["wait"])
                self.waiting += not waiting.queued
                waiting.queued = True
                if not patience:
                    self.refused += 1
                    await self._delivery.send(partial(self._leave, name, costs))
                    raise TooLate(answer["wait"])
                await self._wait(waiting, answer["wait"], patience, limit)
        except BaseException as error:
            await self._withdraw(error, name, costs)
            raise
        finally:
            del self._entering[name]
            self.waiting -= waiting.queued
            self._stir()

    async def attempt(self, costs: list[int]) -> Answer:
        """Admit a request at once or not at all. A checkpoint."""
        self._number += 1
        name = f"{self._calls.party}:{self._number}"
        try:
            answer = await self.ask(name, costs, 0)
        except BaseException as error:
            await self._withdraw(error, name, costs)
            raise
        if answer["granted"]:
            self._let_through(name, answer, None)
        else:
            self.refused += 1
        return answer

    async def _withdraw(self, error: BaseException, name: str, costs: Sequence[int]) -> None:
        """Refund the charge, if any, of a request that raises."""
        if isinstance(error, GeneratorExit):
            self._delivery.later(partial(self._leave, name, costs))
        elif not isinstance(error, TooLate | StoreRefused | ValueError):
            await self._delivery.send(partial(self._leave, name, costs))

    def _let_through(self, name: str, answer: Answer, waited: float | None) -> Charge:
        self._got.append(name)
        self.admitted += 1
        if waited is not None:
            self.waited += 1
            self.total_wait += waited
        if self._calls.plan.permits:
            self._held.add(name)
            self._beat()
        return Charge(name, answer["costs"], answer["tickets"], waited, not self._calls.plan.permits)

    async def _wait(self, waiting: _Waiting, wait: int, patience: int, limit: float | None) -> None:
        longest = self._lease * spread.uniform(0.9, 1.0)
        if wait > _SHORT and not waiting.reachable:
            try:
                await self._listen(limit)
            except StoreUnavailable:
                longest = _DEAF  # the next call shows whether the server can be reached again
            else:
                return  # ask again, so that the server knows the command for its notifications
        if waiting.told:
            waiting.told = False
            return
        seconds = min(wait / MICROSECONDS, longest)
        if seconds > self._lease / 3:
            self._beat()
        waiting.slot = slot = new_slot()
        try:
            await await_until(slot, loop_time() + min(seconds, patience / MICROSECONDS))
        finally:
            waiting.slot, waiting.told = None, False

    async def _leave(self, name: str, costs: Sequence[int]) -> None:
        await self._calls.run(self._calls.scripts.leave, {"id": name, "costs": costs})

    async def settle(self, charge: Charge) -> None:
        """Tell the server the real costs of a request, and that it ended. Does not raise if the server is away."""
        if charge.ended:
            self._held.discard(charge.id)
            self._stir()
        if not charge.settled and not charge.busy:
            charge.busy = True
            await self._delivery.send(partial(self._settle, charge))

    def settle_later(self, charge: Charge) -> None:
        """Settle as `settle` does, in the background."""
        if not charge.settled and not charge.busy:
            charge.busy = True
            self._delivery.later(partial(self._settle, charge))

    async def _settle(self, charge: Charge) -> None:
        try:
            await self._tell(charge)
        except Exception as error:
            charge.busy = isinstance(error, StoreUnavailable)  # in that case the delivery is retried
            raise
        charge.busy = False

    async def _tell(self, charge: Charge) -> None:
        while not charge.settled:
            attempt = charge.next_attempt()
            answer = await self._calls.run(self._calls.scripts.amend, attempt)
            charge.succeeded(answer.get("tickets"))
            if "as" in attempt:
                self._got.append(attempt["as"])

    # Notifications and the lease.

    async def _listen(self, limit: float | None) -> None:
        with anyio.move_on_after(limit):
            async with self._listener:
                if self._word is None:
                    self._word = await publishing_command(self._server)
                if self._listening is None:
                    self._listening = await self._server.subscribe(
                        self._calls.plan.channel(self._calls.party), self._hear, self._tell_all
                    )
            return
        raise StoreUnavailable(f"{self._server.name} did not begin to tell of changes within {limit:.3g} s")

    def _hear(self, message: bytes) -> None:
        for name in message.decode("ascii", "replace").split():
            if (waiting := self._entering.get(name)) is not None:
                waiting.tell()

    def _tell_all(self) -> None:
        for waiting in self._entering.values():
            waiting.tell()

    def _beat(self) -> None:
        if not self._beating:
            self._beating = True
            name = f"cuelight lease of a limiter: {self._calls.plan.tag}"
            current_backend().spawn(self._keep_alive, context=contextvars.copy_context(), name=name)

    def _stir(self) -> None:
        """Wake the task that renews the lease, if it is no longer needed or the server took this party for dead."""
        if self._rest is not None and not self._rest.done() and (self._doubt or not (self._held or self.waiting)):
            self._rest.set_result(None)

    async def _keep_alive(self) -> None:
        """Renew the lease, as long as a request waits or holds a permit."""
        try:
            while self._held or self.waiting or self._asserted:
                if not (self._doubt or self._asserted):
                    self._rest = slot = new_slot()
                    await await_until(slot, loop_time() + self._lease / 3)
                    self._rest = None
                    if not (self._held or self.waiting):
                        return
                try:
                    await self._beat_once()
                except StoreUnavailable:
                    await anyio.sleep(self._lease / 10)
                except Exception:
                    log.exception("limiter %s: its lease is not renewed", self._calls.plan.tag)
                    await anyio.sleep(self._lease / 3)
        finally:
            self._beating = False
            self._rest = None

    async def _beat_once(self) -> None:
        # A beat that is sent again may arrive after the end of a permit that it asserts; the next beat corrects that.
        doubt, self._doubt = self._doubt, False
        held, ended = [*self._held] if doubt else [], [*(self._asserted - self._held)]
        self._asserted.update(held)
        fields = {"party": self._calls.party, "held": held, "ended": ended}
        try:
            answer = await self._calls.run(self._calls.scripts.beat, fields)
        except Exception:
            self._doubt = self._doubt or doubt
            raise
        self._asserted = {name for name in self._asserted if name not in self._held}.difference(ended)
        if answer["fresh"] and not doubt:
            self._doubt = True
            self._tell_all()

    async def aclose(self) -> None:
        """Deliver pending messages, for a second at most, and end the subscription. A checkpoint."""
        await self._delivery.flush()
        self.close()

    def close(self) -> None:
        """End the subscription."""
        if self._listening is not None:
            self._listening.close()
            self._listening = None
