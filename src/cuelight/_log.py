"""Logging that never raises into its caller, with bounded length and rate.

A handler, filter or formatter of the `logging` module is code of users. Its exceptions are written to standard error
and do not propagate. Texts and tracebacks are cut. The first 10 similar records within 10 seconds are written; further
ones are counted, and the counts are logged.

All modules log through `get_log`; `scripts/check_structure.py` finds modules that do not.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Hashable, Mapping
from types import FrameType
from typing import Any, Final

from cuelight._text import describe_error, format_traceback, safe_repr, shortened

MESSAGE_LIMIT: Final = 8_000

WHOLE: Final = 10
"""Records of one kind that are written within one window."""

WINDOW: Final = 10.0
"""The length of a window, in seconds."""

KINDS: Final = 512
"""The number of kinds with their own count. Beyond it, the count that began first is summarized and dropped."""

_logs: Final[dict[str, Log]] = {}


def get_log(name: str) -> Log:
    """Return the log of this name; it writes to the logger of the same name."""
    log = _logs.get(name)
    if log is None:
        log = _logs[name] = Log(name)
    return log


def flush_logs() -> None:
    """Log the counts of unwritten records now, without waiting for the next record of the same kind."""
    for log in list(_logs.values()):
        log.flush()


class Log:
    """The methods of a logger. They are safe to call anywhere.

    Arguments of the methods besides those of `logging.Logger`:
        error: the exception to log, with its traceback.
        kind: records with the same kind are counted together; by default, records with the same message template.
        extra: attributes for the record, as for `logging.Logger`.
    """

    __slots__ = ("_counts", "_logger", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self._logger = logging.getLogger(name)
        # There is no lock, because a finalizer that logs may run anywhere. A count may be off by one.
        self._counts: dict[Hashable, _Count] = {}

    def is_enabled_for(self, level: int) -> bool:
        """Whether records of this level are written anywhere."""
        try:
            return self._logger.isEnabledFor(level)
        except BaseException as raised:  # raised by a subclass of Logger
            _complain(raised)
            return False

    def debug(self, message: str, *args: object) -> None:
        """Log at level DEBUG, without a rate limit."""
        self._write(logging.DEBUG, message, args, None, None)

    def info(self, message: str, *args: object) -> None:
        """Log at level INFO, without a rate limit."""
        self._write(logging.INFO, message, args, None, None)

    def warning(
        self,
        message: str,
        *args: object,
        error: BaseException | None = None,
        kind: Hashable = None,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        self._limited(logging.WARNING, message, args, error, kind, extra)

    def error(
        self,
        message: str,
        *args: object,
        error: BaseException | None = None,
        kind: Hashable = None,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        self._limited(logging.ERROR, message, args, error, kind, extra)

    def log(
        self,
        level: int,
        message: str,
        *args: object,
        error: BaseException | None = None,
        kind: Hashable = None,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        """Log at a level of `logging`. Levels below WARNING have no rate limit."""
        if level >= logging.WARNING:
            self._limited(level, message, args, error, kind, extra)
        else:
            self._write(level, message, args, error, extra)

    def exception(self, message: str, *args: object, kind: Hashable = None) -> None:
        """Log the exception that is being handled at level ERROR."""
        self._limited(logging.ERROR, message, args, sys.exception(), kind, None)

    def reset(self) -> None:
        """Drop all counts."""
        self._counts.clear()

    def flush(self) -> None:
        """Log the counts of unwritten records."""
        counts, self._counts = self._counts, {}
        for count in counts.values():
            self._summarize(count)

    # Rate.

    def _limited(  # noqa: PLR0917 - it is called by the methods above only
        self,
        level: int,
        message: str,
        args: tuple[object, ...],
        error: BaseException | None,
        kind: Hashable,
        extra: Mapping[str, object] | None,
    ) -> None:
        if not self.is_enabled_for(level):
            return
        try:
            written, before = self._count(level, message, message if kind is None else kind)
        except BaseException as raised:
            _complain(raised)
            return
        if before is not None:
            self._summarize(before)
        if written:
            self._write(level, message, args, error, extra)

    def _count(self, level: int, message: str, kind: Hashable) -> tuple[bool, _Count | None]:
        """Count a record. Returns whether it is written, and a count to summarize before it."""
        now = time.monotonic()
        count = self._counts.get(kind)
        before = None
        if count is None or now - count.since >= WINDOW:
            before = self._counts.pop(kind, None)
            if before is None and len(self._counts) >= KINDS:
                before = self._counts.pop(list(self._counts)[0], None)  # noqa: RUF015 - a list is made in one step
            count = self._counts[kind] = _Count(level, message, now)
        count.seen += 1
        if count.seen <= WHOLE:
            return True, before
        if count.seen - WHOLE == count.next_summary:
            count.next_summary *= 10
            return False, count
        return False, before

    def _summarize(self, count: _Count) -> None:
        left_out = count.seen - WHOLE
        if left_out > 0:
            template = shortened(count.message.partition("\n")[0], 200)
            text = "%d more records like this were left out (since %.1f s): %s"
            self._write(count.level, text, (left_out, time.monotonic() - count.since, template), None, None)

    # Writing.

    def _write(
        self,
        level: int,
        message: str,
        args: tuple[object, ...],
        error: BaseException | None,
        extra: Mapping[str, object] | None,
    ) -> None:
        try:
            logger = self._logger
            if not logger.isEnabledFor(level):
                return
            frame = _calling_frame()
            exc_info: Any = None if error is None else (type(error), error, error.__traceback__)
            text, kept = _formatted(message, args)
            record = logger.makeRecord(
                logger.name, level, frame.f_code.co_filename, frame.f_lineno, message if kept else text,
                args if kept else (), exc_info, frame.f_code.co_name, None if extra is None else dict(extra),
            )  # fmt: skip
            if error is not None:
                record.exc_text = format_traceback(error)  # formatters use this text instead of their own
            logger.handle(record)
        except BaseException as raised:
            _complain(raised)


class _Count:
    """The records of one kind within one window."""

    __slots__ = ("level", "message", "next_summary", "seen", "since")

    def __init__(self, level: int, message: str, since: float) -> None:
        self.level, self.message, self.since, self.seen = level, message, since, 0
        self.next_summary = 10


def _calling_frame() -> FrameType:
    """The innermost frame outside this module."""
    frame = sys._getframe(1)
    ours = frame.f_code.co_filename
    while frame.f_back is not None and frame.f_code.co_filename == ours:
        frame = frame.f_back
    return frame


def _formatted(message: str, args: tuple[object, ...]) -> tuple[str, bool]:
    """Return the text of a record, and whether the record can keep its template and arguments.

    It cannot if an argument cannot be formatted or is too long: handlers would format it again.
    """
    if not args:
        text = shortened(message, MESSAGE_LIMIT)
        return text, text == message
    try:
        text = str.__str__(message % args)
    except BaseException:
        text = f"{message} {[safe_repr(arg) for arg in args]}"
        return shortened(text, MESSAGE_LIMIT), False
    short = shortened(text, MESSAGE_LIMIT)
    return short, short == text


def _complain(raised: BaseException) -> None:
    """Report on standard error that logging failed. This is the last resort, so its own failure is ignored."""
    if isinstance(raised, KeyboardInterrupt):
        import _thread  # noqa: PLC0415 - rarely needed

        _thread.interrupt_main()
    try:
        if logging.raiseExceptions and sys.stderr is not None:
            sys.stderr.write(f"cuelight: a log handler, filter or formatter raised {describe_error(raised, 300)}\n")
    except BaseException:  # noqa: S110 - there is nowhere left to report it
        pass
