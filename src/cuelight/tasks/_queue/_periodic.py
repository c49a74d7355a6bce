"""Due times of periodic work: pure functions of a spec, the string that a store keeps for a schedule.

Invariants:

1. The next due time is after the given moment.
2. A period keeps its grid: every due time is a whole number of periods after the first one, however late one was.
3. Missed due times are caught up once, however many they are; the next due time is then in the future.

A cron line uses the wall clock of its time zone, as Debian's cron does. Work at a fixed time that the change to summer
time skips is done once, right after the gap. Work at a fixed time in the hour that occurs twice in autumn is done once,
in the first of the two. A line whose minutes or hours begin with `*` uses real time: it neither skips nor repeats. A
line of six fields begins with seconds, and always uses real time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final

from cuelight._text import safe_repr, safe_str

SHORTEST: Final = 0.01
"""Seconds. A shorter period is a mistake, and would keep a worker busy with firing."""

SAME_DAY: Final = 25 * 3600.0
"""Seconds. If a due time is later than expected by less than this, the work may have been done today already."""

_ALIASES: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}

_FIELDS: Final = (
    ("seconds", 60, 1),
    ("minutes", 60, 60),
    ("hours", 24, 3600),
    ("days of the month", 31, 86400),
    ("months", 12, 0),
    ("days of the week", 7, 86400),
)
"""The name of each field, its number of values, and the seconds of one unit."""


def every_spec(seconds: float) -> str:
    """The spec of work that is due every `seconds` seconds.

    Args:
        seconds: the period, at least 0.01.

    Raises:
        ValueError: the period is too short, infinite or NaN.
        TypeError: the period is not a number.
    """
    if not isinstance(seconds, int | float):  # pyright: ignore[reportUnnecessaryIsInstance] - untyped callers
        raise TypeError(f"every({safe_repr(seconds)}): give a number of seconds")
    if not SHORTEST <= seconds < math.inf:
        raise ValueError(f"every({seconds!r}): give a period of {SHORTEST:g} seconds or more")
    return f"every {float(seconds)!r}"


def cron_spec(line: str, tz: str = "UTC") -> str:
    """The spec of work that is due at the times of a cron line.

    Args:
        line: five fields (minute, hour, day, month, weekday), or six with the seconds first; also `L`, `LW`, `MON#1`,
            and `@hourly`, `@daily`, `@weekly`, `@monthly` and `@yearly`.
        tz: the time zone of the line: "UTC", "Europe/Berlin".

    Raises:
        ValueError: the line or the time zone is invalid, or the line is never due; the message tells which.
        ImportError: cronsim is not installed.
    """
    text: Any = line
    if not isinstance(text, str):
        raise ValueError(f"cron {safe_repr(line)}: give a string: '30 9 * * MON-FRI'")  # noqa: TRY004 - as for other lines
    fields = text.strip()
    if fields.startswith("@"):
        known = _ALIASES.get(fields.lower())
        if known is None:
            there = ", ".join(sorted(_ALIASES))
            start = "; to run a task when a program starts, send it then" if fields.lower() == "@reboot" else ""
            raise ValueError(f"cron {safe_repr(line)}: unknown name; the names are {there}{start}")
        fields = known
    _refuse_long_steps(line, fields.split())
    spec = f"cron {tz} {fields}"
    next_due(spec, 0.0)
    return spec


def _refuse_long_steps(line: str, fields: list[str]) -> None:
    """Raise `ValueError` for a step that is longer than its range.

    For example, `*/90` as minutes does not mean every 90 minutes, but minute 0 of each hour.
    """
    if len(fields) not in {5, 6}:
        return
    for (name, size, seconds), field in zip(_FIELDS[-len(fields) :], fields, strict=True):
        for term in field.split(","):
            match = re.fullmatch(r"(\*|(\d{1,2})(?:-(\d{1,2}))?)/(\d{1,9})", term)
            if match is None:
                continue
            first, last, step = (None if text is None else int(text) for text in match.group(2, 3, 4))
            values = size if first is None else (last if last is not None else size) - first + 1
            if step is not None and step > values:
                way = f": use every({step * seconds}, ...) for that" if seconds else ""
                raise ValueError(
                    f"cron {safe_repr(line)}: {safe_repr(term)} is not every {step} {name}, because the step is "
                    f"longer than the {values} {name} that there are{way}"
                )


def next_due(spec: str, after: float, anchor: float | None = None) -> float:
    """The first due time after a moment.

    Args:
        spec: made by `every_spec` or `cron_spec`.
        after: the moment, in seconds since the epoch.
        anchor: for a period: a due time on its grid, in seconds since the epoch; `after` by default.

    Raises:
        ValueError: the spec is invalid; the message tells why.
        ImportError: the spec is a cron line, and cronsim is not installed.
    """
    if not math.isfinite(after):
        raise ValueError(f"{safe_repr(spec)} after {safe_repr(after)}: give a moment in seconds since the epoch")
    kind, rest = _parts(spec)
    if kind == "every":
        return _next_period(
            _period(spec, rest), after, anchor if anchor is not None and math.isfinite(anchor) else after
        )
    if kind == "cron":
        tz, _, line = rest.partition(" ")
        return _next_cron(line, tz, after)
    raise ValueError(f"{safe_repr(spec)} is not a schedule: make one with every_spec(seconds) or cron_spec(line)")


def due_after_change(spec: str, now: float, old_spec: str, old_due: float) -> float:
    """The due time after a change of the spec. Work that is already due stays due, and is caught up.

    A changed period counts from the last due time. Otherwise, programs of two versions that alternately set their own
    periods could delay the work indefinitely.
    """
    if is_same_period(spec, old_spec) or old_due <= now:
        return old_due
    (kind, rest), (old_kind, old_rest) = _parts(spec), _parts(old_spec)
    if kind == old_kind == "every":
        try:
            period, old_period = _period(spec, rest), _period(old_spec, old_rest)
        except ValueError:  # the old spec is damaged
            return next_due(spec, now)
        return min(old_due - old_period, now) + period
    return next_due(spec, now)


def is_same_period(one: str, other: str) -> bool:
    """Whether two specs are equal, apart from the marks of clocks that were set back."""
    return _parts(one) == _parts(other)


def latest_due(spec: str, now: float) -> float:
    """The latest possible next due time, if the last due time is in the past.

    A later due time was computed before the clock was set back. Work at fixed times of the day may be later by a day:
    if it was done at nine, it must not be done again when the clock shows nine again.

    Raises:
        ValueError: the spec is invalid.
        ImportError: the spec is a cron line, and cronsim is not installed.
    """
    kind, rest = _parts(spec)
    if kind == "every":
        return now + _period(spec, rest) + 1.0
    return next_due(spec, now) + (0.5 if _goes_by_real_time(rest.partition(" ")[2]) else SAME_DAY)


def shifted(spec: str, mark: str) -> str:
    """The same spec after the clock was set back. The text differs, so that a store accepts a new due time for it.

    Args:
        spec: the previous spec.
        mark: characters that no previous spec of the schedule has had.
    """
    kind, rest = _parts(spec)
    return f"{kind}~{mark} {rest}"


def _parts(spec: str) -> tuple[str, str]:
    """The kind of a spec, and the rest, without the mark of a clock that was set back."""
    kind, _, rest = spec.partition(" ")
    return kind.partition("~")[0], rest


def _period(spec: str, text: str) -> float:
    try:
        period = float(text)
    except ValueError:
        period = 0.0
    if not SHORTEST <= period < math.inf:
        raise ValueError(f"{safe_repr(spec)} is not a schedule: its period must be {SHORTEST:g} seconds or more")
    return period


def _goes_by_real_time(line: str) -> bool:
    """Whether cronsim uses real time for a line: its minutes or hours begin with `*`, or it has seconds."""
    fields = line.split()
    return len(fields) == 6 or any(field.startswith("*") for field in fields[:2])


def _next_period(period: float, after: float, anchor: float) -> float:
    due = anchor + max(1, math.floor((after - anchor) / period) + 1) * period
    # A period that is tiny compared to the time since the epoch may be rounded to the moment itself.
    return due if due > after else math.nextafter(after + period, math.inf)


def _next_cron(line: str, tz: str, after: float) -> float:
    from zoneinfo import ZoneInfo  # noqa: PLC0415 - it loads sysconfig, and only cron lines need it

    try:
        zone = ZoneInfo(tz)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(
            f"cron {safe_repr(line)}: there is no time zone {safe_repr(tz)}: give one such as 'Europe/Berlin'"
        ) from error
    try:
        start = datetime.fromtimestamp(after, zone)
    except (ValueError, OverflowError, OSError) as error:
        raise ValueError(f"cron {safe_repr(line)} after {safe_repr(after)}: the moment is out of range") from error
    for moment in _moments(line, start):
        due: float = moment.timestamp()
        # In the second of two equal hours, cronsim may return a time in the first one.
        if due > after:
            return due
    raise ValueError(f"cron {safe_repr(line)} is never due: no day has that date within 50 years")


def _moments(line: str, start: datetime) -> Iterator[datetime]:
    cronsim: Any
    try:
        import cronsim  # noqa: PLC0415 - an optional dependency that only cron lines need
    except ImportError as error:
        raise ImportError("cron lines need the extra `cron`: pip install 'cuelight[cron]'") from error
    try:
        yield from cronsim.CronSim(line, start)
    except Exception as error:  # its own exceptions, and those of its asserts and of the calendar
        reason = safe_str(error).lower() if isinstance(error, cronsim.CronSimError) else "it makes no sense"
        raise ValueError(
            f"cron {safe_repr(line)}: {reason}; give minute, hour, day, month and weekday: '30 9 * * MON-FRI'"
        ) from error
