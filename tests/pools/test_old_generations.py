"""What was made before a fork, without a fork: things that are told to be of an older generation."""

from __future__ import annotations

import select
import socket
import threading
from typing import Any

import pytest

from cuelight import ActorSystem
from cuelight.coordination._owner import this_thread
from cuelight.errors import PoolClosed, ends_the_program
from cuelight.pools import AsyncWorkerPool, ProcessExecutor, ThreadExecutor, WorkerPool, WorkerPoolConfig
from cuelight.pools._processes import _caller as call_module
from cuelight.pools._processes import _child as child
from cuelight.pools._processes import _executor as processes
from cuelight.pools._processes._caller import ProcessCaller
from cuelight.pools._processes._executor import ProcessAnswer
from cuelight.pools._threads import _pool as pool_module


class LinkOfParent:
    """A worker process of the process that has forked this one: nothing may be done to it."""

    is_of_parent = True
    pid = 0


class Interrupting:
    def __reduce__(self) -> str:
        raise KeyboardInterrupt


async def test_a_thread_executor_begins_anew() -> None:
    executor = ThreadExecutor("pet")
    first: threading.Thread = await executor.run(threading.current_thread, (), {})
    threads: list[Any] = [executor._thread]
    executor._generation -= 1
    second: threading.Thread = await executor.run(threading.current_thread, (), {})
    assert second is not first
    threads.append(executor._thread)
    executor._generation -= 1
    await executor.aclose()  # it waits for no thread of another process
    assert (executor._thread, second.is_alive()) == (None, True)
    for thread in threads:
        thread.close(None)
        thread.join(10)
        assert not thread.is_alive()


async def test_the_lock_owner_of_a_thread_executor_is_there_while_it_runs_a_call() -> None:
    executor = ThreadExecutor("pet")
    assert executor.lock_owner is None
    assert await executor.run(lambda: executor.lock_owner is this_thread.owner, (), {})
    assert executor.lock_owner is None
    await executor.aclose()


async def test_a_process_executor_leaves_the_process_of_its_parent_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    frames: list[bytes] = []

    async def exchange(frame: bytes) -> ProcessAnswer:
        frames.append(frame)
        return ProcessAnswer([(True, 5)])

    executor = ProcessExecutor("pet")
    link: Any = LinkOfParent()
    monkeypatch.setattr(executor, "_exchange", exchange)
    executor._process, executor._busy = link, True  # a call was under way when the parent has forked
    assert await executor.run(len, ("",), {}) == 5
    assert (executor._process, executor._busy, len(frames)) == (None, False, 1)
    executor._process = link
    await executor.aclose()
    assert executor.pid is None


async def test_a_chunk_of_no_items_has_no_outcomes(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [ProcessAnswer([]), ProcessAnswer([], values=[])]

    async def exchange(frame: bytes) -> ProcessAnswer:
        return answers.pop(0)

    executor = ProcessExecutor("pet")
    monkeypatch.setattr(executor, "_exchange", exchange)
    assert await executor.run_many(len, []) == []
    assert await executor.run_many(len, []) == []
    assert answers == []
    await executor.aclose()


async def test_ctrl_c_while_a_call_is_pickled_is_not_swallowed() -> None:
    executor = ProcessExecutor("pet")
    for attempt in (executor.run(len, (Interrupting(),), {}), executor.run_many(len, [Interrupting()])):
        with pytest.raises(KeyboardInterrupt) as raised:
            await attempt
        assert ends_the_program(raised.value)
    with pytest.raises(KeyboardInterrupt):
        processes._can_pickle(Interrupting())
    assert executor.pid is None
    await executor.aclose()


def test_arguments_that_can_be_pickled_one_by_one_but_not_together_are_named_together() -> None:
    assert processes._unpicklable(len, (1,), {"two": 2}).startswith("the arguments of builtins.len cannot be sent")


def test_a_blocking_call_waits_until_its_process_takes_and_answers_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    theirs.send(b"answer")
    polled: list[int] = []

    class Link:
        values = None
        sent = iter([False, True])
        received = iter([None, child.END])

        def __init__(self, executable: str | None) -> None:
            self.frame = b""

        def fileno(self) -> int:
            return ours.fileno()

        def begin(self, frame: bytes) -> None:
            self.frame = frame

        def send(self) -> bool:
            return next(self.sent)

        def receive(self) -> bytes | None:
            return next(self.received)

        def outcomes(self) -> list[tuple[bool, int]]:
            return [(True, 3)]

    poll: Any = call_module._poll

    def watched(link: Any, event: int, limit: float | None = None) -> None:
        polled.append(event)
        poll(link, event, limit)

    monkeypatch.setattr(call_module, "WorkerProcess", Link)
    monkeypatch.setattr(call_module, "_poll", watched)
    with ours, theirs:
        assert ProcessCaller("pet").call(len, ("abc",), {}) == (True, 3)
    assert polled == [select.POLLOUT, select.POLLIN]


def test_a_blocking_pool_begins_anew_with_what_it_remembers(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[object] = []
    monkeypatch.setattr(pool_module, "_left_to_parents", left)
    pool = WorkerPool(WorkerPoolConfig(max_workers=1))
    before = pool._current
    pool._generation -= 1
    with pool:
        assert pool.get_task_result(pool.submit_task("len", len, ("ab",)), timeout=30).result == 2
        assert pool._current is not before
    assert left == [before]


async def test_an_async_pool_whose_workers_are_elsewhere_is_refused() -> None:
    async with AsyncWorkerPool(1) as pool:
        pool._generation -= 1
        with pytest.raises(PoolClosed, match="are in the process that has forked this one: make a new pool here"):
            await pool.submit(len, "")
        pool._generation += 1
        assert (await pool.submit(len, "ab")).result == 2


async def test_an_async_pool_without_workers_goes_on() -> None:
    pool = AsyncWorkerPool(1)
    pool._generation -= 1
    assert (await pool.submit(len, "ab")).result == 2


async def test_a_pool_in_a_given_system_is_entered_once() -> None:
    async with ActorSystem() as system:
        pool = AsyncWorkerPool(1, system=system)
        async with pool:
            assert (await pool.submit(len, "ab")).result == 2
        with pytest.raises(PoolClosed, match="was entered or shut down before: make a new one"):
            await pool.__aenter__()
        used = AsyncWorkerPool(1, system=system)
        group = used.group
        async with used:
            assert used.group is group
