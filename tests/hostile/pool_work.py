"""What worker processes of the hostile tests run: functions that they can import."""

# pyright: reportUnknownLambdaType=false, reportUnknownMemberType=false

from __future__ import annotations

import time
from typing import Any

from hostile.cases import CASES, Case


def act(name: str) -> str:
    """Do what a case does."""
    CASES[name].act()
    return name


def double(number: int) -> int:
    return 2 * number


def sleep_long() -> None:
    time.sleep(600)


class Hostile:
    """A value that does something wherever it is looked at."""

    def __init__(self, case: Case) -> None:
        self.case = case

    def _act(self, *_: object) -> Any:
        self.case.act()
        return 0

    __repr__ = __str__ = __bool__ = __eq__ = __hash__ = __len__ = __lt__ = __format__ = _act


class Finalized:
    """A value whose finalizer does something."""

    def __init__(self, case: Case) -> None:
        self.case = case

    def __del__(self) -> None:
        self.case.act()


class Unreduced:
    """A value whose pickling does something."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> Any:
        CASES[self.name].act()
        return Unreduced, (self.name,)


class Rebuilt:
    """A value that does something when it is unpickled."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        CASES[self.name].act()


def _acting(self: Any, *_: object) -> Any:
    self.case.act()


def _made(self: Any, case: Case) -> None:
    Exception.__init__(self)
    self.case = case


_NAMES = ("__str__", "__repr__", "__eq__", "__hash__", "__bool__")
_PROPERTIES = ("__class__", "__notes__", "retry_after")

Lying: Any = type(
    "Lying",
    (Exception,),
    {"__init__": _made, **dict.fromkeys(_NAMES, _acting), **dict.fromkeys(_PROPERTIES, property(_acting))},
)
"""An exception of which nothing can be asked: it does something then."""


def unreduced(name: str) -> Unreduced:
    return Unreduced(name)


def rebuilt(name: str) -> Rebuilt:
    return Rebuilt(name)


class OddlyMade(Exception):
    """Cannot be made again from its arguments."""

    def __init__(self, *, name: str) -> None:
        super().__init__()
        self.name = name

    def __str__(self) -> str:
        CASES[self.name].act()
        return self.name

    __repr__ = __str__


def raise_oddly_made(name: str) -> None:
    raise OddlyMade(name=name)
