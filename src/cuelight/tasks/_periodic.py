"""When periodic work is due: pure functions over a spec, the string that a store keeps of it.

Invariants:

1. The next due time is after the moment that was asked about.
2. A period keeps its grid: every due time is a whole number of periods after the first one, however late one was.
3. However many due times were missed, the work is caught up once; the next due time is then in the future.

A cron line goes by the clock on the wall of its time zone, as Debian's cron does. Work at a fixed time that the change
to summer time skips is done once, right after the gap; work at a fixed time in the hour that comes twice in autumn is
done once, in the first of the two. A line whose minutes or hours begin with `*` goes by real time: it neither skips nor
repeats. A line of six fields begins with seconds, and always goes by real time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import datetime
from typing import Any

__all__ = ["cron_spec", "every_spec", "next_due"]

SHORTEST = 0.01
"""Seconds: below that a period is a mistake, and firing would be all that a worker does."""


def every_spec(seconds: float) -> str:
    """The spec of work that is due every `seconds` seconds.

    Args:
        seconds: the period, at least 0.01.

    Raises:
        ValueError: the period is shorter, endless or not a number.
    """
    if not SHORTEST <= seconds < math.inf:
        raise ValueError(f"every({seconds!r}): give a period of {SHORTEST:g} seconds or more")
    return f"every {float(seconds)!r}"


def cron_spec(line: str, tz: str = "UTC") -> str:
    """The spec of work that is due when a cron line says so.

    Args:
        line: five fields (minute, hour, day, month, weekday), or six with the seconds first; also `L`, `LW`, `MON#1`.
        tz: the time zone that the line is about: "UTC", "Europe/Berlin".

    Raises:
        ValueError: the line or the time zone makes no sense, or the line is never due; the message says which.
        ImportError: cronsim is not installed.
    """
    spec = f"cron {tz} {line}"
    next_due(spec, 0.0)
    return spec


def next_due(spec: str, after: float, anchor: float | None = None) -> float:
    """The first due time after a moment.

    Args:
        spec: made by `every_spec` or `cron_spec`.
        after: the moment, in seconds since the epoch.
        anchor: for a period: a due time that lies on its grid, in seconds since the epoch; `after` by default.

    Raises:
        ValueError: the spec makes no sense; the message says why.
        ImportError: it is a cron line, and cronsim is not installed.
    """
    kind, _, rest = spec.partition(" ")
    if kind == "every":
        return _next_period(float(rest), after, after if anchor is None else anchor)
    if kind == "cron":
        tz, _, line = rest.partition(" ")
        return _next_cron(line, tz, after)
    raise ValueError(f"{spec!r} is no schedule: make one with every_spec(seconds) or cron_spec(line)")


def _next_period(period: float, after: float, anchor: float) -> float:
    due = anchor + max(1, math.floor((after - anchor) / period) + 1) * period
    # A period that is tiny beside the epoch may round down to the very moment.
    return due if due > after else math.nextafter(after + period, math.inf)


def _next_cron(line: str, tz: str, after: float) -> float:
    from zoneinfo import ZoneInfo  # noqa: PLC0415 - reads how Python was built; only cron lines need it

    try:
        zone = ZoneInfo(tz)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"cron {line!r}: there is no time zone {tz!r}: give one such as 'Europe/Berlin'") from error
    for moment in _moments(line, datetime.fromtimestamp(after, zone)):
        due: float = moment.timestamp()
        # Asked in the second of two hours, the line may answer with the first.
        if due > after:
            return due
    raise ValueError(f"cron {line!r} is never due: no day has that date within 50 years")


def _moments(line: str, start: datetime) -> Iterator[datetime]:
    cronsim: Any
    try:
        import cronsim  # noqa: PLC0415 - an option: only those who use cron lines need it
    except ImportError as error:
        raise ImportError("cron lines need the extra `cron`: pip install 'cuelight[cron]'") from error
    try:
        return iter(cronsim.CronSim(line, start))
    except cronsim.CronSimError as error:
        raise ValueError(
            f"cron {line!r}: {str(error).lower()}; give minute, hour, day, month and weekday: '30 9 * * MON-FRI'"
        ) from error
