"""What a limiter tells the server of itself with each call: its limits as rows of whole numbers, and its keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from math import gcd
from typing import Any, Final, Literal, NamedTuple, get_args

import msgspec

from cuelight._text import safe_repr
from cuelight.coordination import RateLimitConfig
from cuelight.redis._client import Script
from cuelight.redis._limits._answers import Answer
from cuelight.tasks._checks import check_text

__all__ = [
    "ALGORITHMS",
    "AT_ONCE",
    "Algorithm",
    "Plan",
    "Scripts",
    "most_of",
    "pack",
    "row_of",
    "script_of",
    "scripts_of",
]

Algorithm = Literal["token_bucket", "sliding_window", "sliding_counter"]

ALGORITHMS: Final[tuple[Algorithm, ...]] = get_args(Algorithm)

_EXACT: Final = 1 << 53
"""Lua counts in doubles: whole numbers below this are exact."""

_LONGEST: Final = 512
"""Characters of a name. Longer ones are most likely data that was taken for a name."""

_ROOM: Final = 1 << 48
"""Ticks that a full burst may be worth, so that debts and lines of many bursts are still exact."""

Row = tuple[int, ...]


@lru_cache(maxsize=1024)
def bucket_row(config: RateLimitConfig) -> Row:
    """`(interval, scale, burst)`: a cost of 1 is paid off in `interval` ticks, `scale` of which make a microsecond.

    It is exact where the numbers allow; else a cost takes longer, by less than a millionth for bursts below 10^8.

    Raises:
        ValueError: the burst would take longer to come back than numbers reach.
    """
    window, per = config.window_nanoseconds, config.max_requests * 1000
    common = gcd(window, per)
    interval, scale = window // common, per // common
    if interval * config.burst > _ROOM:
        finer = max(1, scale * _ROOM // (interval * config.burst))
        interval, scale = -(-interval * finer // scale), finer
    if interval * config.burst >= _EXACT // 4:
        raise ValueError(f"{config!r}: its burst takes more than a lifetime to come back; give a smaller burst_size")
    return interval, scale, config.burst


def window_row(config: RateLimitConfig) -> Row:
    """`(limit, window)`, the window in microseconds, rounded up."""
    return config.max_requests, -(-config.window_nanoseconds // 1000)


def counter_row(config: RateLimitConfig) -> Row:
    """The same, for two counters.

    Raises:
        ValueError: the two multiplied are more than Lua can count.
    """
    limit, window = window_row(config)
    if limit * window >= _EXACT:
        raise ValueError(
            f"{config!r}: two counters on Redis take max_requests * window_seconds of up to {_EXACT // 10**6:,}; "
            "count in a larger unit, or take a token bucket"
        )
    return limit, window


_ROWS: Final[Mapping[Algorithm, Callable[[RateLimitConfig], Row]]] = {
    "token_bucket": bucket_row,
    "sliding_window": window_row,
    "sliding_counter": counter_row,
}


def row_of(algorithm: Algorithm, config: RateLimitConfig) -> Row:
    """A limit as the scripts know it.

    Raises:
        ValueError: its numbers are more than Lua can count.
    """
    return _ROWS[algorithm](config)


def most_of(algorithm: Algorithm, row: Sequence[int]) -> int:
    """The greatest cost that is ever let through at once."""
    return row[2] if algorithm == "token_bucket" else row[0]


_METERS: Final[Mapping[Algorithm, str]] = {
    "token_bucket": "bucket.lua",
    "sliding_window": "log.lua",
    "sliding_counter": "counter.lua",
}

AT_ONCE: Final[Mapping[Algorithm, tuple[str, ...]]] = {
    "token_bucket": ("bucket_at_once.lua", "at_once.lua"),
    "sliding_window": (),
    "sliding_counter": ("counter_at_once.lua", "at_once.lua"),
}
"""What comes before the general form of `ask`."""


class Scripts(NamedTuple):
    """The scripts of one algorithm."""

    ask: Script
    amend: Script
    leave: Script
    beat: Script
    steer: Script
    look: Script


@lru_cache(maxsize=len(ALGORITHMS))
def scripts_of(algorithm: Algorithm) -> Scripts:
    """Read them from their files, once."""
    return Scripts(
        *(
            script_of(name, *(AT_ONCE[algorithm] if name == "ask" else ()), algorithm=algorithm)
            for name in Scripts._fields
        )
    )


def script_of(name: str, *before: str, algorithm: Algorithm) -> Script:
    """Read one script of an algorithm from its files.

    Args:
        name: of the script.
        before: files that come before the general form.
        algorithm: whose meters it has.
    """
    files = (*before, "state.lua", _METERS[algorithm], "line.lua", f"{name}.lua")
    return Script.load("cuelight.redis._limits", *files)


class Plan:
    """What all calls of one limiter have in common.

    Attributes:
        kind: its algorithm and its limits, which are the same for all who use this name.
        tag: what its keys and channels begin with: the hash tag.
        names: of the limits.
        rows: one for each.
        permits: how many requests may be under way at once; 0 for any number.
        version: of the limits that somebody has set for all; 0 if nobody has.
        packed: for the scripts.
        numbers: of those limits, as they were given: how many, in how many seconds, and the burst; else None.
    """

    __slots__ = ("algorithm", "kind", "names", "numbers", "packed", "permits", "rows", "tag", "version")

    def __init__(
        self,
        name: str,
        algorithm: Algorithm,
        limits: Mapping[str, Row],
        *,
        prefix: str = "cuelight",
        permits: int = 0,
        lease: float = 10.0,
    ) -> None:
        self.names = (*limits,)
        for limit in limits:
            check_text("a limiter", limit=limit)
        self.algorithm: Algorithm = algorithm
        self.tag = f"{{{checked('prefix', prefix)}:limits:{checked('name', name)}}}"
        self.kind = " ".join((algorithm, *self.names))
        self.learn([*limits.values()], permits, 0)
        # Not what was learned: the server has that, and should it forget, all go by their own limits again.
        self.packed = msgspec.msgpack.encode((self.kind, self.rows, permits, round(lease * 1000), self.channel("")))

    def channel(self, party: str) -> str:
        """Where those of a party that wait are told that their turn came."""
        return f"{self.tag}:to:{party}"

    def learn(
        self, rows: Sequence[Sequence[int]], permits: int, version: int, numbers: Sequence[Sequence[Any]] | None = None
    ) -> None:
        """Others have set these limits for all."""
        self.rows, self.permits, self.version, self.numbers = [*map(tuple, rows)], permits, version, numbers

    def learn_from(self, answer: Answer) -> None:
        """The server has said what limits there are.

        Raises:
            LookupError, TypeError, ValueError: they cannot be those of this limiter.
        """
        rows, numbers = answer["rows"], answer.get("numbers")
        width = 3 if self.algorithm == "token_bucket" else 2
        if len(rows) != len(self.names) or any(len(row) != width or min(row) < 1 for row in rows):
            raise ValueError(f"rows {rows}")
        if answer["permits"] < 0 or (numbers is not None and len(numbers) != len(rows)):
            raise ValueError(f"permits {answer['permits']}, numbers {numbers}")
        for most, window, burst in numbers or ():
            RateLimitConfig(most, window, burst or None)  # for its errors
        self.learn(rows, answer["permits"], answer["version"], numbers)

    def keys(self, party: str) -> list[str]:
        """The keys of a call by this party, in the order in which the scripts know them."""
        tag = self.tag
        keys = [f"{tag}:state", f"{tag}:line", f"{tag}:asked", f"{tag}:got:{party}", f"{tag}:held", f"{tag}:parties"]
        if self.algorithm == "sliding_window":
            keys += [f"{tag}:log:{name}" for name in self.names]
        return keys

    def most(self, index: int) -> int:
        """The greatest cost that this limit ever lets through at once."""
        return most_of(self.algorithm, self.rows[index])


def checked(what: str, text: object) -> str:
    """A name or a prefix for keys: without braces, which would end the hash tag. No two become the same.

    Raises:
        TypeError: it is no text.
        ValueError: it is empty or too long, or no Unicode text.
    """
    if not isinstance(text, str):
        raise TypeError(f"{what}={safe_repr(text)}: the {what} of a limiter is a str")
    if not 0 < len(text) <= _LONGEST:
        raise ValueError(f"{what}={text[:40]!r}: give 1 to {_LONGEST} characters, not {len(text)}")
    check_text("a limiter", **{what: text})
    text = text.replace("%", "%25").replace("{", "%7B").replace("}", "%7D")
    return text.replace(":", "%3A") if what == "prefix" else text


def pack(fields: Mapping[str, Any]) -> bytes:
    """Arguments for a script."""
    return msgspec.msgpack.encode(fields)
