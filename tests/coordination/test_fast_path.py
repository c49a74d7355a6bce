"""The fast paths into a queue and out of a lock have the effect of the general ones, and are taken where possible."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuelight.actors import waits_by_node
from cuelight.coordination import LocalLock, LocalSemaphore, LockManager, LockStatistics
from cuelight.coordination import _fast_path as fast_path
from cuelight.coordination import _lock_manager as manager
from cuelight.coordination import _locks as locks
from cuelight.coordination import _semaphores as semaphores
from cuelight.coordination._lock_state import FastLockState, FastSemaphoreState
from cuelight.coordination._lock_waiting import TaskWaiter, enqueue, watched_owners
from helpers.players import settle

THINGS: dict[str, Callable[[], LocalLock | LocalSemaphore]] = {
    "lock": lambda: LocalLock("it"),
    "semaphore of 1": lambda: LocalSemaphore(1, name="it"),
    "semaphore of 3": lambda: LocalSemaphore(3, name="it"),
}
programs = st.lists(
    st.tuples(
        st.integers(0, 3),  # passes of the loop before it comes
        st.integers(0, 3),  # passes for which it holds it
        st.sampled_from([None, None, None, 0, 1, 2, 3, 5]),  # the pass in which it is cancelled
        st.integers(1, 3),  # rounds
    ),
    min_size=2,
    max_size=8,
)


async def _pass(times: int) -> None:
    for _ in range(times):
        await anyio.lowlevel.checkpoint()


async def _play(label: Any, program: list[tuple[int, int, int | None, int]]) -> list[tuple[int, str]]:
    seen: list[tuple[int, str]] = []

    async def use(number: int, scope: anyio.CancelScope, before: int, holds: int, rounds: int) -> None:
        with scope:
            for _ in range(rounds):
                await _pass(before)
                async with label:
                    seen.append((number, "has"))
                    await _pass(holds)
                seen.append((number, "gave"))
        seen.append((number, "ended"))

    async with anyio.create_task_group() as tasks:
        scopes = [anyio.CancelScope() for _ in program]
        for number, (before, holds, _, rounds) in enumerate(program):
            tasks.start_soon(use, number, scopes[number], before, holds, rounds)
        for turn in range(6):
            for number, (_, _, cancelled, _) in enumerate(program):
                if cancelled == turn:
                    scopes[number].cancel()
            await _pass(1)
    return seen


def _figures(statistics: LockStatistics) -> tuple[Any, ...]:
    return (statistics.held, statistics.waiting, statistics.acquisitions, statistics.waits)


def _generally(patch: pytest.MonkeyPatch) -> None:
    def enqueue_task(state: Any, me: Any, loop: Any) -> Any:
        return enqueue(state, TaskWaiter(state, me, 1, loop, None))

    def transfer_permit(state: Any, me: Any, loop: Any) -> bool:
        return False

    for module in (locks, semaphores):
        patch.setattr(module, "enqueue_task", enqueue_task)
        patch.setattr(module, "transfer_permit", transfer_permit)


@pytest.mark.parametrize("kind", THINGS)
@pytest.mark.parametrize("backend", ["asyncio", "uvloop"])
@given(program=programs)
def test_both_ways_serve_the_same_ones_in_the_same_order(
    kind: str, backend: str, program: list[tuple[int, int, int | None, int]]
) -> None:
    async def main() -> None:
        quickly, generally = THINGS[kind](), THINGS[kind]()
        before = len(watched_owners)
        seen = await _play(quickly, program)
        with pytest.MonkeyPatch.context() as patch:
            _generally(patch)
            assert await _play(generally, program) == seen
        assert _figures(quickly.statistics()) == _figures(generally.statistics())
        assert quickly.statistics().held == quickly.statistics().waiting == 0
        assert not waits_by_node
        await _pass(2)  # the ends of tasks are noticed
        assert len(watched_owners) == before
        assert quickly._state.details is None

    anyio.run(main, backend="asyncio", backend_options={"use_uvloop": backend == "uvloop"})


@pytest.mark.parametrize("kind", THINGS)
def test_plain_tasks_of_one_loop_take_the_quick_way(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    general: list[Any] = []
    passed: list[bool] = []

    def seen_enqueue(state: Any, waiter: Any) -> Any:
        general.append(waiter)
        return enqueue(state, waiter)

    def seen_transfer_permit(state: Any, me: Any, loop: Any) -> bool:
        passed.append(fast_transfer_permit(state, me, loop))
        return passed[-1]

    fast_transfer_permit = fast_path.transfer_permit
    monkeypatch.setattr(fast_path, "enqueue", seen_enqueue)
    for module in (locks, semaphores):
        monkeypatch.setattr(module, "transfer_permit", seen_transfer_permit)
    label = THINGS[kind]()
    program: list[tuple[int, int, int | None, int]] = [(0, 2, None, 3)] * 8
    anyio.run(_play, label, program)
    assert len(general) <= 3  # the tasks that arrive when none waits
    assert sum(passed) >= 24 - 3 - len(general) - 3
    assert label.statistics().acquisitions == 24


async def _line_of(lock: LocalLock, tasks: Any, got: list[int], size: int) -> None:
    """Take a lock, and have tasks wait for it, which note in `got` that they get it."""

    async def use(number: int) -> None:
        async with lock:
            got.append(number)
            await _pass(1)

    await lock.__aenter__()
    for number in range(size):
        tasks.start_soon(use, number)
        await settle()
    assert lock.statistics().waiting == size


def test_a_hand_over_that_is_interrupted_reaches_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(state: Any, owner: Any) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    async def main() -> list[int]:
        lock, got = LocalLock("it"), list[int]()
        async with anyio.create_task_group() as tasks:
            await _line_of(lock, tasks, got, 3)
            monkeypatch.setattr(fast_path, "watch_holder", interrupted)
            with pytest.raises(KeyboardInterrupt):
                await lock.__aexit__(None, None, None)
        assert not lock.locked
        return got

    assert anyio.run(main) == [0, 1, 2]


async def test_a_line_that_an_interrupted_release_has_left_behind_is_served_when_the_next_one_comes() -> None:
    lock, got = LocalLock("it"), list[int]()
    async with anyio.create_task_group() as tasks:
        await _line_of(lock, tasks, got, 2)
        state = lock._state
        state.details = None
        assert state.remove_holder(state.owner, 1)  # and interrupted before the look at the line
        async with lock:
            got.append(2)
    assert got == [0, 1, 2]


async def test_where_it_was_taken_is_known_of_those_who_waited() -> None:
    for label in (LocalLock("it"), LocalSemaphore(1, name="it")):
        release = anyio.Event()
        async with anyio.create_task_group() as tasks:

            async def use(label: Any = label, release: anyio.Event = release) -> None:
                async with label:
                    await release.wait()

            for _ in range(3):
                tasks.start_soon(use)
            await _pass(3)
            line = inspect.getsourcelines(use)[1] + 1
            release.set()
            while label.statistics().waits < 2:
                await _pass(1)
            [holder] = label.statistics().holders
            assert holder.taken_at == f"{__file__}:{line}"


def test_a_place_is_given_to_another_one_only_by_who_holds_just_that() -> None:
    state = FastSemaphoreState("it", 2)
    assert state.add_holder("a", 1)
    waiter = TaskWaiter(state, "b", 1, None, None)
    assert state.transfer("a", waiter) is None  # a place is free
    assert state.add_holder("a", 1)
    state.enqueue(waiter)
    assert state.transfer("a", waiter) is None  # it holds two
    assert state.transfer("c", waiter) is None
    assert state.held() == {"a": 2}
    assert state.change_weight("a", 1, 0.0)
    assert not state.change_weight("a", 2, 0.0)
    assert state.held() == {"a": 1, "b": 1}
    assert FastLockState("it").transfer("a", waiter) is None


def test_a_manager_looks_at_the_variable_when_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = LockManager()
    monkeypatch.setenv("CUELIGHT_DEBUG_LOCKS", "1")
    debugging = LockManager()
    monkeypatch.delenv("CUELIGHT_DEBUG_LOCKS")
    kinds = {
        type(lock._state) for lock in (plain.get_lock("a"), debugging.get_lock("a")) if isinstance(lock, LocalLock)
    }
    assert len(kinds) == 2


def test_a_lock_that_is_forgotten_late_takes_no_other_one_with_it() -> None:
    known: dict[str, Any] = {}
    own = LockManager()
    lock = own.get_lock("a")
    known["a"] = own._locks["a"]
    manager._forget(known, "a", known["a"])
    assert not known
    manager._forget(known, "a", own._locks["a"])
    known["a"] = object()
    manager._forget(known, "a", own._locks["a"])
    assert list(known) == ["a"]
    assert own.get_lock("a") is lock


async def test_several_locks_are_taken_and_given_back_while_others_wait_for_them() -> None:
    own, seen = LockManager(), list[int]()

    async def use(number: int) -> None:
        async with own.acquire_all(("a", "b")):
            seen.append(number)
            await _pass(2)

    async with anyio.create_task_group() as tasks:
        for number in range(4):
            tasks.start_soon(use, number)
    assert sorted(seen) == [0, 1, 2, 3]
    assert len(own) == 0
