"""The description of a limiter in each call to the server: its limits as rows of whole numbers, and its keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from math import gcd
from typing import Any, Final, Literal, NamedTuple, get_args

import msgspec

from cuelight._text import safe_repr
from cuelight.coordination import RateLimitConfig
from cuelight.redis._client import Script
from cuelight.redis._limits._answers import ScriptAnswer
from cuelight.tasks._stores._checks import check_text

Algorithm = Literal["token_bucket", "sliding_window", "sliding_counter"]

ALGORITHMS: Final[tuple[Algorithm, ...]] = get_args(Algorithm)

_EXACT: Final = 1 << 53
"""Lua counts in doubles: whole numbers below this are exact."""

_LONGEST: Final = 512
"""The greatest length of a name, in characters. A longer one is most likely data passed by mistake."""

_ROOM: Final = 1 << 48
"""The greatest number of ticks in a full burst, so that debts and queues of many bursts are still exact."""

LimitRow = tuple[int, ...]


@lru_cache(maxsize=1024)
def bucket_row(config: RateLimitConfig) -> LimitRow:
    """Return `(interval, scale, burst)`: a cost of 1 is paid off in `interval` ticks, of which `scale` are a
    microsecond.

    It is exact where the numbers allow. Otherwise a cost takes longer, by less than a millionth for bursts below 10^8.

    Raises:
        ValueError: the burst takes longer to refill than the numbers can express.
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


def window_row(config: RateLimitConfig) -> LimitRow:
    """Return `(limit, window)`, with the window in microseconds, rounded up."""
    return config.max_requests, -(-config.window_nanoseconds // 1000)


def counter_row(config: RateLimitConfig) -> LimitRow:
    """Return `(limit, window)` for two counters.

    Raises:
        ValueError: the product of the two is more than Lua can count.
    """
    limit, window = window_row(config)
    if limit * window >= _EXACT:
        raise ValueError(
            f"{config!r}: two counters on Redis take max_requests * window_seconds of up to {_EXACT // 10**6:,}; "
            "count in a larger unit, or take a token bucket"
        )
    return limit, window


_ROWS: Final[Mapping[Algorithm, Callable[[RateLimitConfig], LimitRow]]] = {
    "token_bucket": bucket_row,
    "sliding_window": window_row,
    "sliding_counter": counter_row,
}


def row_of(algorithm: Algorithm, config: RateLimitConfig) -> LimitRow:
    """Return the row of numbers by which the scripts know a limit.

    Raises:
        ValueError: its numbers are more than Lua can count.
    """
    return _ROWS[algorithm](config)


def max_cost_of(algorithm: Algorithm, row: Sequence[int]) -> int:
    """Return the greatest cost that is ever admitted at once."""
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
"""The files that come before the general form of `ask`."""


class Scripts(NamedTuple):
    """The scripts of one algorithm."""

    ask: Script
    adjust: Script
    leave: Script
    renew: Script
    control: Script
    look: Script


@lru_cache(maxsize=len(ALGORITHMS))
def scripts_of(algorithm: Algorithm) -> Scripts:
    """Read the scripts from their files, once."""
    return Scripts(
        *(
            script_of(name, *(AT_ONCE[algorithm] if name == "ask" else ()), algorithm=algorithm)
            for name in Scripts._fields
        )
    )


def script_of(name: str, *before: str, algorithm: Algorithm) -> Script:
    """Read one script of an algorithm from its files.

    Args:
        name: the name of the script.
        before: files that come before the general form.
        algorithm: the algorithm whose meters it contains.
    """
    files = (*before, "state.lua", _METERS[algorithm], "queue.lua", f"{name}.lua")
    return Script.load("cuelight.redis._limits", *files)


class LimiterConfig:
    """The data that all calls of one limiter share.

    Attributes:
        kind: its algorithm and the names of its limits, which are the same for all users of this name.
        tag: the common prefix of its keys and channels: the hash tag.
        names: the names of the limits.
        rows: one row for each limit.
        permits: the number of requests that may be under way at once; 0 for no limit.
        version: the version of the limits that a process has set for all; 0 if none has.
        packed: the plan, encoded for the scripts.
        numbers: those limits as they were given (number, seconds, and burst); otherwise None.
    """

    __slots__ = ("algorithm", "kind", "names", "numbers", "packed", "permits", "rows", "tag", "version")

    def __init__(
        self,
        name: str,
        algorithm: Algorithm,
        limits: Mapping[str, LimitRow],
        *,
        prefix: str = "cuelight",
        permits: int = 0,
        lease: float = 10.0,
    ) -> None:
        self.names = (*limits,)
        for limit in limits:
            check_text("a limiter", limit=limit)
        self.algorithm: Algorithm = algorithm
        self.tag = f"{{{escape_name('prefix', prefix)}:limits:{escape_name('name', name)}}}"
        self.kind = " ".join((algorithm, *self.names))
        self.use_limits([*limits.values()], permits, 0)
        # Without learned limits: the server has them. If it loses them, all processes use their own limits again.
        self.packed = msgspec.msgpack.encode((self.kind, self.rows, permits, round(lease * 1000), self.channel("")))

    def channel(self, client_id: str) -> str:
        """The channel on which the waiting requests of a party are notified of their turn."""
        return f"{self.tag}:to:{client_id}"

    def use_limits(
        self, rows: Sequence[Sequence[int]], permits: int, version: int, numbers: Sequence[Sequence[Any]] | None = None
    ) -> None:
        """Use the limits that a process has set for all."""
        self.rows, self.permits, self.version, self.numbers = [*map(tuple, rows)], permits, version, numbers

    def use_limits_of(self, answer: ScriptAnswer) -> None:
        """Use the limits in an answer of the server.

        Raises:
            LookupError, TypeError, ValueError: they cannot be limits of this limiter.
        """
        rows, numbers = answer["rows"], answer.get("numbers")
        width = 3 if self.algorithm == "token_bucket" else 2
        if len(rows) != len(self.names) or any(len(row) != width or min(row) < 1 for row in rows):
            raise ValueError(f"rows {rows}")
        if answer["permits"] < 0 or (numbers is not None and len(numbers) != len(rows)):
            raise ValueError(f"permits {answer['permits']}, numbers {numbers}")
        for max_cost, window, burst in numbers or ():
            RateLimitConfig(max_cost, window, burst or None)  # only to raise its errors
        self.use_limits(rows, answer["permits"], answer["version"], numbers)

    def keys(self, client_id: str) -> list[str]:
        """The keys of a call by this party, in the order that the scripts expect."""
        tag = self.tag
        keys = [
            f"{tag}:state",
            f"{tag}:line",
            f"{tag}:asked",
            f"{tag}:got:{client_id}",
            f"{tag}:held",
            f"{tag}:parties",
        ]
        if self.algorithm == "sliding_window":
            keys += [f"{tag}:log:{name}" for name in self.names]
        return keys

    def max_cost(self, index: int) -> int:
        """The greatest cost that this limit ever admits at once."""
        return max_cost_of(self.algorithm, self.rows[index])


def escape_name(what: str, text: object) -> str:
    """Escape a name or a prefix for keys: without braces, which would end the hash tag. Different names stay different.

    Raises:
        TypeError: it is not a `str`.
        ValueError: it is empty or too long, or not valid Unicode.
    """
    if not isinstance(text, str):
        raise TypeError(f"{what}={safe_repr(text)}: the {what} of a limiter is a str")
    if not 0 < len(text) <= _LONGEST:
        raise ValueError(f"{what}={text[:40]!r}: give 1 to {_LONGEST} characters, not {len(text)}")
    check_text("a limiter", **{what: text})
    text = text.replace("%", "%25").replace("{", "%7B").replace("}", "%7D")
    return text.replace(":", "%3A") if what == "prefix" else text


def pack(fields: Mapping[str, Any]) -> bytes:
    """Encode the arguments of a script."""
    return msgspec.msgpack.encode(fields)
