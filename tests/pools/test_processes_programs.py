"""Worker processes of whole programs: how they end, what they print, where their functions come from."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cuelight.pools import AsyncWorkerPool, WorkerPool
from cuelight.pools._processes._child import CALL, CHUNK, DATA, FRAME, REGION, SETUP, Frames

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


REFUSED = "double cannot be sent to a worker process, which cannot import it: the program was typed in"
NO_PROCESS = "import cuelight.pools._processes._worker_process as link\nlink.subprocess = None  # none can be started\n"


@pytest.mark.parametrize("how", ["-c", "-", "-i"])
@pytest.mark.parametrize("blocking", [False, True])
def test_a_function_of_a_program_without_a_file_is_refused_before_anything_starts(how: str, blocking: bool) -> None:
    call = "anyio.run(run, double, Point(4))"
    if blocking:
        call = """
from cuelight import WorkerPool
pool = WorkerPool(kind="process")
raise pool.get_task_result(pool.submit_task("x", double, (Point(4),))).error
"""
    text = f"{PROGRAM}\n{NO_PROCESS}\n{call}\n"
    if how == "-i":  # a line that is not indented ends a block there only after an empty one
        text = "\n".join(["exec('''", text.replace('"', "'"), "''', globals())", ""])
    command = [sys.executable, how] if how != "-c" else [sys.executable, "-c", text]
    done = subprocess.run(
        command, input=None if how == "-c" else text, capture_output=True, text=True, timeout=30, check=False
    )
    assert REFUSED in done.stderr


def test_what_else_of_a_program_without_a_file_cannot_be_found_says_so() -> None:
    done = python("-c", f"{PROGRAM}\nanyio.run(run, abs, Point(4))")
    assert done.returncode == 1
    assert "if this is about something of the main program" in done.stderr


def _package(folder: Path, main: str, *, guarded: bool = True) -> None:
    write(folder, main, guarded=guarded).rename(folder / "__main__.py")
    (folder / "__init__.py").touch()


def test_functions_of_the_main_module_of_a_package_work_if_it_has_a_guard(tmp_path: Path) -> None:
    folder = tmp_path / "package"
    folder.mkdir()
    _package(folder, "from . import __name__ as name; print(name, anyio.run(run, double, Point(4)) == Point(8))")
    done = python("-m", "package", cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("package True\n", "")
    _package(folder, "print(anyio.run(run, double, Point(4)) == Point(8))")
    done = python(folder)
    assert (done.stdout, done.stderr) == ("True\n", "")
    _package(folder, NO_PROCESS + "anyio.run(run, double, Point(4))", guarded=False)
    done = python("-m", "package", cwd=tmp_path)
    assert "it has no `if __name__ == '__main__':`" in done.stderr
    assert "double cannot be sent to a worker process" in done.stderr


FROZEN = """
import sys, os
with open({log!r}, "a") as log:
    print(os.getpid(), *sys.argv[1:2], file=log)
assert len(open({log!r}).readlines()) < 9, "started again and again"
sys.frozen, sys.executable = True, {app!r}
"""


def _freeze(folder: Path, main: str) -> tuple[Path, Path]:
    """What PyInstaller and its like make: a program that is its own interpreter."""
    app, log = folder / "app", folder / "log"
    program = write(folder, main)
    program.write_text(FROZEN.format(log=str(log), app=str(app)) + program.read_text())
    app.write_text(f'#!/bin/sh\nexec {sys.executable} {program} "$@"\n')
    app.chmod(0o755)
    return app, log


def test_a_frozen_program_has_worker_processes_if_it_says_so(tmp_path: Path) -> None:
    main = "from cuelight import freeze_support; freeze_support(); print(anyio.run(run, double, Point(4)) == Point(8))"
    app, log = _freeze(tmp_path, main)
    done = subprocess.run([app], capture_output=True, text=True, timeout=30, check=False)
    assert (done.stdout, done.stderr) == ("True\n", "")
    assert len(log.read_text().splitlines()) == 2
    assert "--cuelight-worker" in log.read_text()


def test_errors_of_a_frozen_program_come_back_as_themselves(tmp_path: Path) -> None:
    main = """from cuelight import freeze_support; freeze_support()
    try:
        anyio.run(run, double, 4)
    except AttributeError as error:
        print(error.name, "in double" in str(error.__cause__))
"""
    app, _ = _freeze(tmp_path, main)
    done = subprocess.run([app], capture_output=True, text=True, timeout=30, check=False)
    assert (done.stdout, done.stderr) == ("x True\n", "")


def test_a_frozen_program_that_does_not_say_so_is_refused_and_not_started_again(tmp_path: Path) -> None:
    app, log = _freeze(tmp_path, "anyio.run(run, double, Point(4))")
    done = subprocess.run([app], capture_output=True, text=True, timeout=30, check=False)
    assert "call cuelight.freeze_support() first thing" in done.stderr
    assert len(log.read_text().splitlines()) == 1


def test_a_frozen_program_may_name_an_interpreter(tmp_path: Path) -> None:
    main = f"""
    from cuelight import AsyncWorkerPool, WorkerPool
    async def main():
        async with AsyncWorkerPool(1, kind="process", executable={sys.executable!r}) as pool:
            print((await pool.submit(abs, -4)).unwrap())
    anyio.run(main)
    with WorkerPool(kind="process", executable={sys.executable!r}) as pool:
        print(pool.get_task_result(pool.submit_task("x", abs, (-5,))).unwrap())
    import multiprocessing
    multiprocessing.set_executable({sys.executable!r})
    import multiprocessing.spawn
    print(anyio.run(run, abs, -6))
"""
    app, log = _freeze(tmp_path, main)
    done = subprocess.run([app], capture_output=True, text=True, timeout=30, check=False)
    assert (done.stdout, done.stderr) == ("4\n5\n6\n", "")
    assert len(log.read_text().splitlines()) == 1


def test_an_interpreter_that_is_none_is_refused_where_it_is_given(tmp_path: Path) -> None:
    nothing: Any = 5
    for make in (AsyncWorkerPool, WorkerPool):
        with pytest.raises(ValueError, match="there is no such file"):
            make(kind="process", executable=tmp_path / "python")
        with pytest.raises(TypeError, match="give the path of a Python interpreter"):
            make(kind="process", executable=nothing)
        with pytest.raises(ValueError, match="give kind='process', too"):
            make(kind="thread", executable=sys.executable)


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
