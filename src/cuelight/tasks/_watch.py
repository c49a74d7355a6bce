"""Waits for changes of tasks: many waiters share one query of the store.

Invariants:

1. A waiter gets a snapshot that fulfils its condition, and the first such snapshot that a query returns.
2. The store is only queried after it has reported a possible change, and once for each new waiter.
3. One of the waiters queries on behalf of all. When it ends, cancelled or answered, another one takes over.
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

FOREVER = 86400.0
"""Seconds to wait for a change that must occur, such as the end of the handle."""
SOON = 0.001
"""Seconds to wait for a change that should have occurred already."""
SLICE = 256
"""The maximum number of tasks in one query. A larger query would block the event loop."""

Wanted = Callable[["Snapshot | None"], bool]


class _Watcher(msgspec.Struct, eq=False):
    task_id: str
    wanted: Wanted
    waiter: Waiter | None = None
    answer: list[Snapshot | None] | None = None
    error: StoreUnavailable | None = None


class Watch:
    """The callers that wait for tasks of one queue."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._watchers: dict[_Watcher, None] = {}
        self._leader: _Watcher | None = None

    async def until(self, task_id: str, wanted: Wanted) -> Snapshot | None:
        """Wait until a task fulfils a condition. A checkpoint.

        Args:
            task_id: the identifier of the task.
            wanted: the condition: a function of a snapshot, or of None if the task does not exist.

        Raises:
            PoolClosed: the handle was closed.
            StoreUnavailable: the store was unavailable for too long.
        """
        life = self._life
        await life.ready()
        me = _Watcher(task_id, wanted)
        self._watchers[me] = None
        try:
            if self._leader is not None:
                await self._look([me])  # the leader may be waiting for a change that occurred before this call
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
        """Query for all waiters until this one has an answer."""
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
                    if took > 0.001:  # many callers wait: leave most of the time to other work
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
