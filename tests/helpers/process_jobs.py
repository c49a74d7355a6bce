"""What tests have worker processes do: functions that such a process can import."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from enum import IntEnum
from pathlib import Path
from typing import Any


class Level(IntEnum):
    HIGH = 3


def same(value: Any) -> Any:
    return value


_seen: list[str] = []


def remember(value: str) -> list[str]:
    """Returns one list again and again, with more in it each time."""
    _seen.append(value)
    return _seen


def leave_mark(directory: str, name: str) -> str:
    """Says that it ran, and where."""
    with Path(directory, name).open("a") as file:
        file.write(f"{os.getpid()}\n")
    return name


def marked_then(directory: str, ending: str) -> None:
    leave_mark(directory, ending)
    end(ending)


def end(how: str) -> str:
    """End the process in one of many ways, or not."""
    match how:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit 7":
            os._exit(7)
        case "exit 0":
            os._exit(0)
        case "segfault":
            import faulthandler

            faulthandler.disable()
            ctypes.string_at(0)
        case "abort":
            os.abort()
        case "close":
            os.closerange(3, 100)
            time.sleep(60)
        case "realtime":
            os.kill(os.getpid(), signal.SIGRTMIN + 5)
        case _:
            return how
    return "still here"


class Picky(Exception):
    """Its constructor takes more than its args, so pickling works and unpickling does not."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")
        self.one, self.two = one, two


class Silent(Exception):
    def __str__(self) -> str:
        raise ValueError


class Carrier(Exception):
    """Cannot be pickled at all."""

    def __init__(self) -> None:
        super().__init__("carries a function")
        self.function = lambda: 1


class Keyword(Exception):
    late: str

    def __init__(self, *, code: int = 500) -> None:
        super().__init__(f"code {code}")
        self.code = code


class Slotted(Exception):
    __slots__ = ("empty", "place")
    place: int


class OwnPickling(Exception):
    def __init__(self, code: int) -> None:
        super().__init__("own")
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return OwnPickling, (self.code,)


class Group(ExceptionGroup[Exception]):
    label: str


class Prefix(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(f"prefix: {text}")


class Liar(Exception):
    def __reduce__(self) -> tuple[Any, ...]:
        return ValueError, ("I am another",)


class Refuser(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __setstate__(self, state: Any) -> None:
        raise LookupError("no")


class HomeSick(Exception):
    """Can be unpickled only in the process where it was raised."""

    def __reduce__(self) -> tuple[Any, ...]:
        return OnlyThere, (os.getpid(),)


class Sour:
    """Pickles, but cannot be unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return refuse, ("sour",)


class OnlyThere:
    """Cannot be unpickled where `here` is the process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def __reduce__(self) -> tuple[Any, ...]:
        return unless_here, (self.pid,)


def unless_here(pid: int) -> int:
    if os.getpid() == pid:
        raise LookupError("not here")
    return pid


def refuse(what: str) -> None:
    raise LookupError(what)


def raise_it(kind: str) -> None:
    if kind == "exit":
        sys.exit(3)
    if kind == "chained":
        try:
            refuse("cause")
        except LookupError as cause:
            raise ValueError("effect") from cause
    raise _errors().get(kind) or ZeroDivisionError(kind)


def _errors() -> dict[str, BaseException]:
    class Local(Exception):
        pass

    noted = ValueError("noted")
    noted.add_note("look here")
    keyword = Keyword(code=404)
    keyword.late, keyword.__cause__ = "set later", KeyError("k")
    keyword.add_note("a note")
    slotted = Slotted("slotted")
    slotted.place = 7
    group = Group("group", [Picky(3, 4), ExceptionGroup("inner", [Keyword(code=1)])])
    group.label = "labelled"
    circle, other = ValueError("circle"), KeyError("other")
    circle.__cause__, other.__cause__ = other, circle
    return {
        "picky": Picky(1, 2),
        "silent": Silent(),
        "carrier": Carrier(),
        "group": ExceptionGroup("two", [KeyError("a"), ValueError("b")]),
        "noted": noted,
        "keyword": keyword,
        "slotted": slotted,
        "own pickling": OwnPickling(5),
        "nested": group,
        "prefix": Prefix("x"),
        "circle": circle,
        "missing": FileNotFoundError(2, "not there", "there.txt"),
        "local": Local("local"),
        "liar": Liar("liar"),
        "refuser": Refuser("refuser"),
        "needs_main": HomeSick("far away"),
        "crowd": ExceptionGroup("crowd", [ValueError(number) for number in range(2000)]),
    }


def unpicklable_result(_: Any = None) -> Any:
    return lambda: 1


def odd_result(item: int) -> Any:
    return (lambda: 1) if item == 1 else item


def dies_at_three(item: int) -> int:
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return item * 10


def big(item: int) -> bytes:
    return bytes([item]) * 50_000


def big_then_dies(item: int) -> bytes:
    if item == 5:
        os._exit(9)
    return big(item)


def sleep_marked(path: str, seconds: float) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(seconds)


def hog_marked(path: str) -> None:
    """Holds the interpreter's lock for ages."""
    Path(path).write_text(str(os.getpid()))
    re.match(r"(a+)+$", "a" * 60 + "b")


def start_sleeper(path: str) -> int:
    """Start a process that outlives the call, and with it this process unless somebody ends it."""
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    Path(path).write_text(str(sleeper.pid))
    sleeper.returncode = 0  # no warning that it still runs
    return sleeper.pid


def fork_sleeper_and_die() -> None:
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
    process.start()
    os._exit(5)


def facts() -> dict[str, Any]:
    return {
        "argv": sys.argv,
        "stdin": sys.stdin.read(),
        "sigint": signal.getsignal(signal.SIGINT) is signal.SIG_IGN,
        "group": os.getpgrp() == os.getpid(),
        "cuelight": "cuelight" in sys.modules,
    }


def say(text: str) -> None:
    print(text)
    print(text, file=sys.stderr)


def nested() -> int:
    """A worker process of a worker process."""
    import anyio

    from cuelight.pools import ProcessExecutor

    async def call() -> int:
        executor = ProcessExecutor("inner")
        pid: int = await executor.run(os.getpid, (), {})
        await executor.aclose()
        return pid

    return anyio.run(call)
