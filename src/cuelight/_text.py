"""Texts about values of users. These functions never raise, and the length of their texts is bounded.

`repr`, `str` and tracebacks run code of users. This code may raise anything, return a hundred megabytes, or return text
that cannot be encoded. The library builds its errors, log records and reports with these functions, so that the
reported event is never lost.
"""

from __future__ import annotations

import _thread
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

REPR_LIMIT: Final = 300
STR_LIMIT: Final = 2_000
TRACEBACK_LIMIT: Final = 20_000

_GROUP_DEPTH: Final = 8
_GROUP_LINES: Final = 20
_FRAMES: Final = 60
"""The number of traceback frames that are shown, counted from the one that raised."""


def safe_repr(value: object, limit: int = REPR_LIMIT) -> str:
    """Return `repr(value)`, cut to `limit` characters.

    If `repr` raises, the text names the type of the value and of the exception instead.
    """
    return shortened(_called(repr, value), limit)


def safe_str(value: object, limit: int = STR_LIMIT) -> str:
    """Return `str(value)`, cut to `limit` characters.

    If `str` raises, the text names the type of the value and of the exception instead.
    """
    return shortened(_called(str, value), limit)


def describe_error(error: BaseException, limit: int = STR_LIMIT) -> str:
    """Describe an exception in one line, as in `ValueError: no such row`; by its type alone if its text is empty."""
    text = safe_str(error, limit)
    return f"{type_name(error)}: {text}" if text else type_name(error)


def type_name(value: object) -> str:
    """Return the name of a value's type."""
    try:
        name = type(value).__name__
        return name if type(name) is str else "object"
    except BaseException as error:  # a metaclass may define __name__
        _repost_interrupt(error)
        return "object"


def shortened(text: str, limit: int) -> str:
    """Return a text that can be encoded as UTF-8, cut to `limit` characters; a cut text ends with its full length."""
    if len(text) > limit:
        text = f"{text[:limit]}… ({len(text)} characters)"
    if text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def error_lines(error: BaseException) -> list[str]:
    """Describe an exception in one line, and each member of a group in another, indented line; at most 20 lines."""
    lines: list[str] = []
    pending: list[tuple[BaseException, int]] = [(error, 0)]
    while pending:
        one, depth = pending.pop()
        if len(lines) == _GROUP_LINES:
            lines.append(f"... and {len(pending) + 1} more")
            break
        lines.append("  " * depth + describe_error(one))
        if issubclass(type(one), BaseExceptionGroup):  # `isinstance` reads the object's `__class__`, which may raise
            if depth < _GROUP_DEPTH:
                pending += [(inner, depth + 1) for inner in reversed(_members(one))]
            else:
                lines.append("  " * (depth + 1) + "...")
    return lines


def format_traceback(error: BaseException, limit: int = TRACEBACK_LIMIT, start: TracebackType | None = None) -> str:
    """Return the traceback of an exception and of its causes, cut in the middle to `limit` characters.

    Args:
        error: the exception.
        limit: the largest number of characters.
        start: the traceback entry to begin with; the first one by default.
    """
    at = error.__traceback__ if start is None else start
    try:
        lines = traceback.TracebackException(type(error), error, at, limit=-_FRAMES).format()
        text = "".join(lines)
    except BaseException as raised:  # groups that are nested too deeply, sources that cannot be read, hostile notes
        _repost_interrupt(raised)
        text = "\n".join([*_frames_of(error), *error_lines(error)])
    if len(text) > limit:
        half = limit // 2
        text = f"{text[:half]}\n... ({len(text) - 2 * half} characters left out)\n{text[-half:]}"
    return shortened(text, limit * 2).rstrip("\n")


def _frames_of(error: BaseException) -> list[str]:
    try:
        return ["".join(traceback.format_tb(error.__traceback__, limit=-_FRAMES)).rstrip("\n")]
    except BaseException as raised:
        _repost_interrupt(raised)
        return []


def _members(group: Any) -> list[BaseException]:
    try:
        return list(group.exceptions[: _GROUP_LINES + 1])
    except BaseException as raised:  # a subclass may override `exceptions`
        _repost_interrupt(raised)
        return []


def _called(function: Callable[[object], str], value: object) -> str:
    try:
        return str.__str__(function(value))  # a plain str, even if the value returned an instance of a subclass
    except BaseException as error:
        _repost_interrupt(error)
        return f"<{type_name(value)}: its {function.__name__}() raised {type_name(error)}>"


def _repost_interrupt(error: BaseException) -> None:
    """Deliver a Ctrl-C that arrived while a text was being made to the main thread again, so that it is not lost."""
    if isinstance(error, KeyboardInterrupt):
        _thread.interrupt_main()
