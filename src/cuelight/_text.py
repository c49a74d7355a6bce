"""Text about values that users made: it never raises, and its length is bounded.

`repr`, `str` and tracebacks run code of users. That code may raise anything, return a hundred megabytes, or
return text that cannot be encoded. Errors, log records and reports of the library are built with these functions, so
that the step they report is never lost.
"""

from __future__ import annotations

import _thread
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

__all__ = ["describe_error", "error_lines", "format_traceback", "safe_repr", "safe_str", "shortened", "type_name"]

REPR_LIMIT: Final = 300
STR_LIMIT: Final = 2_000
TRACEBACK_LIMIT: Final = 20_000

_GROUP_DEPTH: Final = 8
_GROUP_LINES: Final = 20
_FRAMES: Final = 60
"""Frames of a traceback that are shown, counted from where the exception was raised."""


def safe_repr(value: object, limit: int = REPR_LIMIT) -> str:
    """`repr(value)`, cut to `limit` characters.

    If `repr` raises, the text names the type of the value and of the exception instead.
    """
    return shortened(_called(repr, value), limit)


def safe_str(value: object, limit: int = STR_LIMIT) -> str:
    """`str(value)`, cut to `limit` characters.

    If `str` raises, the text names the type of the value and of the exception instead.
    """
    return shortened(_called(str, value), limit)


def describe_error(error: BaseException, limit: int = STR_LIMIT) -> str:
    """An exception in one line, as `ValueError: no such row`; only its type if its text is empty."""
    text = safe_str(error, limit)
    return f"{type_name(error)}: {text}" if text else type_name(error)


def type_name(value: object) -> str:
    """The name of the type of a value."""
    try:
        name = type(value).__name__
        return name if type(name) is str else "object"
    except BaseException as error:  # a metaclass may define __name__
        _repost_interrupt(error)
        return "object"


def shortened(text: str, limit: int) -> str:
    """A text, cut to `limit` characters with its full length noted, and such that it can be encoded as UTF-8."""
    if len(text) > limit:
        text = f"{text[:limit]}… ({len(text)} characters)"
    if text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def error_lines(error: BaseException) -> list[str]:
    """One line for an exception; for a group one more for each exception in it, indented, up to 20 lines."""
    lines: list[str] = []
    pending: list[tuple[BaseException, int]] = [(error, 0)]
    while pending:
        one, depth = pending.pop()
        if len(lines) == _GROUP_LINES:
            lines.append(f"... and {len(pending) + 1} more")
            break
        lines.append("  " * depth + describe_error(one))
        if issubclass(type(one), BaseExceptionGroup):  # `isinstance` asks for its `__class__`, which may raise
            if depth < _GROUP_DEPTH:
                pending += [(inner, depth + 1) for inner in reversed(_members(one))]
            else:
                lines.append("  " * (depth + 1) + "...")
    return lines


def format_traceback(error: BaseException, limit: int = TRACEBACK_LIMIT, start: TracebackType | None = None) -> str:
    """The traceback of an exception with its causes, cut in the middle to `limit` characters.

    Args:
        error: the exception.
        limit: characters.
        start: the frame of its traceback to begin with; the first one by default.
    """
    at = error.__traceback__ if start is None else start
    try:
        lines = traceback.TracebackException(type(error), error, at, limit=-_FRAMES).format()
        text = "".join(lines)
    except BaseException as raised:  # groups that are nested too deep, sources that cannot be read, hostile notes
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
        return str.__str__(function(value))  # a plain str, also if the value returned a subclass of it
    except BaseException as error:
        _repost_interrupt(error)
        return f"<{type_name(value)}: its {function.__name__}() raised {type_name(error)}>"


def _repost_interrupt(error: BaseException) -> None:
    """A Ctrl-C that arrived while a text was being made must not be lost: deliver it to the main thread again."""
    if isinstance(error, KeyboardInterrupt):
        _thread.interrupt_main()
