"""How a worker process is started, decided here without starting one."""

from __future__ import annotations

import functools
import multiprocessing.spawn
import os
import pickle
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cuelight.pools._processes import _child as child
from cuelight.pools._processes import _start as start

GUARDED = "if __name__ == '__main__':\n    print('run')\n"


def program(monkeypatch: pytest.MonkeyPatch, file: str | None, spec: str | None = None) -> types.ModuleType:
    """Make a module with this file and this name in its spec the main program."""
    module = types.ModuleType("__main__")
    if file is not None:
        module.__file__ = file
    module.__spec__ = None if spec is None else ModuleSpec(spec, None)
    monkeypatch.setitem(sys.modules, "__main__", module)
    return module


def function_of(module: str, file: str) -> Any:
    """A function whose code comes from this file, and which says that it is of this module."""
    content: dict[str, Any] = {"__name__": module}
    exec(compile("def work(): pass", file, "exec"), content)
    return content["work"]


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.delitem(sys.modules, "multiprocessing.spawn", raising=False)


@pytest.fixture(autouse=True)
def unprepared(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Nobody has called `freeze_support`."""
    supports: list[bool] = []
    monkeypatch.setattr(start, "_supports_freezing", supports)
    return supports


# The command.


def test_a_worker_process_is_this_interpreter_with_its_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "multiprocessing.spawn", raising=False)
    monkeypatch.setattr("subprocess._args_from_interpreter_flags", lambda: ["-O", "-X", "dev"])
    program, *flags, option, code, first, second = start.command(None, (3, 4))
    assert (program, flags, option, first, second) == (sys.executable, ["-O", "-X", "dev"], "-c", "3", "4")
    assert repr(child.__file__) in code
    assert code.endswith("child.main()\n")


def test_a_given_interpreter_comes_before_that_of_multiprocessing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing.spawn, "_python_exe", b"/opt/python")
    assert start.command(None, ())[0] == "/opt/python"
    assert start.command("/mine/python", ())[0] == "/mine/python"


@pytest.mark.usefixtures("frozen")
def test_a_frozen_program_that_is_not_prepared_starts_no_worker_process() -> None:
    with pytest.raises(RuntimeError, match=r"this program is frozen.*cuelight\.freeze_support\(\) first thing"):
        start.command(None, (3,))
    assert start.command("/mine/python", (3,))[0] == "/mine/python"  # that is not this program


@pytest.mark.usefixtures("frozen")
def test_a_prepared_frozen_program_is_its_own_worker_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["program"])
    start.freeze_support()
    assert start.command(None, (3, 4, 5)) == [sys.executable, "--cuelight-worker", "3", "4", "5"]


def test_a_frozen_worker_process_serves_and_then_ends(monkeypatch: pytest.MonkeyPatch, unprepared: list[bool]) -> None:
    served: list[list[str]] = []
    monkeypatch.setattr(child, "main", served.append)
    monkeypatch.setattr(sys, "argv", ["program", "--cuelight-worker", "3", "4", "5"])
    with pytest.raises(SystemExit) as ended:
        start.freeze_support()
    assert (served, ended.value.code, unprepared) == ([["3", "4", "5"]], 0, [])


def test_an_interpreter_is_an_existing_file(tmp_path: Path) -> None:
    assert start.check_executable(None) is None
    assert start.check_executable(os.fsencode(sys.executable)) == sys.executable
    assert start.check_executable(Path(sys.executable)) == sys.executable
    with pytest.raises(TypeError, match="executable=3: give the path of a Python interpreter"):
        start.check_executable(3)
    with pytest.raises(ValueError, match="there is no such file"):
        start.check_executable(tmp_path)


# Where the main program came from.


def test_a_script_is_loaded_by_its_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("")
    monkeypatch.chdir(tmp_path)
    program(monkeypatch, "script.py")
    assert start.main_source() == ("init_main_from_path", os.path.abspath("script.py"))


def test_a_module_run_with_m_is_loaded_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    program(monkeypatch, __file__, "package.module")
    assert start.main_source() == ("init_main_from_name", "package.module")


def test_the_main_file_of_a_package_is_loaded_only_if_it_is_guarded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    guarded, bare = tmp_path / "guarded.py", tmp_path / "bare.py"
    guarded.write_text(GUARDED)
    bare.write_text("print('run')\n")
    program(monkeypatch, str(guarded), "package.__main__")
    assert start.main_source() == (child.RUN_MODULE, f"package.__main__\n{guarded}")
    program(monkeypatch, str(bare), "package.__main__")
    assert start.main_source() is None


def test_a_file_that_cannot_be_read_is_not_guarded(tmp_path: Path) -> None:
    assert not start._is_guarded(str(tmp_path))


@pytest.mark.parametrize("file", [None, "/nowhere/script.py"])
def test_a_program_without_a_file_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch, file: str | None) -> None:
    program(monkeypatch, file)
    assert start.main_source() is None


def test_a_frozen_program_need_not_be_loaded(monkeypatch: pytest.MonkeyPatch, frozen: None) -> None:
    program(monkeypatch, __file__)
    assert start.main_source() is None


def test_a_worker_process_passes_on_where_the_main_program_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    source = ("init_main_from_path", "/a/script.py")
    vars(program(monkeypatch, None))[child.SOURCE] = source
    assert start.main_source() == source


# What a worker process can import.


def test_functions_of_a_script_and_of_modules_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    program(monkeypatch, __file__)
    start.check_importable(function_of("__main__", __file__))
    start.check_importable(functools.partial(function_of("elsewhere", "<stdin>")))


def test_a_function_that_was_typed_in_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    program(monkeypatch, __file__)
    work = functools.partial(functools.partial(function_of("__main__", "<stdin>")))
    with pytest.raises(pickle.PicklingError, match=r"work cannot be sent.*the program was typed in.*in a module"):
        start.check_importable(work)


def test_a_function_of_a_program_that_would_run_again_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bare = tmp_path / "__main__.py"
    bare.write_text("print('run')\n")
    program(monkeypatch, str(bare), "package.__main__")
    with pytest.raises(pickle.PicklingError, match=r"__main__\.py runs the program when it is imported"):
        start.check_importable(function_of("__main__", str(bare)))


@pytest.mark.usefixtures("frozen")
def test_a_frozen_program_finds_every_function() -> None:
    start.check_importable(function_of("__main__", "<frozen>"))


def test_what_cannot_be_looked_at_is_left_to_pickling() -> None:
    class Hostile:
        looked: ClassVar[list[str]] = []

        def __getattribute__(self, name: str) -> Any:
            Hostile.looked.append(name)
            raise ZeroDivisionError

    start.check_importable(Hostile())
    assert Hostile.looked == ["__class__"]
