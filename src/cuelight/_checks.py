"""Checks of arguments that raise a clear error at the caller's mistake."""

from __future__ import annotations

import math

from cuelight._text import safe_repr


def check_finite(call: str, number: object) -> None:
    """Check that an argument is a finite number.

    Args:
        call: the call with the argument's name, such as `spend(tokens)`; shown in the error.
        number: the argument.

    Raises:
        TypeError: it is not an `int` or `float`.
        ValueError: it is infinite or not a number (NaN).
    """
    if not isinstance(number, int | float):
        raise TypeError(f"{call}: {safe_repr(number)} is no number: give an int or a float")
    if not math.isfinite(number):
        raise ValueError(f"{call}: {number!r} is not a finite number")


def check_seconds(call: str, seconds: object, least: float = -math.inf, *, finite: bool = False) -> float:
    """Check that an argument is a number of seconds that can be compared with a clock, and return it.

    Args:
        call: the call with the argument's name, such as `after(delay)`; shown in the error.
        seconds: the argument.
        least: the smallest valid value.
        finite: reject infinity.

    Raises:
        TypeError: it is not an `int` or `float`.
        ValueError: it is not a number (NaN), too small, or infinite although `finite` is set.
    """
    if not isinstance(seconds, int | float):
        raise TypeError(f"{call}: {safe_repr(seconds)} is no number of seconds: give an int or a float")
    if not least <= seconds <= math.inf:
        wanted = "a number of seconds" if least == -math.inf else f"{least:g} seconds or more"
        raise ValueError(f"{call}: {seconds!r} is not {wanted}")
    if finite and seconds == math.inf:
        raise ValueError(f"{call}: {seconds!r} is not a finite number of seconds")
    return seconds
