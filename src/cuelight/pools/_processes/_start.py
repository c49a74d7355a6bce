"""The command that starts a worker process, and the main module that it imports functions from."""

from __future__ import annotations

import functools
import os
import pickle
import subprocess
import sys
from typing import Any, Final

from cuelight._text import safe_repr
from cuelight.pools._functions import name_of
from cuelight.pools._processes import _child

_BOOT: Final = """\
from importlib import util
spec = util.spec_from_file_location("cuelight_child", {path!r})
child = util.module_from_spec(spec)
spec.loader.exec_module(child)
child.main()
"""

_FROZEN_WORKER: Final = "--cuelight-worker"

_supports_freezing: list[bool] = []


def freeze_support() -> None:
    """Enable worker processes in a frozen program (PyInstaller, cx_Freeze and others).

    Call it at the very start of the main program, like `multiprocessing.freeze_support()`:

        if __name__ == "__main__":
            freeze_support()
            main()

    A worker process of a frozen program is this program, started again. In the worker process this function does not
    return: it runs tasks, and then ends the process. In a program that is not frozen, it does nothing.
    """
    if len(sys.argv) > 1 and sys.argv[1] == _FROZEN_WORKER:
        _child.main(sys.argv[2:])
        sys.exit(0)
    _supports_freezing[:] = [True]


def check_executable(executable: Any) -> str | None:
    """Return the path of a Python interpreter as text; None stands for the interpreter that runs this program.

    Raises:
        TypeError: the value is not a path.
        ValueError: there is no such file.
    """
    if executable is None:
        return None
    if not isinstance(executable, str | bytes | os.PathLike):
        raise TypeError(f"executable={safe_repr(executable)}: give the path of a Python interpreter")
    path = os.fsdecode(executable)  # pyright: ignore[reportUnknownArgumentType]
    if not os.path.isfile(path):
        raise ValueError(f"executable={path!r}: there is no such file; give the path of a Python interpreter")
    return path


def command(executable: str | None, descriptors: tuple[int, ...]) -> list[str]:
    """The command that starts a worker process.

    Args:
        executable: path of the interpreter; None for the one that runs this program.
        descriptors: the file descriptors that the process gets as arguments.

    Raises:
        RuntimeError: this program is frozen and has not called `freeze_support`, so it would start itself without end.
    """
    numbers = [str(descriptor) for descriptor in descriptors]
    program = executable or _set_for_multiprocessing() or sys.executable
    if getattr(sys, "frozen", False) and program == sys.executable:
        if not _supports_freezing:
            raise RuntimeError(
                "this program is frozen, so a worker process would be the whole program started again: call "
                "cuelight.freeze_support() first thing under `if __name__ == '__main__':`, or give the pool the path "
                "of a Python interpreter, executable=..."
            )
        return [program, _FROZEN_WORKER, *numbers]
    flags: list[str] = getattr(subprocess, "_args_from_interpreter_flags", list)()  # -O, -W, -X, ...
    return [program, *flags, "-c", _BOOT.format(path=_child.__file__), *numbers]


def _set_for_multiprocessing() -> str | None:
    """The interpreter that `multiprocessing` uses; None if it is not imported."""
    spawn = sys.modules.get("multiprocessing.spawn")
    return None if spawn is None else os.fsdecode(spawn.get_executable())


def main_source() -> _child.Source | None:
    """The origin of `__main__`, from which a worker process can load it on demand; None if it cannot be loaded."""
    main = sys.modules["__main__"]
    if _child.SOURCE in vars(main):  # this is a worker process that has not loaded it
        source: _child.Source | None = vars(main)[_child.SOURCE]
        return source
    if getattr(sys, "frozen", False):
        return None  # the process runs this same program, and has its functions
    path = getattr(main, "__file__", None)
    if not isinstance(path, str) or not os.path.isfile(path):
        return None
    spec = getattr(main, "__spec__", None)
    if spec is None:
        return ("init_main_from_path", os.path.abspath(path))
    if spec.name.rpartition(".")[2] != "__main__":
        return ("init_main_from_name", spec.name)
    # The `__main__.py` of a package or a folder: most of them run the program without a guard.
    return None if not _is_guarded(path) else (_child.RUN_MODULE, f"{spec.name}\n{os.path.abspath(path)}")


@functools.cache
def _is_guarded(path: str) -> bool:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return "__name__" in file.read()
    except OSError:
        return False


def check_importable(function: Any) -> None:
    """Check that a worker process can import a function, if the main program defines it.

    Raises:
        pickle.PicklingError: a worker process cannot import the main program.
    """
    try:
        while isinstance(function, functools.partial):
            function = function.func
        module = getattr(function, "__module__", None)
        code = getattr(function, "__code__", None)
    except Exception:
        return  # pickling raises the error
    if module != "__main__" or getattr(sys, "frozen", False):
        return
    typed_in = code is not None and str(code.co_filename).startswith("<")
    if typed_in or main_source() is None:
        raise pickle.PicklingError(
            f"{name_of(function)} cannot be sent to a worker process, which cannot import it: {_why(typed_in)}; "
            f"define it in a module"
        )


def _why(typed_in: bool) -> str:
    path = getattr(sys.modules["__main__"], "__file__", None)
    if typed_in or not isinstance(path, str) or not os.path.isfile(path):
        return "the program was typed in, or came from standard input or `-c`"
    return f"{path} runs the program when it is imported (it has no `if __name__ == '__main__':`)"
