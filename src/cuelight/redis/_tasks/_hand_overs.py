"""Tasks that the server hands over to a waiting worker in the step that adds them.

A claim that found no task may wait for one: the server then publishes the next plain task that is added as a lease of
the worker, see `hand_over.lua`. This saves the worker the round trip of another claim.

1. A task that was handed over is passed on at most once: to the worker's function, or as a lease in an answer.
2. While an exchange that ends a wait is under way, messages for that wait are ignored: the answer contains the task.
3. A message that was lost, or that came after the lease has ended, costs time, and nothing else.
"""

from __future__ import annotations

import secrets
import weakref
from typing import TYPE_CHECKING, Any

from cuelight._log import get_log
from cuelight.errors import StoreRefused
from cuelight.mailbox import running_loop
from cuelight.redis._tasks._encoding import leases_of
from cuelight.tasks import Lease

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cuelight.redis._client import Server, Subscription
    from cuelight.tasks import Claim

log = get_log("cuelight.tasks")

Member = tuple[str, float, str, str]
"""A claim that waits, as in `hand_over.lua`: its nonce, the length of its leases, the channel, the worker."""


class _Listener:
    """The subscription of one loop."""

    def __init__(self, channel: str) -> None:
        self.channel = channel
        self.subscription: Subscription | None = None
        self.is_subscribing = self.is_refused = False


class _WaitingClaim:
    """A claim that waits for a task.

    Attributes:
        member: what the server keeps of it.
        answered: whether the claim was answered. A task that is handed over before that is kept in `early`.
        ending: whether an exchange that ends this wait was sent.
    """

    def __init__(self, claim: Claim, channel: str) -> None:
        self.claim = claim
        self.member = (claim.nonce, claim.lease, channel, claim.worker)
        self.answered = self.ending = False
        self.early: Lease | None = None


class HandOvers:
    """The waiting claims of one store, in all loops."""

    def __init__(self, channel: str, now: Callable[[], float], on_gap: Callable[[], None]) -> None:
        """Create it without any subscription.

        Args:
            channel: the prefix of the channels.
            now: the time by the clock of the store.
            on_gap: called when messages may have been lost: the workers should claim again.
        """
        self._channel, self._now, self._on_gap = channel, now, on_gap
        self._listeners: weakref.WeakKeyDictionary[Any, _Listener] = weakref.WeakKeyDictionary()
        self._waits: dict[str, dict[str, _WaitingClaim]] = {}  # by worker and nonce

    def begin(self, claim: Claim) -> tuple[str | bool, list[Member]]:
        """Note that a claim is being sent, possibly again.

        Returns:
            The channel in which it may wait, or False; and the waits that it ends.
        """
        waits = self._waits.get(claim.worker)
        if claim.on_hand_over is None and not waits:
            return False, []
        if waits is None:
            waits = self._waits[claim.worker] = {}
        waits.pop(claim.nonce, None)
        channel = self._channel_for(claim)
        earlier: list[Member] = []
        for wait in waits.values():
            if wait.answered:
                wait.ending = True
                earlier.append(wait.member)
            else:
                channel = False  # one claim at a time
        if isinstance(channel, str):
            waits[claim.nonce] = _WaitingClaim(claim, channel)
        return channel, earlier

    def _channel_for(self, claim: Claim) -> str | bool:
        if claim.on_hand_over is None:
            return False
        listener = self._listeners.get(running_loop())
        if listener is None:
            listener = self._listeners[running_loop()] = _Listener(f"{self._channel}:{secrets.token_hex(8)}")
        return False if listener.subscription is None else listener.channel

    def answered(self, claim: Claim, earlier: Sequence[Member], *, waits: bool) -> bool:
        """Note the answer to a claim.

        Args:
            claim: the claim.
            earlier: the waits that it has ended.
            waits: whether the claim waits for a task.
        """
        mine = self._waits.get(claim.worker)
        if mine is None:
            return False
        for nonce, *_ in earlier:
            mine.pop(nonce, None)
        wait = mine.get(claim.nonce)
        if wait is not None and not waits:
            del mine[claim.nonce]
            wait = None
        if not mine:
            del self._waits[claim.worker]
        if wait is not None:
            wait.answered = True
            if wait.early is not None:
                self._pass_on(wait, wait.early)
        return wait is not None

    async def listen(self, server: Server) -> None:
        """Subscribe in this loop if a worker of this loop may wait for tasks, and let it claim again.

        Raises:
            StoreUnavailable: the server cannot be reached.
        """
        listener = self._listeners.get(running_loop())
        if listener is None or listener.subscription or listener.is_subscribing or listener.is_refused:
            return
        listener.is_subscribing = True
        try:
            listener.subscription = await server.subscribe(listener.channel, self._on_message, self._on_gap)
        except StoreRefused as error:
            listener.is_refused = True
            log.warning("%s refuses a channel, so no tasks are handed over: %r", server.name, error)
            return
        finally:
            listener.is_subscribing = False
        self._on_gap()

    def _on_message(self, message: bytes) -> None:
        try:
            nonce, length, rest = message.split(b" ", 2)
            end = int(length)
            found = list(leases_of((rest[:end], rest[end:], b"", b"")))
            name = nonce.decode()
        except ValueError:  # not published by a step of a store
            return
        for waits in self._waits.values():
            wait = waits.get(name)
            if wait is not None and not wait.ending:
                for lease in found:
                    if isinstance(lease, Lease):  # otherwise the next claim finds that it is unreadable
                        self._pass_on(wait, lease)
                return

    def _pass_on(self, wait: _WaitingClaim, lease: Lease) -> None:
        take = wait.claim.on_hand_over
        if not wait.answered:
            wait.early = lease
        elif take is not None and lease.expires > self._now():
            take(lease)

    def close(self) -> None:
        """End the subscriptions and forget the waits. May be called from any thread."""
        for listener in list(self._listeners.values()):
            if listener.subscription is not None:
                listener.subscription.close()
                listener.subscription = None
        self._waits.clear()
