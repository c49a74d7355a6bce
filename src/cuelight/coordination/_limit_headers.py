"""What services say about their limits in the headers of their answers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import NamedTuple

__all__ = ["Headers", "read_headers"]

# x-ratelimit-remaining-tokens, vendor-ratelimit-input-tokens-remaining, ratelimit-remaining
_REMAINING = re.compile(r"(?:[a-z]+-)?ratelimit-(?:remaining(?:-(?P<last>[a-z-]+))?|(?P<first>[a-z-]+)-remaining)")


class Headers(NamedTuple):
    """What was understood.

    Attributes:
        retry_after: seconds; None if nothing was said.
        remaining: how much is left, by the name of the limit.
    """

    retry_after: float | None
    remaining: dict[str, int]


def read_headers(headers: Mapping[str, str]) -> Headers:
    """Read the usual headers, and leave alone what is something else.

    Args:
        headers: names, in upper or lower case, and values.
    """
    given = {name.lower(): value.strip() for name, value in headers.items()}
    remaining: dict[str, int] = {}
    for name, value in given.items():
        if (match := _REMAINING.fullmatch(name)) and value.isascii() and value.isdigit():
            remaining[(match["last"] or match["first"] or "requests").replace("-", "_")] = int(value)
    milliseconds = _number(given.get("retry-after-ms", ""))
    if milliseconds is not None:
        return Headers(milliseconds / 1000, remaining)
    return Headers(_seconds(given.get("retry-after", "")), remaining)


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", text) else None


def _seconds(text: str) -> float | None:
    """Of `120`, `0.5` or a date; never negative."""
    if (number := _number(text)) is not None:
        return number
    from email.utils import parsedate_to_datetime  # noqa: PLC0415 - costs milliseconds, and few services send a date

    try:
        when = parsedate_to_datetime(text)
    except ValueError:
        return None
    if when.tzinfo is None:  # "-0000": universal time, from nowhere in particular
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())
