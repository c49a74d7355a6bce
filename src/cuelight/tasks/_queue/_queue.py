"""`TaskQueue`, in its async and its blocking form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from cuelight.errors import PoolClosed
from cuelight.tasks._queue._blocking import BlockingTaskQueue
from cuelight.tasks._queue._operations import QueueOperations

if TYPE_CHECKING:
    from types import TracebackType


class TaskQueue(QueueOperations):
    """A durable queue of tasks with priorities, deadlines, delays, unique tasks, limits, retries and dead letters.

    There are three ways to use a queue:

    * `async with TaskQueue() as queue:` starts a separate actor system for it.
    * `TaskQueue(system=system)` uses a running system. Its methods work at once, and end with the system.
    * `with TaskQueue() as queue:` has the same methods for blocking code, which may be called from any thread.

    A store contains the tasks: a `MemoryStore()`, or a `SQLiteStore("tasks.db")`, which survives the process and can be
    shared with other processes. Several queues may use one store at the same time, in different event loops and
    threads.

    A consumer that calls `dequeue` must settle each task with `ack` or `nack`. Until then, the task is leased to this
    handle, and a thread renews the lease, however busy the event loop is. When the process dies, the lease expires and
    another consumer gets the task. Leaving the block gives back all tasks that are not settled.

    While the store is unavailable, all methods retry for `retry_timeout` seconds, and no operation takes effect twice.
    After that, they raise `StoreUnavailable`. Once the handle is closed, they raise `PoolClosed`. A handle belongs to
    the event loop of its system.
    """

    def __enter__(self) -> BlockingTaskQueue:
        self._refuse_second_block()
        if self._state is not None:
            raise PoolClosed(f"the task queue {self.name!r} lives in a system: use `await` in its loop, not `with`")
        options = msgspec.structs.asdict(self._options)
        make = type(self)
        proxy = BlockingTaskQueue(lambda system: make(self.store, name=self.name, system=system, **options), self.name)
        entered = self._blocking.enter_context(proxy)
        try:
            entered.ready()
        except BaseException:
            self._blocking.close()
            raise
        return entered

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._blocking.__exit__(kind, error, trace)
