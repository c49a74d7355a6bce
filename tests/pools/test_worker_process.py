"""The parent's end of a worker process, without a process."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest

from cuelight.pools._processes import _child as child
from cuelight.pools._processes import _worker_process as module
from cuelight.pools._processes._worker_process import WorkerProcess


class Process:
    """Stands for a process that runs until it is told how it has ended."""

    def __init__(self) -> None:
        self.pid = 2**30  # there is none of this number
        self.returncode: int | None = None
        self.waits = 0

    def wait(self) -> int:
        self.waits += 1
        self.returncode = self.returncode or 0
        return self.returncode


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The process groups to which a signal was sent, and which; nothing is sent."""
    sent: list[tuple[int, int]] = []

    def killpg(group: int, number: int) -> None:
        sent.append((group, number))

    monkeypatch.setattr(os, "killpg", killpg)
    return sent


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Process:
    made = Process()

    def the_process(*_: object) -> Process:
        return made

    monkeypatch.setattr(WorkerProcess, "_start", staticmethod(the_process))
    return made


@pytest.fixture
def link(process: Process, killed: list[tuple[int, int]]) -> Iterator[WorkerProcess]:
    made = WorkerProcess()
    yield made
    made.close()


def test_worker_processes_are_refused_where_there_are_no_process_groups(
    monkeypatch: pytest.MonkeyPatch, process: Process
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(RuntimeError, match="which Windows does not have: use threads"):
        WorkerProcess()


def test_a_program_that_is_being_loaded_for_a_call_starts_no_worker_processes(
    monkeypatch: pytest.MonkeyPatch, process: Process
) -> None:
    main = types.ModuleType("__main__")
    vars(main)[child.LOADING] = True
    monkeypatch.setitem(sys.modules, "__main__", main)
    with pytest.raises(RuntimeError, match="put what the program does under `if __name__ == '__main__':`"):
        WorkerProcess()


def test_nothing_stays_open_if_the_process_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []

    def start(executable: str | None, *descriptors: int) -> Any:
        given.extend(descriptors)
        raise OSError("no more processes")

    monkeypatch.setattr(WorkerProcess, "_start", staticmethod(start))
    with pytest.raises(OSError, match="no more processes"):
        WorkerProcess()
    assert len(given) == 3
    for descriptor in given:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_shared_memory_has_room_for_the_header_and_the_records(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    region = module._new_region()
    try:
        assert os.fstat(region).st_size == child.DATA + child.REGION
    finally:
        os.close(region)


def test_a_forked_process_leaves_the_worker_processes_to_its_parent(
    monkeypatch: pytest.MonkeyPatch, link: WorkerProcess, process: Process, killed: list[tuple[int, int]]
) -> None:
    monkeypatch.setattr(module, "_worker_processes", {link})
    module._leave_to_parent()
    assert (link.is_of_parent, link.fileno()) == (True, -1)
    link.kill()
    assert killed == []


def test_a_process_is_killed_with_its_group_until_it_has_ended(
    link: WorkerProcess, process: Process, killed: list[tuple[int, int]]
) -> None:
    link.kill()
    process.returncode = 0
    link.kill()
    assert killed == [(process.pid, signal.SIGKILL)]


def test_killing_a_process_that_is_gone_is_harmless(monkeypatch: pytest.MonkeyPatch, link: WorkerProcess) -> None:
    def gone(group: int, number: int) -> None:
        raise ProcessLookupError

    monkeypatch.setattr(os, "killpg", gone)
    link.kill()


def test_hanging_up_on_a_dead_process_kills_its_group(
    link: WorkerProcess, process: Process, killed: list[tuple[int, int]]
) -> None:
    link._connection.close()
    link.close_writing()
    assert killed == [(process.pid, signal.SIGKILL)]


def test_waiting_ends_what_the_process_has_left_running(
    monkeypatch: pytest.MonkeyPatch, link: WorkerProcess, process: Process, killed: list[tuple[int, int]]
) -> None:
    def has_ended(*_: int) -> None: ...

    monkeypatch.setattr(os, "waitid", has_ended)
    assert (link.wait(), process.waits, killed) == (0, 1, [(process.pid, signal.SIGKILL)])


def test_waiting_for_a_process_that_somebody_else_has_waited_for_kills_nobody(
    link: WorkerProcess, process: Process, killed: list[tuple[int, int]]
) -> None:
    assert (link.wait(), process.waits, killed) == (0, 1, [])  # it is no child of this one


def test_without_waitid_the_process_alone_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, link: WorkerProcess, process: Process, killed: list[tuple[int, int]]
) -> None:
    monkeypatch.delattr(os, "waitid")
    assert (link.wait(), process.waits, killed) == (0, 1, [])


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (None, "was killed"),
        (0, "ended with exit status 0"),
        (7, "ended with exit status 7"),
        (-signal.SIGKILL, "was killed by SIGKILL (out of memory, or `kill -9`)"),
        (-signal.SIGSEGV, "was killed by SIGSEGV"),
        (-200, "was killed by signal 200"),
    ],
)
def test_how_a_process_ended_is_said_in_words(
    link: WorkerProcess, process: Process, status: int | None, words: str
) -> None:
    process.returncode = status
    assert link.exit_description() == words


def test_an_answer_is_whole_with_its_last_frame(
    monkeypatch: pytest.MonkeyPatch, process: Process, killed: list[tuple[int, int]]
) -> None:
    theirs: list[int] = []

    def start(executable: str | None, connection: int, *_: int) -> Any:
        theirs.append(os.dup(connection))
        return process

    monkeypatch.setattr(WorkerProcess, "_start", staticmethod(start))
    link = WorkerProcess()
    try:
        assert link.receive() is None
        record = child._success("a")
        part, end = (child.FRAME.pack(kind, len(record)) + record for kind in (child.PART, child.END))
        os.write(theirs[0], part + end[:5])
        assert link.receive() is None
        os.write(theirs[0], end[5:])
        assert (link.receive(), link.outcomes()) == (child.END, [(True, "a"), (True, "a")])
        os.close(theirs[0])
        with pytest.raises(EOFError):
            link.receive()
    finally:
        link.close()


def _same(item: object) -> object:
    return item


@pytest.mark.parametrize("numbers", [[], [1, -5, 2**62], [0.5, -0.0]])
def test_numbers_that_were_finished_when_the_process_died_are_kept(
    link: WorkerProcess, numbers: list[float], process: Process
) -> None:
    link.begin(b"")
    with memoryview(link._region) as whole, whole[: child.DATA] as head, head.cast("Q") as words:
        assert child._run_numbers(link._region, words, (_same, [*numbers, "a"])) == (numbers, (True, "a"))
    assert [value for _, value in link.recover_results()] == numbers


def test_a_process_that_dies_right_after_it_has_sent_its_numbers_is_counted_once(
    link: WorkerProcess, process: Process
) -> None:
    link.begin(b"")
    with memoryview(link._region) as whole, whole[: child.DATA] as head, head.cast("Q") as words:
        child._run_numbers(link._region, words, (int, ["1", "2"]))
        link._records += b"".join(map(child._success, [1, 2]))
        assert link.recover_results() == [(True, 1), (True, 2)]
        words[child.WRITTEN] = 0
        assert link.recover_results() == [(True, 1), (True, 2)]
        words[child.KIND] = child.RECORDS
        assert link.recover_results() == [(True, 1), (True, 2)]
        words[child.BASE] = 2
        assert link.recover_results() == [(True, 1), (True, 2)]
    link.values = [1, 2]
    assert link.outcomes() == []


def test_the_interpreter_gets_its_descriptors_and_a_group_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def popen(command: list[str], **options: Any) -> None:
        asked.append((command, options))

    monkeypatch.setattr(subprocess, "Popen", popen)
    WorkerProcess._start("/mine/python", 3, 4, 5)
    [(command, options)] = asked
    assert (command[0], command[-3:]) == ("/mine/python", ["3", "4", "5"])
    assert options == {"stdin": subprocess.DEVNULL, "pass_fds": (3, 4, 5), "process_group": 0}


def test_ctrl_c_while_a_result_is_unpickled_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(data: object) -> object:
        raise KeyboardInterrupt

    record = child._success("a")
    monkeypatch.setattr(pickle, "loads", interrupt)
    with pytest.raises(KeyboardInterrupt):
        module._decode(record)
