"""Waiting for tasks to change: many waiters, one look at the store for all of them.

The invariants:

1. A waiter is answered with a snapshot that it wanted, and with the first such that a look finds.
2. Looks are made only after the store has said that something may have changed, once for each waiter.
3. One of the waiters looks on behalf of all. When it ends, cancelled or answered, another takes over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio
import msgspec

from cuelight.errors import StoreUnavailable
from cuelight.mailbox import Waiter

if TYPE_CHECKING:
    from cuelight.tasks._queue_life import Life
    from cuelight.tasks._store import Snapshot

__all__ = ["FOREVER", "SOON", "Watch"]

FOREVER = 86400.0
"""Seconds to wait for a change that must come, such as the end of the handle."""
SOON = 0.001
"""Seconds to wait for what should have happened by now."""
SLICE = 256
"""Tasks in one look. A look at very many would hold up the loop."""

Wanted = Callable[["Snapshot | None"], bool]


class _Watcher(msgspec.Struct, eq=False):
    task_id: str
    wanted: Wanted
    waiter: Waiter | None = None
    answer: list[Snapshot | None] | None = None
    error: StoreUnavailable | None = None


class Watch:
    """Those who wait for a task of one queue."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._watchers: dict[_Watcher, None] = {}
        self._leader: _Watcher | None = None

    async def until(self, task_id: str, wanted: Wanted) -> Snapshot | None:
        """Wait until a task is as wanted. A checkpoint.

        Args:
            task_id: the task.
            wanted: tells of a snapshot, or of None for a task that is not there, whether it will do.

        Raises:
            PoolClosed: the handle was closed first.
            StoreUnavailable: the store was away for too long.
        """
        life = self._life
        await life.ready()
        me = _Watcher(task_id, wanted)
        self._watchers[me] = None
        try:
            if self._leader is not None:
                await self._look([me])  # the leader may be waiting for a change that came before us
            while me.answer is None:
                if me.error is not None:
                    raise me.error
                if self._leader is None:
                    self._leader = me
                if self._leader is me:
                    await self._lead(me)
                else:
                    me.waiter = life.backend.waiter()
                    await me.waiter
            return me.answer[0]
        finally:
            self._watchers.pop(me, None)
            if self._leader is me:
                self._leader = next(iter(self._watchers), None)
                if self._leader is not None:
                    self._wake(self._leader)

    async def _lead(self, me: _Watcher) -> None:
        """Look for all until there is an answer for this one."""
        life = self._life
        try:
            while me.answer is None:
                version = life.store.version()
                began = life.backend.time()
                watchers = list(self._watchers)
                for start in range(0, len(watchers), SLICE):
                    await self._look([one for one in watchers[start : start + SLICE] if one in self._watchers])
                if me.answer is None:
                    took = life.backend.time() - began
                    if took > 0.001:  # very many wait: leave most of the time to those who get something done
                        await anyio.sleep(min(3 * took, 0.25))
                    await life.changed(version, FOREVER)
        except StoreUnavailable as error:
            for one in self._watchers:
                one.error = error
                self._wake(one)
            raise

    async def _look(self, some: list[_Watcher]) -> None:
        snapshots = await self._life.patiently(lambda: self._life.store.get([one.task_id for one in some]))
        for one, snapshot in zip(some, snapshots, strict=True):
            if one in self._watchers and one.wanted(snapshot):
                one.answer = [snapshot]
                del self._watchers[one]
                self._wake(one)

    def _wake(self, one: _Watcher) -> None:
        waiter, one.waiter = one.waiter, None
        if waiter is not None:
            waiter.wake()
