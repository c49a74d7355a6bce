"""Notifications of changes that other processes make to a store, and the callers that wait for them.

The server counts all changes, and separately the changes that may have made a task claimable. Each reply contains both
numbers. A waiting caller sets a mark on the server. The step that makes a change while a mark is set publishes both
numbers and removes the mark. So nothing is published while no caller waits, and each waiting caller is notified once.

1. A wait that begins before a change ends soon after it. The mark was set while the numbers were those that the caller
   had seen before it read; otherwise they are compared again.
2. A notification is only a hint: while a caller waits, the numbers are compared once in `LOOK` seconds, and after each
   gap in the subscription.
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
    from cuelight.redis._tasks._scripts import Reply

LOOK: Final = 1.0
"""Seconds after which a store with waiting callers asks the server whether a notification got lost."""


class _Ear:
    """The subscription of one loop."""

    def __init__(self) -> None:
        self.lock = anyio.Lock()
        self.subscription: Subscription | None = None
        self.looked = loop_time()


class Hints:
    """The notifications of one store, in all loops.

    Attributes:
        version: the version of the store, see `Store.version`.
    """

    def __init__(self, channel: str, arm: Callable[[str, int, int], Awaitable[bool]]) -> None:
        """Create it without any knowledge of the server.

        Args:
            channel: the channel of the notifications.
            arm: sets a mark on the server, unless the numbers there differ, and returns whether it did. If it did not,
                it calls `reset` with the reply.
        """
        self._channel, self._arm = channel, arm
        self._changes, self._stirs = VersionNotifier(), VersionNotifier()
        self._seen = (0, 0)
        self._marked = -1  # the version up to which a mark for any change is set
        self._read = self._hungry = 0  # the local versions of the last read, and of the last claim that came back short
        self._lock = threading.Lock()
        self._ears: weakref.WeakKeyDictionary[Any, _Ear] = weakref.WeakKeyDictionary()
        self._closed = False

    @property
    def version(self) -> int:
        return self._changes.version

    def reading(self) -> None:
        """Record that a caller reads, and may then wait for a change."""
        self._read = self.version

    def saw(self, reply: Reply, *, claimed: bool = False, hungry: bool = False) -> None:
        """Use the numbers of a reply.

        Args:
            reply: the reply to any step.
            claimed: the caller has seen everything that was claimable.
            hungry: the caller got less than it asked for; the mark is set.
        """
        self._took(reply.version, reply.stirred, quietly=claimed)
        if hungry:
            self._hungry = self.version

    def reset(self, reply: Reply) -> None:
        """Use the numbers of a reply even if they are lower than before: the server may have lost some changes."""
        with self._lock:
            self._seen = (reply.version, reply.stirred)
        self.notify()

    def _took(self, version: int, stirred: int, *, quietly: bool) -> None:
        with self._lock:
            seen_version, seen_stirred = self._seen
            if version <= seen_version:
                return  # a change of this store, or an answer that was overtaken
            self._seen = (version, stirred)
        if stirred > seen_stirred:
            self.notify()
        elif not quietly or self._changes.waiting or self._read == self.version:
            self._changes.notify()

    def notify(self) -> None:
        """Wake all waiting callers. May be called from any thread."""
        self._changes.notify()  # before `_stirs`: see `changed`
        self._stirs.notify()

    def _on_message(self, message: bytes) -> None:
        try:
            version, stirred = map(int, message.split())
        except ValueError:  # not published by a step of a store
            self.notify()
            return
        if version < self._seen[0]:
            self.notify()  # an old message, or the server has lost changes: the next comparison shows which
        else:
            self._took(version, stirred, quietly=False)

    async def changed(self, server: Server, since: int, timeout: float) -> None:
        """See `Store.changed`. A checkpoint.

        Raises:
            StoreUnavailable: the server is away.
        """
        began = loop_time()
        stirs = self._stirs.version
        # A newly claimable task raises both versions, `_changes` first: one of the two comparisons notices it.
        if self.version != since or timeout <= 0:
            await yield_now()
            return
        hungry = self._hungry == since and self._read != since
        # It may take longer to find that the server is away than the caller wants to wait.
        with anyio.move_on_after(timeout):
            ear = await self._listen(server, hungry=hungry)
            await self._wait(ear, since, stirs, began + timeout, hungry=hungry)

    async def _wait(self, ear: _Ear, since: int, stirs: int, until: float, *, hungry: bool) -> None:
        began = loop_time()
        while self.version == since and not self._closed:
            looked = max(began, ear.looked)
            if loop_time() - looked >= LOOK or not (hungry or self._marked == self._seen[0]):
                await self._look(ear, hungry=hungry)
            left = until - loop_time()
            if left <= 0 or self.version != since:
                break
            if hungry:
                await self._stirs.wait(stirs, min(left, LOOK))
                if self._stirs.version != stirs:
                    break
            else:
                await self._changes.wait(since, min(left, LOOK))

    async def _look(self, ear: _Ear, *, hungry: bool) -> None:
        ear.looked = loop_time()
        version, stirred = self._seen
        if await self._arm("hungry" if hungry else "watched", version, stirred) and not hungry:
            self._marked = version

    async def _listen(self, server: Server, *, hungry: bool) -> _Ear:
        """Return the subscription of this loop, which has received all messages since the last comparison of the
        numbers.
        """
        ear = self._ears.setdefault(running_loop(), _Ear())
        if ear.subscription is not None:
            return ear
        async with ear.lock:
            if ear.subscription is not None:  # another caller has subscribed in the meantime
                return ear
            subscription: Subscription | None = None
            with anyio.move_on_after(seconds := time_for_step()):
                subscription = await server.subscribe(self._channel, self._on_message, self.notify)
            if subscription is None:
                raise StoreUnavailable(f"{server.name} did not begin to listen to {self._channel!r} in {seconds:g} s")
            try:
                await self._look(ear, hungry=hungry)
            except BaseException:
                subscription.close()
                raise
            if self._closed:
                subscription.close()
            else:
                ear.subscription = subscription
        return ear

    def open(self) -> None:
        """Allow subscriptions again."""
        self._closed = False

    def close(self) -> None:
        """Wake all waiting callers, and end the subscriptions. May be called from any thread."""
        self._closed = True
        for ear in list(self._ears.values()):
            if ear.subscription is not None:
                ear.subscription.close()
                ear.subscription = None
        self.notify()
