"""Single steps of locks: an interrupt in the middle, an owner that has ended, a process that was forked."""

from __future__ import annotations

import sys
import threading

import pytest

from cuelight.coordination import LocalLock, LocalSemaphore, LockManager
from cuelight.coordination import _lock_waiting as operations
from cuelight.coordination._lock_state import CapacityState
from cuelight.coordination._lock_waiting import (
    ThreadWaiter,
    _take_from_dead_holder,
    monitor,
    release_dead_holders,
    watch_holder,
)
from cuelight.coordination._owner import ThreadOwner, current_owner, this_thread
from helpers.lockable import until, worker


def test_a_lock_whose_release_was_interrupted_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(state: CapacityState, owner: object) -> None:
        raise KeyboardInterrupt

    lock = LocalLock("it", debug=True)
    lock.acquire_nowait()
    handed: list[CapacityState] = []
    grant_waiters = operations.grant_waiters

    def watched(state: CapacityState) -> None:
        handed.append(state)
        grant_waiters(state)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(operations, "untrack", interrupt)
        patch.setattr(operations, "grant_waiters", watched)
        lock.release()
    assert handed == [lock._state]
    lock.acquire_nowait()
    lock.release()


def test_without_an_event_loop_the_thread_owns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "trio", raising=False)
    assert current_owner() is this_thread.owner


async def test_a_thread_waits_in_its_block_for_a_place_of_a_semaphore() -> None:
    semaphore = LocalSemaphore(1)
    entered: list[int] = []

    def enter() -> None:
        with semaphore:
            entered.append(semaphore.available)

    with worker() as thread:
        async with semaphore:
            thread.start(enter)
            await until(lambda: semaphore.statistics().waiting == 1)
            assert entered == []
        await until(lambda: entered)
    assert entered == [0]


def test_a_thread_of_the_process_that_has_forked_this_one_is_not_woken() -> None:
    waiting = ThreadWaiter(CapacityState("it", 1), this_thread.owner, 1)
    assert waiting.wake()
    old = ThreadWaiter(CapacityState("it", 1), this_thread.owner, 1)
    old._generation -= 1
    assert not old.wake()
    assert old._sleep.locked()


def test_what_a_thread_holds_that_has_ended_already_is_released_at_once(caplog: pytest.LogCaptureFixture) -> None:
    state, owner = CapacityState("lock 'it'", 1), ThreadOwner()
    with monitor:
        assert state.try_acquire(owner, 1)
    owner.end()
    with monitor:
        watch_holder(state, owner)
    assert not state.held()
    assert "ended while it held lock 'it'" in caplog.text


def test_nothing_is_taken_away_from_somebody_who_holds_nothing() -> None:
    state = CapacityState("it", 1)
    with monitor:
        state.try_acquire(this_thread.owner, 1)
        assert _take_from_dead_holder(state, ThreadOwner()) == []
    assert state.is_held_by(this_thread.owner)


def test_a_manager_forgets_locks_whose_holder_has_ended(caplog: pytest.LogCaptureFixture) -> None:
    manager = LockManager()
    lock = manager.get_lock("a")
    thread = threading.Thread(target=lock.acquire_blocking)
    thread.start()
    thread.join(10)
    assert isinstance(lock, LocalLock)
    release_dead_holders(lock._state)
    assert lock in manager._kept
    manager._sweep_at = 1
    manager.get_lock("b")
    assert lock not in manager._kept
    assert "ended while it held" in caplog.text
