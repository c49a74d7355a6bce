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
from cuelight.redis._locks import _renewal as keepers
from cuelight.redis._locks import _renewal as threads
from cuelight.redis._locks import _script as names
from cuelight.redis._locks import _shared_state as shared
from cuelight.redis._locks._lease import Lease, Terms, now
from cuelight.redis._locks._renewal import Keeper
from cuelight.redis._locks._script import Answer, client_name, names_of
from cuelight.redis._locks._shared_state import Ear, SharedLockState, shared_state

TERMS = Terms(10.0, "flag", 0.0, 0)


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
    return shared_state(f"lock {name!r}", names_of("prefix", "lock", name), fake, 1)


def lease_of(state: SharedLockState, owner: object, home: Any = None) -> Lease:
    return Lease(state.label, state.ticket(TERMS, 1, first=True), 1, asked=now(), owner=owner, home=home)


# Forks.


def test_the_child_of_a_fork_holds_nothing_of_what_its_parent_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    server: Any = FakeServer()
    states: WeakValueDictionary[Any, SharedLockState] = WeakValueDictionary()
    monkeypatch.setattr(shared, "_shared_states", states)
    monkeypatch.setattr(shared, "_making", threading.Lock())
    monkeypatch.setattr(shared, "_slots", shared._Slots())
    state = core_of(server=server)
    held, owed = lease_of(state, "owner"), state.ticket(TERMS, 1, first=True)
    state.enter(held)
    state.give_back(owed, 0, math.inf)
    state.ears["loop"] = Ear(server, "channel")
    assert shared._making.acquire()  # a thread of the parent has it
    shared._after_fork()
    assert not shared._making.locked()
    assert not state.owes()
    assert state.outgoing() == []
    assert state.ears == {}
    with pytest.raises(LeaseLost, match="it stays with the process that this one was forked from"):
        held.check()
    assert state.ticket(TERMS, 1, first=True).slot == 0


def test_what_a_parent_owes_the_child_of_a_fork_does_not_give_back(monkeypatch: pytest.MonkeyPatch) -> None:
    state = core_of("copy")
    ticket = state.ticket(TERMS, 1, first=True)
    before = client_name()
    monkeypatch.setattr(names, "_name", before)
    names._forget()
    assert client_name() != before
    assert state.give_back(ticket, 0, math.inf).over
    assert not state.pending


def test_the_child_of_a_fork_starts_a_thread_of_its_own_for_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bool] = []

    class Thread:
        def __init__(self) -> None:
            made.append(True)

    loops: dict[Any, Any] = {"loop": "keeper"}
    monkeypatch.setattr(threads, "the_thread", Thread())
    monkeypatch.setattr(threads, "_keepers", loops)
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
    state.enter(first)
    state.remove(second)
    assert state.newest("owner", 1) is first
    state.remove(first)
    state.remove(first)
    assert state.newest("owner", 1) is None


async def test_a_keeper_gives_back_in_its_own_loop_what_a_thread_let_go() -> None:
    class Watched(Keeper):
        def flush(self, state: SharedLockState) -> None:
            flushed.append(threading.get_ident())
            done.set()

    flushed: list[int] = []
    done, elsewhere, state = anyio.Event(), list[SharedLockState](), core_of("far")
    keeper = Watched(elsewhere.append)
    lease = lease_of(state, running_task(), keeper)  # who asks makes the loop known
    await anyio.to_thread.run_sync(keeper.let_go, state, lease)
    with anyio.fail_after(10):
        await done.wait()
    assert flushed == [threading.get_ident()]
    assert elsewhere == []
    assert [lowering.ticket for lowering in state.pending] == [lease.ticket]
    state.forsake()


async def test_a_program_that_ends_leaves_to_its_lease_what_cannot_be_given_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keepers, "ENDING", 0.0)
    sending = anyio.Event()

    class Stuck(Keeper):
        async def _send(self, state: SharedLockState) -> None:
            sending.set()
            await anyio.sleep_forever()

    elsewhere, state = list[SharedLockState](), core_of("stuck")
    keeper = Stuck(elsewhere.append)
    lowering = state.give_back(state.ticket(TERMS, 1, first=True), 0, math.inf)
    async with anyio.create_task_group() as group:
        group.start_soon(keeper._flush, state)
        with anyio.fail_after(10):
            await sending.wait()
        keeper.end_soon()
        keeper.end_soon()  # it has been told
    assert lowering.over
    assert lowering.outcome is None
    assert (list(state.pending), elsewhere, keeper.idle) == ([], [], True)
    assert "lock 'stuck' could not be given back: the program ends. Its lease will run out" in caplog.text


# What a server does not say.


async def test_a_channel_that_does_not_open_in_time_is_unavailable() -> None:
    silent: Any = SilentServer()
    ear = Ear(silent, "channel")
    with pytest.raises(StoreUnavailable, match="fake did not begin to tell of changes within 0 s"):
        await ear.listen(0.0)
    assert not ear.open


async def test_a_channel_that_is_open_is_not_opened_again() -> None:
    server: Any = FakeServer()
    ear = Ear(server, "channel")
    await ear.listen()
    await ear.listen()
    assert ear.open
    assert server.subscribed == 1


def test_an_answer_with_an_unknown_code_is_none() -> None:
    with pytest.raises(ValueError, match="code 7"):
        Answer([[], 7, 0, 0, 0, b""])


def test_a_server_that_has_no_token_at_the_key_of_one_is_refused_in_a_thread() -> None:
    server: Any = FakeServer(error=ResponseError("value is not an integer"))
    with pytest.raises(StoreRefused, match=r"fake did not set 'key': value is not an integer.*is no fencing token"):
        fenced_set_blocking(server, "key", "value", 1)
    server = FakeServer([0, 9])
    with pytest.raises(LeaseLost, match="under fence 9 already, which is greater than 1"):
        fenced_set_blocking(server, "key", "value", 1)
