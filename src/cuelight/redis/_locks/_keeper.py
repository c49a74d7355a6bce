"""Renews the leases of one event loop, notifies holders of lost leases, and sends releases to the server.

Invariants:
1. A held lease is renewed when a third of it is over. Leases on one lock that are due at the same time share a call.
2. A lease is lost when the server says so, or when it expires by this process's clock, which starts before the
   server's.
3. A dropped lease is not renewed again; a renewal that is in flight at that time changes nothing.
4. While nothing is held, there is at most an alarm and no task. Tasks run in an empty context: any code may start them,
   and the connections that they open would otherwise keep its context variables.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
from typing import TYPE_CHECKING, Any, Final

import anyio
from redis.exceptions import ResponseError

from cuelight._log import get_log
from cuelight._text import safe_str
from cuelight.coordination._lock_waiting import reap
from cuelight.coordination._owner import party_ended
from cuelight.coordination._spread import spread
from cuelight.errors import StoreRefused, StoreUnavailable
from cuelight.mailbox import call_in_loop, current_backend, has_ended, loop_time, running_loop
from cuelight.redis._locks._terms import now

if TYPE_CHECKING:
    from collections.abc import Callable

    from cuelight.redis._locks._lease import Lease
    from cuelight.redis._locks._shared import SharedCore

log = get_log("cuelight.redis")

FAILURES: Final = (StoreUnavailable, StoreRefused, ResponseError)
"""The errors of a call of the server."""


ENDING: Final = 0.5
"""Seconds that an ending program spends on releasing the locks that it holds."""

ENDING_IN_DOUBT: Final = 0.1
"""The same for locks that it requested and for which the server has never answered."""


def pause(round_: int) -> float:
    """Seconds to wait before a retry after `round_` failures."""
    return min(0.5, 0.02 * 2.0 ** min(round_, 10)) * spread.uniform(0.5, 1.0)


def loop_has_ended(loop: Any) -> bool:
    return loop.is_closed() if isinstance(loop, asyncio.AbstractEventLoop) else has_ended(loop)


class Keeper:
    """The keeper of one loop. It works in that loop; any thread may call `hold`, `drop` and `let_go`."""

    def __init__(self, elsewhere: Callable[[SharedCore], object], *, ours: bool = False) -> None:
        """Start in the running loop.

        Args:
            elsewhere: sends pending releases after this loop has ended.
            ours: whether the loop keeps the leases of all threads, so that user code must not end it.
        """
        self.ours = ours
        self._backend = current_backend()
        self.loop = self._backend.loop
        self._elsewhere = elsewhere
        self._leases: dict[Lease, SharedCore] = {}
        self._next = math.inf
        self._flushing: dict[SharedCore, anyio.CancelScope | None] = {}
        self._ending = False

    @property
    def idle(self) -> bool:
        return not self._leases and not self._flushing

    def leases(self) -> list[tuple[Lease, SharedCore]]:
        """The leases that are renewed, with their cores."""
        return list(self._leases.items())

    def hold(self, lease: Lease, core: SharedCore) -> None:
        """Start to renew a lease."""
        self._leases[lease] = core
        if lease.renew_at < self._next:
            if running_loop() is self.loop:
                self._arm()
            else:
                call_in_loop(self.loop, self._arm)

    def drop(self, lease: Lease) -> None:
        """Stop renewing a lease."""
        self._leases.pop(lease, None)

    def let_go(self, core: SharedCore, lease: Lease) -> None:
        """Release a lease that its holder did not release."""
        self.drop(lease)
        lease.end()
        core.give_back(lease.ticket, 0, lease.until)
        if running_loop() is self.loop:
            self.flush(core)
        elif not call_in_loop(self.loop, self.flush, core):
            self._elsewhere(core)

    # The methods below run in the loop.

    def end_soon(self) -> None:
        """Prepare for the end of the program: leave releases that cannot be sent at once to the end of their leases."""
        if not self._ending:
            self._ending = True
            for scope in self._flushing.values():
                if scope is not None:
                    scope.deadline = loop_time() + ENDING

    def _arm(self) -> None:
        due = math.inf
        for lease in list(self._leases):
            due = min(due, lease.until if lease.renewing else lease.renew_at, lease.until)
        self._next = due
        if due < math.inf:
            self._backend.set_alarm(self._backend.time() + max(0.0, due - now()), self._ring)

    def _ring(self) -> None:
        at = now()
        due: dict[SharedCore, list[Lease]] = {}
        lost: list[Lease] = []
        for lease, core in self.leases():
            if at >= lease.until:
                lost.append(lease)
            elif party_ended(lease.owner):
                reap(core)
            elif not lease.renewing and lease.renew_at <= at + lease.ticket.terms.lease / 20:
                lease.renewing = True
                due.setdefault(core, []).append(lease)
        for core, leases in due.items():
            self._backend.spawn(
                self._renew, core, leases, context=contextvars.Context(), name=f"cuelight lease of {core.thing}"
            )
        self._lose(lost, "it could not be renewed in time")

    def _lose(self, lost: list[Lease], reason: str) -> None:
        """Notify the holders of lost leases. This comes last, because `on_loss` is code of users."""
        for lease in lost:
            self.drop(lease)
        self._arm()
        ending: BaseException | None = None
        for lease in lost:
            try:
                lease.lose(reason)
            except BaseException as error:  # ends the program, but only after all holders were notified
                ending = error
        if ending is not None:
            raise ending

    async def _renew(self, core: SharedCore, leases: list[Lease]) -> None:
        asked = now()
        lost: list[Lease] = []
        try:
            renewed = await core.renew([lease.ticket for lease in leases])
        except Exception as error:
            log.warning(
                "leases on %s could not be renewed, %.1f s are left: %s",
                core.thing,
                leases[0].remaining(),
                safe_str(error),
            )
            for lease in leases:
                lease.renewing = False
                lease.renew_at = now() + min(lease.ticket.terms.lease / 10, pause(5))
        else:
            for lease, held in zip(leases, renewed, strict=True):
                lease.renewing = False
                if held:
                    lease.renewed(asked)
                elif lease in self._leases:
                    lost.append(lease)
        self._lose(lost, "the server gave it to others, or has lost it")

    def flush(self, core: SharedCore) -> None:
        """Start a task that sends the pending releases."""
        if loop_has_ended(self.loop):
            self._elsewhere(core)
        elif core.pending and core not in self._flushing:
            self._flushing[core] = None
            self._backend.spawn(
                self._flush, core, context=contextvars.Context(), name=f"cuelight release of {core.thing}"
            )

    async def _flush(self, core: SharedCore) -> None:
        try:
            deadline = math.inf
            if self._ending:
                deadline = loop_time() + (ENDING if core.owes() else ENDING_IN_DOUBT)
            with anyio.CancelScope(deadline=deadline) as self._flushing[core]:
                await self._send(core)
                return
            if core.owes():
                log.warning("%s could not be given back: the program ends. Its lease will run out", core.thing)
            core.forsake()
        finally:
            self._flushing.pop(core, None)
            if core.pending:  # this loop is ending
                self._elsewhere(core)

    async def _send(self, core: SharedCore) -> None:
        failures = 0
        while core.pending:
            try:
                await core.ask("lower")
                failures = 0
            except Exception as error:
                if not failures and core.owes():
                    log.warning("%s could not be given back yet: %s", core.thing, safe_str(error))
                if self._ending:
                    core.forsake()
                    return
                failures += 1
                await anyio.sleep(pause(failures))
