"""What a store knows of changes that others make, and those who wait for them.

The server counts changes, and those among them that may have made something claimable. Each reply carries both numbers.
Who waits has a mark set on the server; the step that changes something while there is a mark publishes both numbers and
takes the mark away. So nothing is published while nobody waits, and each who waits is told once.

1. A wait that begins before a change ends soon after it: the mark was set while the numbers were those that were seen
   before what the caller has read, or they are compared again.
2. A hint is only a hint: while somebody waits the numbers are compared once in `LOOK` seconds, and after each gap.
3. Who has found less to claim than it wanted, and has read nothing else since, is told only of what may be claimable:
   what others finish, or what it has claimed itself, is none of its business.
"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any, Final

import anyio

from cuelight.errors import StoreUnavailable
from cuelight.mailbox import loop_time, running_loop
from cuelight.mailbox._backend import yield_now
from cuelight.tasks._changes import Changes
from cuelight.tasks._step_timeout import time_for_step

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cuelight.redis._client import Server, Subscription
    from cuelight.redis._tasks._steps import Reply

__all__ = ["Hints"]

LOOK: Final = 1.0
"""Seconds after which a store that is waited for asks whether a hint got lost."""


class _Ear:
    """The subscription of one loop."""

    def __init__(self) -> None:
        self.lock = anyio.Lock()
        self.subscription: Subscription | None = None
        self.looked = loop_time()


class Hints:
    """Of one store, in all loops.

    Attributes:
        version: of the store, see `Store.version`.
    """

    def __init__(self, channel: str, arm: Callable[[str, int, int], Awaitable[bool]]) -> None:
        """Begin to know nothing.

        Args:
            channel: where hints come from.
            arm: sets a mark on the server unless the numbers there are others; whether it did. It calls `reset` with
                the reply if it did not.
        """
        self._channel, self._arm = channel, arm
        self._changes, self._stirs = Changes(), Changes()
        self._seen = (0, 0)
        self._marked = -1  # up to which version a mark for any change is set
        self._read = self._hungry = 0  # in which of our versions somebody last read something, or found nothing
        self._lock = threading.Lock()
        self._ears: weakref.WeakKeyDictionary[Any, _Ear] = weakref.WeakKeyDictionary()
        self._closed = False

    @property
    def version(self) -> int:
        return self._changes.version

    def reading(self) -> None:
        """Somebody reads, and may wait for a change of it."""
        self._read = self.version

    def saw(self, reply: Reply, *, claimed: bool = False, hungry: bool = False) -> None:
        """Take the numbers of a reply.

        Args:
            reply: of any step.
            claimed: whoever asked has seen all that was claimable.
            hungry: and it was less than asked for; the mark is set.
        """
        self._took(reply.version, reply.stirred, quietly=claimed)
        if hungry:
            self._hungry = self.version

    def reset(self, reply: Reply) -> None:
        """Take the numbers of a reply whatever was seen before: the server may have lost some."""
        with self._lock:
            self._seen = (reply.version, reply.stirred)
        self._notify()

    def _took(self, version: int, stirred: int, *, quietly: bool) -> None:
        with self._lock:
            seen_version, seen_stirred = self._seen
            if version <= seen_version:
                return  # our own change, or an answer that was overtaken
            self._seen = (version, stirred)
        if stirred > seen_stirred:
            self._notify()
        elif not quietly or self._changes.waiting or self._read == self.version:
            self._changes.notify()

    def _notify(self) -> None:
        self._changes.notify()  # before the other: see `changed`
        self._stirs.notify()

    def _on_message(self, message: bytes) -> None:
        try:
            version, stirred = map(int, message.split())
        except ValueError:  # not by any step
            self._notify()
            return
        if version < self._seen[0]:
            self._notify()  # an old one, or the server has lost some: the next look will tell
        else:
            self._took(version, stirred, quietly=False)

    async def changed(self, server: Server, since: int, timeout: float) -> None:
        """See `Store.changed`. A checkpoint.

        Raises:
            StoreUnavailable: the server is away.
        """
        began = loop_time()
        stirs = self._stirs.version
        # What is claimable now raises both, `_changes` first: one of the two comparisons notices it.
        if self.version != since or timeout <= 0:
            await yield_now()
            return
        hungry = self._hungry == since and self._read != since
        # A server that is away takes longer to say so than the caller may want to wait.
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
        """The ear of this loop. It has heard everything since the numbers were compared last."""
        ear = self._ears.setdefault(running_loop(), _Ear())
        if ear.subscription is not None:
            return ear
        async with ear.lock:
            if ear.subscription is not None:  # others have begun to wait meanwhile
                return ear
            subscription: Subscription | None = None
            with anyio.move_on_after(seconds := time_for_step()):
                subscription = await server.subscribe(self._channel, self._on_message, self._notify)
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
        """Begin to listen again."""
        self._closed = False

    def close(self) -> None:
        """Wake all who wait, and listen no more. From any thread."""
        self._closed = True
        for ear in list(self._ears.values()):
            if ear.subscription is not None:
                ear.subscription.close()
                ear.subscription = None
        self._notify()
