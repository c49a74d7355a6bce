"""Single steps of locks: an interrupt in the middle, an owner that has ended, a process that was forked."""

from __future__ import annotations

import sys
import threading

import pytest

from cuelight.coordination import LocalLock, LocalSemaphore, LockManager
from cuelight.coordination import _lock_waiting as operations
from cuelight.coordination._lock_state import Core
from cuelight.coordination._lock_waiting import ThreadWaiting, _take_away, monitor, reap, watch
from cuelight.coordination._owner import ThreadParty, here, whoever
from helpers.lockable import until, worker


def test_a_lock_whose_release_was_interrupted_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(core: Core, owner: object) -> None:
        raise KeyboardInterrupt

    lock = LocalLock("it", debug=True)
    lock.acquire_nowait()
    handed: list[Core] = []
    hand_over = operations.hand_over

    def watched(core: Core) -> None:
        handed.append(core)
        hand_over(core)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(operations, "forget", interrupt)
        patch.setattr(operations, "hand_over", watched)
        lock.release()
    assert handed == [lock._core]
    lock.acquire_nowait()
    lock.release()


def test_without_an_event_loop_the_thread_owns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "trio", raising=False)
    assert whoever() is here.me


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
    waiting = ThreadWaiting(Core("it", 1), here.me, 1)
    assert waiting.wake()
    old = ThreadWaiting(Core("it", 1), here.me, 1)
    old._generation -= 1
    assert not old.wake()
    assert old._sleep.locked()


def test_what_a_thread_holds_that_has_ended_already_is_released_at_once(caplog: pytest.LogCaptureFixture) -> None:
    core, party = Core("lock 'it'", 1), ThreadParty()
    with monitor:
        assert core.try_acquire(party, 1)
    party.end()
    with monitor:
        watch(core, party)
    assert not core.held()
    assert "ended while it held lock 'it'" in caplog.text


def test_nothing_is_taken_away_from_somebody_who_holds_nothing() -> None:
    core = Core("it", 1)
    with monitor:
        core.try_acquire(here.me, 1)
        assert _take_away(core, ThreadParty()) == []
    assert core.is_held_by(here.me)


def test_a_manager_forgets_locks_whose_holder_has_ended(caplog: pytest.LogCaptureFixture) -> None:
    manager = LockManager()
    lock = manager.get_lock("a")
    thread = threading.Thread(target=lock.acquire_blocking)
    thread.start()
    thread.join(10)
    assert isinstance(lock, LocalLock)
    reap(lock._core)
    assert lock in manager._kept
    manager._sweep_at = 1
    manager.get_lock("b")
    assert lock not in manager._kept
    assert "ended while it held" in caplog.text
