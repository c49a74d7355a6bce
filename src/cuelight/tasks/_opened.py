"""Counts the users of each store: the first user opens it, the last one closes it.

Invariant: between `open_store` and `close_store` of one user, no `close_store` of another user closes the store. Users
may be in different event loops and threads. Users in other processes are not counted; a forked process starts with
none.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import anyio
import msgspec

from cuelight.mailbox import current_backend

if TYPE_CHECKING:
    from cuelight.tasks._store import Store


class _Use(msgspec.Struct):
    store: Store
    users: int = 0
    closing: bool = False
    waiting: list[Callable[[], object]] = msgspec.field(default_factory=list[Callable[[], object]])


_uses: dict[int, _Use] = {}
_lock = threading.Lock()


def _forget_other_process() -> None:
    """Reset the state in a forked process: it has no users, and a thread of the parent may have held the lock."""
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()
    _uses.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_process)


async def open_store(store: Store) -> None:
    """Open a store, and keep it open until `close_store` was called as often. A checkpoint.

    Raises:
        StoreUnavailable: the store is unavailable.
        Exception: any other reason why the store cannot be opened. In both cases, it is not in use.
    """
    while True:
        backend = current_backend()
        with _lock:
            use = _uses.setdefault(id(store), _Use(store))
            if not use.closing:
                use.users += 1
                break
            waiter = backend.waiter()
            use.waiting.append(partial(backend.call_threadsafe, waiter.wake))
        await waiter
    try:
        await store.open()
    except BaseException:
        await close_store(store)
        raise


async def close_store(store: Store) -> None:
    """Release a store that `open_store` opened; the last user closes it. A checkpoint; closing is not cancelled."""
    with _lock:
        use = _uses[id(store)]
        use.users -= 1
        use.closing = use.users == 0
    if not use.closing:
        return
    try:
        with anyio.CancelScope(shield=True):
            await store.close()
    finally:
        with _lock:
            del _uses[id(store)]
        for wake in use.waiting:
            with suppress(RuntimeError):  # the loop of the waiter has ended
                wake()
