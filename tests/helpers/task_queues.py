"""For the tests of task queues: stores that fail on purpose, and cancellation at a chosen moment."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Generic, Literal, TypeVar, cast

import anyio

from cuelight.errors import StoreUnavailable
from cuelight.tasks import Store

__all__ = ["FlakyStore", "Outcome", "cancelled_at", "flaky"]

T = TypeVar("T")

Side = Literal["before", "after"]

COUNTED = {
    "add",
    "cancel",
    "changed",
    "control",
    "edit",
    "exchange",
    "find",
    "get",
    "pause_limit",
    "purge",
    "put_schedule",
    "remove_schedule",
    "schedules",
    "set_limit",
    "size",
}


class FlakyStore:
    """A store in front of another, some of whose calls raise `StoreUnavailable`.

    Attributes:
        calls: the names of the calls so far.
        fails: which of the calls to come fail, counted from 1 since it was set, and when: before the call reached the
            store, or after it had taken effect.
        instead: called in the stead of methods.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.calls: list[str] = []
        self.fails: dict[int, Side] = {}
        self.instead: dict[str, Any] = {}

    def fail(self, *numbers: int, side: Side = "before") -> None:
        """Have some of the calls to come fail, counted from 1."""
        begun = len(self.calls)
        self.fails = {begun + number: side for number in numbers}

    def __getattr__(self, name: str) -> Any:
        method: Any = self.instead.get(name) or getattr(self._store, name)
        if name not in COUNTED:
            return method

        async def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            side = self.fails.get(len(self.calls))
            if side == "before":
                raise StoreUnavailable(f"{name}, before it reached the store")
            answer = await method(*args, **kwargs)
            if side == "after":
                raise StoreUnavailable(f"{name}, after it took effect")
            return answer

        return call


def flaky(store: Store) -> tuple[FlakyStore, Store]:
    """A store that can be made to fail; twice, for its own methods and for those of a store."""
    made = FlakyStore(store)
    return made, cast("Store", made)


class Outcome(Generic[T]):
    """What became of an operation that was cancelled at some moment.

    Attributes:
        values: what it returned, if it did.
        reached: whether there was such a moment; an operation that is over sooner was not cancelled.
    """

    def __init__(self) -> None:
        self.values: list[T] = []
        self.reached = False


@types.coroutine
def _stepped(coroutine: Coroutine[Any, Any, T], at: int, reach: Callable[[], object]) -> Generator[Any, Any, T]:
    """Run a coroutine, and call `reach` when it suspends for the time number `at`."""
    steps = 0
    value: Any = None
    error: BaseException | None = None
    while True:
        try:
            asked = coroutine.send(value) if error is None else coroutine.throw(error)
        except StopIteration as stop:
            result: T = stop.value
            return result
        value, error = None, None
        steps += 1
        if steps == at:
            reach()
        try:
            value = yield asked
        except BaseException as raised:
            error = raised


async def cancelled_at(
    at: int, operation: Callable[[], Awaitable[T]], kind: Literal["scope", "native"] = "scope"
) -> Outcome[T]:
    """Run an operation in this task, and cancel it when it suspends for the time number `at`.

    Args:
        at: counted from 1.
        operation: what to run.
        kind: by a scope, or by `Task.cancel` of asyncio.
    """
    outcome: Outcome[T] = Outcome()

    async def run() -> T:
        return await operation()

    with anyio.CancelScope() as scope:

        def reach() -> None:
            outcome.reached = True
            if kind == "scope":
                scope.cancel()
            else:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()

        try:
            outcome.values.append(await _stepped(run(), at, reach))
        except asyncio.CancelledError:
            if kind == "scope":
                raise
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
    return outcome
