"""Reads the rate limit headers of the responses of services."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, NamedTuple

# x-ratelimit-remaining-tokens, vendor-ratelimit-input-tokens-remaining, ratelimit-remaining
_REMAINING = re.compile(r"(?:[a-z]+-)?ratelimit-(?:remaining(?:-(?P<last>[a-z-]+))?|(?P<first>[a-z-]+)-remaining)")

LONGEST_PAUSE: Final = 86_400.0
"""The longest pause, in seconds, that a header can cause: a day. No service means more, and no caller should wait so
long.
"""

_LONGEST_DATE: Final = 100
"""Characters."""


class Headers(NamedTuple):
    """The values read from the headers.

    Attributes:
        retry_after: seconds, a day at most; None if no header gives a time.
        remaining: the remaining amount, by the name of the limit.
    """

    retry_after: float | None
    remaining: dict[str, int]


def read_headers(headers: Mapping[str, str]) -> Headers:
    """Read the usual rate limit headers and ignore all others.

    Args:
        headers: names, in upper or lower case, and values.
    """
    given = {_text(name).lower(): _text(value).strip() for name, value in headers.items()}
    remaining: dict[str, int] = {}
    for name, value in given.items():
        if (match := _REMAINING.fullmatch(name)) and re.fullmatch(r"[0-9]{1,15}", value):
            remaining[(match["last"] or match["first"] or "requests").replace("-", "_")] = int(value)
    seconds = _number(given.get("retry-after-ms", ""))
    seconds = _seconds(given.get("retry-after", "")) if seconds is None else seconds / 1000
    return Headers(None if seconds is None else min(seconds, LONGEST_PAUSE), remaining)


def _text(part: object) -> str:
    """A name or a value as text; some libraries give bytes."""
    if isinstance(part, bytes):
        return part.decode("latin-1")
    return part if isinstance(part, str) else ""


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"[0-9]{1,15}(\.[0-9]{1,15})?", text) else None


def _seconds(text: str) -> float | None:
    """The seconds given by `120`, `0.5` or a date; never negative."""
    if (number := _number(text)) is not None:
        return number
    if not text or len(text) > _LONGEST_DATE:
        return None
    from email.utils import parsedate_to_datetime  # noqa: PLC0415 - costs milliseconds, and few services send a date

    try:
        when = parsedate_to_datetime(text)
        if when.tzinfo is None:  # "-0000": UTC, with an unknown local time zone
            when = when.replace(tzinfo=UTC)
        return max(0.0, (when - datetime.now(UTC)).total_seconds())
    except Exception:  # numbers out of range raise errors of several types
        return None
