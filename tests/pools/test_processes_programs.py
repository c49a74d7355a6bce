"""Worker processes of whole programs: how they end, what they print, where their functions come from."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cuelight.pools._child import CALL, CHUNK, DATA, FRAME, REGION, SETUP, Frames

PROGRAM = """
import os, sys, time
import anyio
from cuelight.pools import ProcessExecutor

class Point:
    def __init__(self, x): self.x = x
    def __eq__(self, other): return self.x == other.x

def double(point):
    return Point(point.x * 2)

def report(path):
    open(path, "w").write(str(os.getpid()))

def sleep(path):
    report(path)
    time.sleep(60)

def hog(path):
    import re
    report(path)
    re.match(r"(a+)+$", "a" * 60 + "b")

async def run(function, *args):
    executor = ProcessExecutor("pet")
    try:
        return await executor.run(function, args, {})
    finally:
        await executor.aclose()
"""


def write(directory: Path, main: str, *, guarded: bool = True) -> Path:
    path = directory / "program.py"
    guard = "if __name__ == '__main__':\n    " if guarded else ""
    path.write_text(f"{PROGRAM}\n{guard}{main}\n")
    return path


def python(*args: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, timeout=20, check=False, cwd=cwd)


def ended(pid: int) -> bool:
    for _ in range(2000):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state in "ZX":
            return True
        time.sleep(0.002)
    return False


def written(path: Path) -> int:
    for _ in range(5000):
        if path.exists() and path.read_text():
            return int(path.read_text())
        time.sleep(0.002)
    raise AssertionError(path)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_functions_and_classes_of_the_main_program_work(tmp_path: Path, backend: str) -> None:
    program = write(tmp_path, f"print(anyio.run(run, double, Point(4), backend={backend!r}) == Point(8))")
    done = python(program)
    assert (done.stdout, done.stderr) == ("True\n", "")
    done = python("-m", "program", cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_a_program_without_a_guard_is_told_what_to_do(tmp_path: Path) -> None:
    done = python(write(tmp_path, "print(anyio.run(run, double, Point(4)) == Point(8))", guarded=False))
    assert done.returncode == 1
    assert "put what the program does under `if __name__ == '__main__':`" in done.stderr


def test_functions_of_modules_do_not_load_the_main_program(tmp_path: Path) -> None:
    done = python(write(tmp_path, "print(anyio.run(run, abs, -4))", guarded=False))
    assert (done.stdout, done.stderr) == ("4\n", "")


def test_a_function_that_nobody_can_import_is_an_error_that_names_it() -> None:
    done = python("-c", f"{PROGRAM}\nanyio.run(run, double, Point(4))")
    assert done.returncode == 1
    assert "Can't get attribute 'double'" in done.stderr or "has no attribute 'double'" in done.stderr


def test_what_a_worker_process_prints_comes_out_here(tmp_path: Path) -> None:
    done = python(write(tmp_path, "anyio.run(run, print, 'from the worker'); print('from here')"))
    assert done.stdout == "from the worker\nfrom here\n"
    say = "import sys; anyio.run(run, sys.stderr.write, 'x')"
    assert "cannot be sent to a worker process" in python(write(tmp_path, say)).stderr


@pytest.mark.parametrize("how", ["sleep", "hog"])
def test_no_worker_process_outlives_a_program_that_is_killed(tmp_path: Path, how: str) -> None:
    mark = tmp_path / "mark"
    program = write(tmp_path, f"anyio.run(run, {how}, {str(mark)!r})")
    process = subprocess.Popen([sys.executable, program])
    worker = written(mark)
    process.kill()
    process.wait()
    assert ended(worker)


def test_an_idle_worker_process_ends_with_a_program_that_forgot_it(tmp_path: Path) -> None:
    main = "print(anyio.run((e := ProcessExecutor('pet')).run, os.getpid, (), {}))"
    done = python("-X", "dev", write(tmp_path, main))
    assert done.returncode == 0
    assert "ResourceWarning" in done.stderr
    assert ended(int(done.stdout))


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_ctrl_c_interrupts_the_program_which_ends_its_worker_processes(tmp_path: Path, backend: str) -> None:
    mark = tmp_path / "mark"
    program = write(tmp_path, f"anyio.run(run, sleep, {str(mark)!r}, backend={backend!r})")
    process = subprocess.Popen([sys.executable, program], stderr=subprocess.PIPE, process_group=0, text=True)
    worker = written(mark)
    os.kill(worker, signal.SIGINT)  # nothing happens to it
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, errors = process.communicate(timeout=20)
    assert ended(worker)
    assert "KeyboardInterrupt" in errors
    assert "RemoteTraceback" not in errors


def test_frames_come_in_any_pieces() -> None:
    frames = Frames()
    data = FRAME.pack(SETUP, 0) + FRAME.pack(CALL, 3) + b"abc" + FRAME.pack(CHUNK, 1) + b"x"
    taken: list[tuple[bytes, bytes]] = []
    for byte in data:
        frames.add(bytes([byte]))
        if (frame := frames.take()) is not None:
            taken.append(frame)
    assert taken == [(SETUP, b""), (CALL, b"abc"), (CHUNK, b"x")]
    assert DATA % 8 == 0 < REGION
