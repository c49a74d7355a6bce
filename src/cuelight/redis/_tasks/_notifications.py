"""Notifications of changes that other processes make to a store, and the callers that wait for them.

The server counts all changes, and separately the changes that may have made a task claimable. Each reply contains both
numbers. A waiting caller sets a mark on the server. The step that makes a change while a mark is set publishes both
numbers and removes the mark. So nothing is published while no caller waits, and each waiting caller is notified once.

1. A wait that begins before a change ends soon after it. The mark was set while the numbers were those that the caller
   had seen before it read; otherwise they are compared again.
2. A notification is only a hint: while a caller waits, the numbers are compared once in `COMPARE_INTERVAL` seconds, and
   after each gap in the subscription.
3. A worker whose last claim came back short, and that has read nothing else since, is notified only when new tasks may
   be claimable, not of other changes, such as tasks that others finish or that it has claimed itself.
"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any, Final

import anyio

from cuelight.errors import StoreUnavailable
from cuelight.mailbox import loop_time, running_loop
from cuelight.mailbox._backend import yield_now
from cuelight.tasks._stores._step_timeout import time_for_step
from cuelight.tasks._stores._support import VersionNotifier

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cuelight.redis._client import Server, Subscription
    from cuelight.redis._tasks._scripts import ScriptReply

COMPARE_INTERVAL: Final = 1.0
"""Seconds after which a store with waiting callers asks the server whether a notification got lost."""


class _LoopSubscription:
    """The subscription of one loop."""

    def __init__(self) -> None:
        self.lock = anyio.Lock()
        self.subscription: Subscription | None = None
        self.compared_at = loop_time()


class ChangeNotifications:
    """The notifications of one store, in all loops.

    Attributes:
        version: the version of the store, see `Store.version`.
    """

    def __init__(self, channel: str, subscribe_changes: Callable[[str, int, int], Awaitable[bool]]) -> None:
        """Create it without any knowledge of the server.

        Args:
            channel: the channel of the notifications.
            subscribe_changes: sets a mark on the server, unless the numbers there differ, and returns whether it did.
                If it did not, it calls `reset` with the reply.
        """
        self._channel, self._subscribe_changes = channel, subscribe_changes
        self._changes, self._claimable_changes = VersionNotifier(), VersionNotifier()
        self._seen = (0, 0)
        self._marked = -1  # the version up to which a mark for any change is set
        self._read = self._wants_tasks_since = (
            0  # the local versions of the last read, and of the last claim that came back short
        )
        self._lock = threading.Lock()
        self._loop_subscriptions: weakref.WeakKeyDictionary[Any, _LoopSubscription] = weakref.WeakKeyDictionary()
        self._closed = False

    @property
    def version(self) -> int:
        return self._changes.version

    def reading(self) -> None:
        """Record that a caller reads, and may then wait for a change."""
        self._read = self.version

    def observe(self, reply: ScriptReply, *, claimed: bool = False, wants_tasks: bool = False) -> None:
        """Use the numbers of a reply.

        Args:
            reply: the reply to any step.
            claimed: the caller has seen everything that was claimable.
            wants_tasks: the caller got less than it asked for; the mark is set.
        """
        self._apply_reply(reply.version, reply.claimable_version, quietly=claimed)
        if wants_tasks:
            self._wants_tasks_since = self.version

    def reset(self, reply: ScriptReply) -> None:
        """Use the numbers of a reply even if they are lower than before: the server may have lost some changes."""
        with self._lock:
            self._seen = (reply.version, reply.claimable_version)
        self.notify()

    def _apply_reply(self, version: int, claimable_version: int, *, quietly: bool) -> None:
        with self._lock:
            seen_version, seen_claimable_version = self._seen
            if version <= seen_version:
                return  # a change of this store, or an answer that was overtaken
            self._seen = (version, claimable_version)
        if claimable_version > seen_claimable_version:
            self.notify()
        elif not quietly or self._changes.waiting or self._read == self.version:
            self._changes.notify()

    def notify(self) -> None:
        """Wake all waiting callers. May be called from any thread."""
        self._changes.notify()  # before `_claimable_changes`: see `changed`
        self._claimable_changes.notify()

    def _on_message(self, message: bytes) -> None:
        try:
            version, claimable_version = map(int, message.split())
        except ValueError:  # not published by a step of a store
            self.notify()
            return
        if version < self._seen[0]:
            self.notify()  # an old message, or the server has lost changes: the next comparison shows which
        else:
            self._apply_reply(version, claimable_version, quietly=False)

    async def changed(self, server: Server, since: int, timeout: float) -> None:
        """See `Store.changed`. A checkpoint.

        Raises:
            StoreUnavailable: the server is away.
        """
        began = loop_time()
        claimable = self._claimable_changes.version
        # A newly claimable task raises both versions, `_changes` first: one of the two comparisons notices it.
        if self.version != since or timeout <= 0:
            await yield_now()
            return
        wants_tasks = self._wants_tasks_since == since and self._read != since
        # It may take longer to find that the server is away than the caller wants to wait.
        with anyio.move_on_after(timeout):
            loop_subscription = await self._subscribe(server, wants_tasks=wants_tasks)
            await self._wait(loop_subscription, since, claimable, began + timeout, wants_tasks=wants_tasks)

    async def _wait(
        self, loop_subscription: _LoopSubscription, since: int, claimable: int, until: float, *, wants_tasks: bool
    ) -> None:
        began = loop_time()
        while self.version == since and not self._closed:
            compared_at = max(began, loop_subscription.compared_at)
            if loop_time() - compared_at >= COMPARE_INTERVAL or not (wants_tasks or self._marked == self._seen[0]):
                await self._compare(loop_subscription, wants_tasks=wants_tasks)
            left = until - loop_time()
            if left <= 0 or self.version != since:
                break
            if wants_tasks:
                await self._claimable_changes.wait(claimable, min(left, COMPARE_INTERVAL))
                if self._claimable_changes.version != claimable:
                    break
            else:
                await self._changes.wait(since, min(left, COMPARE_INTERVAL))

    async def _compare(self, loop_subscription: _LoopSubscription, *, wants_tasks: bool) -> None:
        loop_subscription.compared_at = loop_time()
        version, claimable_version = self._seen
        if (
            await self._subscribe_changes("hungry" if wants_tasks else "watched", version, claimable_version)
            and not wants_tasks
        ):
            self._marked = version

    async def _subscribe(self, server: Server, *, wants_tasks: bool) -> _LoopSubscription:
        """Return the subscription of this loop, which has received all messages since the last comparison of the
        numbers.
        """
        loop_subscription = self._loop_subscriptions.setdefault(running_loop(), _LoopSubscription())
        if loop_subscription.subscription is not None:
            return loop_subscription
        async with loop_subscription.lock:
            if loop_subscription.subscription is not None:  # another caller has subscribed in the meantime
                return loop_subscription
            subscription: Subscription | None = None
            with anyio.move_on_after(seconds := time_for_step()):
                subscription = await server.subscribe(self._channel, self._on_message, self.notify)
            if subscription is None:
                raise StoreUnavailable(f"{server.name} did not begin to listen to {self._channel!r} in {seconds:g} s")
            try:
                await self._compare(loop_subscription, wants_tasks=wants_tasks)
            except BaseException:
                subscription.close()
                raise
            if self._closed:
                subscription.close()
            else:
                loop_subscription.subscription = subscription
        return loop_subscription

    def open(self) -> None:
        """Allow subscriptions again."""
        self._closed = False

    def close(self) -> None:
        """Wake all waiting callers, and end the subscriptions. May be called from any thread."""
        self._closed = True
        for loop_subscription in list(self._loop_subscriptions.values()):
            if loop_subscription.subscription is not None:
                loop_subscription.subscription.close()
                loop_subscription.subscription = None
        self.notify()
