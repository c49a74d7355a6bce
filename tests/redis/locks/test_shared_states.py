"""What a process has of a lock without a server: forks, what is owed when a program ends, channels that stay silent."""

from __future__ import annotations

import math
import threading
from types import SimpleNamespace
from typing import Any
from weakref import WeakValueDictionary

import anyio
import anyio.to_thread
import pytest
from redis.exceptions import ResponseError

from cuelight.errors import LeaseLost, StoreRefused, StoreUnavailable
from cuelight.mailbox._task_info import running_task
from cuelight.redis import fenced_set_blocking
from cuelight.redis._locks import _renewal as renewers
from cuelight.redis._locks import _renewal as threads
from cuelight.redis._locks import _script as names
from cuelight.redis._locks import _shared_state as shared
from cuelight.redis._locks._lease import LeaseOptions, LockLease, now
from cuelight.redis._locks._renewal import LeaseRenewer
from cuelight.redis._locks._script import AcquireReply, client_name, lock_names
from cuelight.redis._locks._shared_state import GrantChannel, SharedLockState, shared_state

TERMS = LeaseOptions(10.0, "flag", 0.0, 0)


class FakeServer:
    """Answers what it is told to."""

    name = "fake"

    def __init__(self, reply: Any = None, error: Exception | None = None) -> None:
        self.reply, self.error = reply, error
        self.subscribed = 0

    def run_blocking(self, *_: object, **__: object) -> Any:
        if self.error is not None:
            raise self.error
        return self.reply

    async def subscribe(self, *_: object) -> Any:
        self.subscribed += 1
        return SimpleNamespace(close=lambda: None)


class SilentServer(FakeServer):
    async def subscribe(self, *_: object) -> Any:
        await anyio.sleep_forever()


def core_of(name: str = "it", server: Any = None) -> SharedLockState:
    fake: Any = FakeServer() if server is None else server
    return shared_state(f"lock {name!r}", lock_names("prefix", "lock", name), fake, 1)


def lease_of(state: SharedLockState, owner: object, home: Any = None) -> LockLease:
    return LockLease(state.label, state.request(TERMS, 1, first=True), 1, asked=now(), owner=owner, renewer=home)


# Forks.


def test_the_child_of_a_fork_holds_nothing_of_what_its_parent_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    server: Any = FakeServer()
    states: WeakValueDictionary[Any, SharedLockState] = WeakValueDictionary()
    monkeypatch.setattr(shared, "_shared_states", states)
    monkeypatch.setattr(shared, "_making", threading.Lock())
    monkeypatch.setattr(shared, "_slots", shared._Slots())
    state = core_of(server=server)
    held, owed = lease_of(state, "owner"), state.request(TERMS, 1, first=True)
    state.add_lease(held)
    state.queue_release(owed, 0, math.inf)
    state.grant_channels["loop"] = GrantChannel(server, "channel")
    assert shared._making.acquire()  # a thread of the parent has it
    shared._after_fork()
    assert not shared._making.locked()
    assert not state.must_release()
    assert state.take_pending() == []
    assert state.grant_channels == {}
    with pytest.raises(LeaseLost, match="it stays with the process that this one was forked from"):
        held.check()
    assert state.request(TERMS, 1, first=True).slot == 0


def test_what_a_parent_owes_the_child_of_a_fork_does_not_give_back(monkeypatch: pytest.MonkeyPatch) -> None:
    state = core_of("copy")
    ticket = state.request(TERMS, 1, first=True)
    before = client_name()
    monkeypatch.setattr(names, "_name", before)
    names._forget()
    assert client_name() != before
    assert state.queue_release(ticket, 0, math.inf).over
    assert not state.pending


def test_the_child_of_a_fork_starts_a_thread_of_its_own_for_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bool] = []

    class Thread:
        def __init__(self) -> None:
            made.append(True)

    loops: dict[Any, Any] = {"loop": "keeper"}
    monkeypatch.setattr(threads, "background_loop", Thread())
    monkeypatch.setattr(threads, "_renewers", loops)
    threads._after_fork()
    assert made == [True, True]
    assert loops == {}


def test_a_member_that_is_no_process_of_ours_is_another_process() -> None:
    assert names.describe_member("host.12.abcd/0") == "process 12 on host"
    assert names.describe_member("somebody") == "another process"


# Leases.


def test_a_lease_that_is_not_held_any_more_is_removed_without_effect_on_others() -> None:
    state = core_of("two")
    first, second = lease_of(state, "owner"), lease_of(state, "owner")
    state.add_lease(first)
    state.remove_lease(second)
    assert state.newest_lease("owner", 1) is first
    state.remove_lease(first)
    state.remove_lease(first)
    assert state.newest_lease("owner", 1) is None


async def test_a_renewer_releases_in_its_own_loop_a_lease_that_a_thread_abandoned() -> None:
    class Watched(LeaseRenewer):
        def flush(self, state: SharedLockState) -> None:
            flushed.append(threading.get_ident())
            done.set()

    flushed: list[int] = []
    done, elsewhere, state = anyio.Event(), list[SharedLockState](), core_of("far")
    renewer = Watched(elsewhere.append)
    lease = lease_of(state, running_task(), renewer)  # who asks makes the loop known
    await anyio.to_thread.run_sync(renewer.release_abandoned, state, lease)
    with anyio.fail_after(10):
        await done.wait()
    assert flushed == [threading.get_ident()]
    assert elsewhere == []
    assert [pending_release.request for pending_release in state.pending] == [lease.request]
    state.drop_releases()


async def test_a_program_that_ends_leaves_to_its_lease_what_cannot_be_given_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(renewers, "ENDING", 0.0)
    sending = anyio.Event()

    class Stuck(LeaseRenewer):
        async def _send(self, state: SharedLockState) -> None:
            sending.set()
            await anyio.sleep_forever()

    elsewhere, state = list[SharedLockState](), core_of("stuck")
    renewer = Stuck(elsewhere.append)
    pending_release = state.queue_release(state.request(TERMS, 1, first=True), 0, math.inf)
    async with anyio.create_task_group() as group:
        group.start_soon(renewer._flush, state)
        with anyio.fail_after(10):
            await sending.wait()
        renewer.finish_soon()
        renewer.finish_soon()  # it has been told
    assert pending_release.over
    assert pending_release.outcome is None
    assert (list(state.pending), elsewhere, renewer.idle) == ([], [], True)
    assert "lock 'stuck' could not be given back: the program ends. Its lease will run out" in caplog.text


# What a server does not say.


async def test_a_channel_that_does_not_open_in_time_is_unavailable() -> None:
    silent: Any = SilentServer()
    grant_channel = GrantChannel(silent, "channel")
    with pytest.raises(StoreUnavailable, match="fake did not begin to tell of changes within 0 s"):
        await grant_channel.listen(0.0)
    assert not grant_channel.open


async def test_a_channel_that_is_open_is_not_opened_again() -> None:
    server: Any = FakeServer()
    grant_channel = GrantChannel(server, "channel")
    await grant_channel.listen()
    await grant_channel.listen()
    assert grant_channel.open
    assert server.subscribed == 1


def test_an_answer_with_an_unknown_code_is_none() -> None:
    with pytest.raises(ValueError, match="code 7"):
        AcquireReply([[], 7, 0, 0, 0, b""])


def test_a_server_that_has_no_token_at_the_key_of_one_is_refused_in_a_thread() -> None:
    server: Any = FakeServer(error=ResponseError("value is not an integer"))
    with pytest.raises(StoreRefused, match=r"fake did not set 'key': value is not an integer.*is no fencing token"):
        fenced_set_blocking(server, "key", "value", 1)
    server = FakeServer([0, 9])
    with pytest.raises(LeaseLost, match="under fence 9 already, which is greater than 1"):
        fenced_set_blocking(server, "key", "value", 1)
