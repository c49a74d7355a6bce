"""The executor that runs calls in a worker process: results, errors, cancellation, and every kind of death."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cuelight.errors import PoolClosed, TaskFailed, WorkerDied
from cuelight.pools import Executor, ProcessExecutor, RemoteTraceback
from cuelight.pools._threads._executor import Successes
from helpers import Backend, run_on
from helpers import process_jobs as jobs

NONE: dict[str, Any] = {}


@asynccontextmanager
async def a_process(**options: Any) -> AsyncGenerator[ProcessExecutor]:
    executor = ProcessExecutor("pet", **options)
    try:
        yield executor
    finally:
        await executor.aclose()


async def until(condition: Callable[[], Any]) -> None:
    with anyio.fail_after(10):
        while not condition():  # noqa: ASYNC110 - another process tells us nothing
            await anyio.sleep(0.002)


def _nothing() -> None:
    pass


def alive(pid: int) -> bool:
    """Whether a process runs: one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_calls_run_in_one_other_process() -> None:
    process = ProcessExecutor("pet")
    executor: Executor = process
    first = await executor.run(os.getpid, (), {})
    assert first != os.getpid()
    assert await executor.run(os.getpid, (), {}) == first
    assert await executor.run(int, ("ff",), {"base": 16}) == 255
    assert await executor.run_chunk(jobs.same, [1, "two", None]) == [(True, 1), (True, "two"), (True, None)]
    assert await executor.run_chunk(jobs.same, []) == []
    values = await process.run_many(jobs.same, [1, "two", None])
    assert type(values) is Successes
    assert values == [1, "two", None]
    assert await process.run_many(jobs.same, [1, ("two",)]) == [(True, 1), (True, ("two",))]
    await executor.aclose()
    assert not alive(first)
    assert executor.replaced == 0


async def test_a_process_is_a_good_guest() -> None:
    async with a_process() as executor:
        facts = await executor.run(jobs.facts, (), {})
    assert facts.pop("argv") == __import__("sys").argv
    assert facts == {"stdin": "", "sigint": True, "group": True, "cuelight": False}


async def test_a_large_call_and_a_large_result_go_through() -> None:
    blob = os.urandom(3_000_000)
    async with a_process() as executor:
        assert await executor.run(jobs.same, (blob,), {}) == blob
        outcomes = await executor.run_chunk(jobs.big, list(range(9)))
        assert outcomes == [(True, jobs.big(item)) for item in range(9)]


async def test_an_error_has_the_traceback_of_the_process_as_its_cause() -> None:
    async with a_process() as executor:
        with pytest.raises(ZeroDivisionError, match="plain") as caught:
            await executor.run(jobs.raise_it, ("plain",), {})
        assert isinstance(caught.value.__cause__, RemoteTraceback)
        assert "process_jobs.py" in str(caught.value.__cause__)
        assert "_child.py" not in str(caught.value.__cause__)
        with pytest.raises(ValueError, match="effect") as chained:
            await executor.run(jobs.raise_it, ("chained",), {})
        assert isinstance(chained.value.__cause__, LookupError)
        assert "LookupError: cause" in str(chained.value.__cause__.__cause__)
        with pytest.raises(ValueError, match="noted") as noted:
            await executor.run(jobs.raise_it, ("noted",), {})
        assert noted.value.__notes__ == ["look here"]
        with pytest.raises(ExceptionGroup, match="two"):
            await executor.run(jobs.raise_it, ("group",), {})
        with pytest.raises(TaskFailed, match="SystemExit: 3") as left:
            await executor.run(jobs.raise_it, ("exit",), {})
        assert isinstance(left.value.__cause__, SystemExit)
        assert left.value.__cause__.code == 3
        assert executor.replaced == 0


@pytest.mark.parametrize("kind", ["carrier", "local", "liar", "refuser", "needs_main", "crowd"])
async def test_an_error_that_cannot_come_back_as_itself_says_so(kind: str) -> None:
    async with a_process() as executor:
        with pytest.raises(
            RuntimeError, match=r"raised in a worker process; the .* itself cannot be restored here"
        ) as caught:
            await executor.run(jobs.raise_it, (kind,), {})
        assert isinstance(caught.value.__cause__, RemoteTraceback)
        assert await executor.run(jobs.same, (1,), {}) == 1


async def test_an_error_comes_back_as_itself_with_its_fields() -> None:
    async with a_process() as executor:

        async def raised(kind: str) -> Any:
            with pytest.raises(BaseException) as caught:  # noqa: PT011
                await executor.run(jobs.raise_it, (kind,), {})
            return caught.value

        two = await raised("picky")
        assert (type(two), str(two), two.one, two.two) == (jobs.Picky, "1 and 2", 1, 2)
        keyword = await raised("keyword")
        assert (type(keyword), keyword.code, keyword.late, keyword.args) == (
            jobs.Keyword,
            404,
            "set later",
            ("code 404",),
        )
        assert keyword.__notes__ == ["a note"]
        assert (type(keyword.__cause__), keyword.__cause__.args) == (KeyError, ("k",))
        slotted = await raised("slotted")
        assert (type(slotted), slotted.place, hasattr(slotted, "empty")) == (jobs.Slotted, 7, False)
        missing = await raised("missing")
        assert (type(missing), missing.errno, missing.filename) == (FileNotFoundError, 2, "there.txt")
        own = await raised("own pickling")
        assert (type(own), own.code) == (jobs.OwnPickling, 5)
        group = await raised("nested")
        assert (type(group), group.label) == (jobs.Group, "labelled")
        assert [type(one) for one in group.exceptions] == [jobs.Picky, ExceptionGroup]
        assert group.exceptions[1].exceptions[0].code == 1
        assert type(await raised("silent")) is jobs.Silent
        assert str(await raised("prefix")) == "prefix: x"  # its constructor is not called again
        circle = await raised("circle")
        assert isinstance(circle, ValueError)
        assert isinstance(circle.__cause__, RemoteTraceback)


async def test_what_cannot_be_pickled_is_named_and_the_process_lives() -> None:
    lock: Any = threading.Lock()
    async with a_process() as executor:
        pid = await executor.run(os.getpid, (), {})
        with pytest.raises(pickle.PicklingError, match=r"<lambda> cannot be sent.*top level of a module"):
            await executor.run(lambda: 1, (), {})
        with pytest.raises(pickle.PicklingError, match=r"<lambda> cannot be sent"):
            await executor.run_chunk(lambda item: item, [1])
        with pytest.raises(pickle.PicklingError, match=r"argument 2 of builtins\.max, a lock, cannot"):
            await executor.run(max, (1, lock), {})
        with pytest.raises(pickle.PicklingError, match=r"argument 'key' of builtins\.max"):
            await executor.run(max, (1, 2), {"key": lock})
        with pytest.raises(pickle.PicklingError, match=r"the result, a builtins\.function, cannot be pickled"):
            await executor.run(jobs.unpicklable_result, (), {})
        with pytest.raises(LookupError, match="sour"):
            await executor.run(jobs.same, (jobs.Sour(),), {})
        with pytest.raises(pickle.UnpicklingError, match="LookupError: not here"):
            await executor.run(jobs.OnlyThere, (os.getpid(),), {})
        assert await executor.run(os.getpid, (), {}) == pid


async def test_an_item_that_cannot_be_pickled_costs_only_itself() -> None:
    async with a_process() as executor:
        outcomes = await executor.run_chunk(jobs.same, [1, threading.Lock(), 3])
        assert [succeeded for succeeded, _ in outcomes] == [True, False, True]
        assert "argument 1 of" in str(outcomes[1][1])
        outcomes = await executor.run_chunk(jobs.same, [1, jobs.Sour(), 3])
        assert [succeeded for succeeded, _ in outcomes] == [True, False, True]
        assert isinstance(outcomes[1][1], LookupError)
        outcomes = await executor.run_chunk(jobs.odd_result, [0, 1, 2])
        assert [succeeded for succeeded, _ in outcomes] == [True, False, True]
        assert isinstance(outcomes[1][1], pickle.PicklingError)
        assert executor.replaced == 0


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("kill", "was killed by SIGKILL (out of memory, or `kill -9`) under helpers.process_jobs.end"),
        ("exit 7", "ended with exit status 7 under"),
        ("exit 0", "ended with exit status 0 under"),
        ("segfault", "was killed by SIGSEGV under"),
        ("abort", "was killed by SIGABRT under"),
        ("realtime", "was killed by signal "),
        ("close", "was killed by SIGKILL"),
    ],
)
async def test_a_death_fails_the_call_and_the_next_has_a_new_process(how: str, said: str) -> None:
    async with a_process() as executor:
        pid = await executor.run(os.getpid, (), {})
        with pytest.raises(WorkerDied) as caught:
            await executor.run(jobs.end, (how,), {})
        assert f"pet: process {pid} {said}" in str(caught.value)
        assert executor.replaced == 1
        assert await executor.run(os.getpid, (), {}) != pid


async def test_a_death_costs_only_the_item_under_way(tmp_path: Path) -> None:
    async with a_process() as executor:
        outcomes = await executor.run_chunk(jobs.dies_at_three, [1, 2, 3, 4, 3, 5])
        assert [value for succeeded, value in outcomes if succeeded] == [10, 20, 40, 50]
        assert [type(value) for succeeded, value in outcomes if not succeeded] == [WorkerDied, WorkerDied]
        assert "item 2 of its chunk" in str(outcomes[2][1])
        assert executor.replaced == 2


async def test_results_that_do_not_fit_into_the_shared_memory_survive_a_death_too() -> None:
    async with a_process() as executor:
        outcomes = await executor.run_chunk(jobs.big_then_dies, list(range(8)))
    assert [succeeded for succeeded, _ in outcomes] == [True] * 5 + [False] + [True] * 2
    assert all(value == jobs.big(item) for item, (succeeded, value) in enumerate(outcomes) if succeeded)


async def test_a_process_that_dies_while_idle_costs_nothing() -> None:
    async with a_process() as executor:
        for call in range(3):
            assert await executor.run(jobs.same, (call,), {}) == call
            assert executor.pid is not None
            os.kill(executor.pid, signal.SIGKILL)
        assert await executor.run_chunk(jobs.same, [7]) == [(True, 7)]
        assert executor.replaced == 3


async def test_a_death_in_the_middle_of_a_large_call_is_not_an_attempt() -> None:
    blob = bytes(5_000_000)
    async with a_process() as executor:
        await executor.run(jobs.same, (1,), {})
        pid = executor.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)  # so it does not read
        async with anyio.create_task_group() as tasks:

            async def call() -> None:
                assert await executor.run(len, (blob,), {}) == 5_000_000

            tasks.start_soon(call)
            await anyio.wait_all_tasks_blocked()
            os.kill(pid, signal.SIGKILL)
        assert executor.replaced == 1


async def test_a_process_that_cannot_start_is_tried_twice_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cuelight.pools._processes._start._set_for_multiprocessing", _nothing)
    monkeypatch.setattr("sys.executable", "/bin/false")
    async with a_process() as executor:
        with pytest.raises(WorkerDied, match=r"ended with exit status 1 before it began"):
            await executor.run(jobs.same, (1,), {})
        assert executor.replaced == 2
        outcomes = await executor.run_chunk(jobs.same, [1, 2, 3])
        assert [type(error) for _, error in outcomes] == [WorkerDied] * 3
        assert executor.replaced == 4


async def test_a_program_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    before = descriptors()
    async with a_process() as executor:
        with monkeypatch.context() as patch:
            patch.setattr("cuelight.pools._processes._start._set_for_multiprocessing", _nothing)
            patch.setattr("sys.executable", "/nowhere/python")
            with pytest.raises(FileNotFoundError):
                await executor.run(jobs.same, (1,), {})
        assert descriptors() == before
        assert await executor.run(jobs.same, (1,), {}) == 1


async def test_cancelling_a_call_kills_its_process(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    async with a_process() as executor:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(executor.run, jobs.sleep_marked, (str(mark), 60), NONE)
            await until(lambda: mark.exists() and mark.read_text())
            tasks.cancel_scope.cancel()
        assert not alive(int(mark.read_text()))
        assert executor.replaced == 1
        assert await executor.run(jobs.same, (1,), {}) == 1


async def test_cancelling_a_call_ends_what_it_has_started(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    async with a_process() as executor:
        sleeper = await executor.run(jobs.start_sleeper, (str(mark),), {})
        with anyio.move_on_after(0.05):
            await executor.run(time.sleep, (60,), {})
        await until(lambda: not alive(sleeper))


async def test_closing_ends_what_a_call_has_started(tmp_path: Path) -> None:
    async with a_process() as executor:
        sleeper = await executor.run(jobs.start_sleeper, (str(tmp_path / "mark"),), {})
    await until(lambda: not alive(sleeper))


async def test_a_forked_process_does_not_hide_a_death() -> None:
    async with a_process() as executor:
        with anyio.fail_after(10), pytest.raises(WorkerDied, match="exit status 5"):
            await executor.run(jobs.fork_sleeper_and_die, (), {})


async def test_one_call_at_a_time() -> None:
    async with a_process() as executor, anyio.create_task_group() as tasks:
        tasks.start_soon(executor.run, time.sleep, (60,), NONE)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(RuntimeError, match="one call at a time"):
            await executor.run(jobs.same, (1,), {})
        tasks.cancel_scope.cancel()


async def test_closing_while_a_call_runs_kills_the_process(tmp_path: Path) -> None:
    executor, mark = ProcessExecutor("pet"), tmp_path / "mark"

    async def call() -> None:
        with pytest.raises(WorkerDied):
            await executor.run(jobs.sleep_marked, (str(mark), 60), {})

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await until(lambda: mark.exists() and mark.read_text())
        await executor.aclose()
    with pytest.raises(PoolClosed, match="'pet' was closed"):
        await executor.run(jobs.same, (1,), {})
    await executor.aclose()


async def test_closing_before_a_call_has_begun_never_begins_it() -> None:
    executor = ProcessExecutor("pet")
    await executor.run(jobs.same, (1,), {})
    assert executor.pid is not None
    os.kill(executor.pid, signal.SIGSTOP)

    async def call() -> None:
        with pytest.raises(PoolClosed):
            await executor.run(jobs.end, ("kill",), {})

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await anyio.wait_all_tasks_blocked()
        await executor.aclose()
    assert executor.pid is None


async def test_a_process_that_does_not_end_in_time_is_killed() -> None:
    executor = ProcessExecutor("pet", close_timeout=0.05)
    pid = await executor.run(os.getpid, (), {})
    os.kill(pid, signal.SIGSTOP)
    await executor.aclose()
    assert not alive(pid)


def test_a_bad_time_out_is_refused() -> None:
    with pytest.raises(ValueError, match="close_timeout\\): -1"):
        ProcessExecutor("pet", close_timeout=-1)


async def test_a_worker_process_can_have_worker_processes() -> None:
    async with a_process() as executor:
        inner = await executor.run(jobs.nested, (), {})
        assert inner not in (os.getpid(), executor.pid)


async def test_nothing_is_left_open() -> None:
    async with a_process() as executor:
        await executor.run(jobs.same, (1,), {})
    before = descriptors()
    async with a_process() as executor:
        await executor.run(jobs.same, (1,), {})
        with pytest.raises(WorkerDied):
            await executor.run(jobs.end, ("kill",), {})
        with anyio.move_on_after(0.05):
            await executor.run(time.sleep, (60,), {})
        await executor.run(jobs.same, (1,), {})
    assert descriptors() == before


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(items=st.lists(st.sampled_from(["ok", "kill", "exit 7", "fine"]), max_size=5))
def test_each_item_has_its_outcome_whatever_dies(backend: Backend, items: list[str]) -> None:
    """What a process finished keeps its outcome; the item under way is `WorkerDied`; later ones run elsewhere."""

    async def main() -> None:
        async with a_process() as executor:
            outcomes = await executor.run_chunk(jobs.end, items)
        dead = {"kill", "exit 7"}
        assert [succeeded for succeeded, _ in outcomes] == [item not in dead for item in items]
        assert all(value == item for item, (succeeded, value) in zip(items, outcomes, strict=True) if succeeded)
        assert executor.replaced == sum(item in dead for item in items)

    run_on(backend, main)
