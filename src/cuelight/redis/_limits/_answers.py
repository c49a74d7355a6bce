"""What the scripts of limiters answer, checked: a server, or another writer of its keys, may say anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypedDict

import msgspec

__all__ = ["Answer", "unpack"]


Answer = dict[str, Any]
"""An answer of which is known that it has what its script says, of these types."""


class _Answer(TypedDict, total=False):
    """What is in answers. Times are whole microseconds."""

    costs: list[int]
    error: str
    format: Any
    fresh: bool
    granted: bool
    held: int
    left: list[int]
    limit: int
    numbers: list[tuple[int, float, int]] | None
    of: Any
    pause: int
    permits: int
    queued: bool
    rows: list[list[int]]
    tickets: list[list[int]]
    unused: int
    version: int
    wait: int
    waiting: int


_REPORT: Final = frozenset({"left", "unused", "version"})
_NEEDED: Final[Mapping[str, frozenset[str]]] = {
    "amend": frozenset(),
    "ask": frozenset({"fresh", "granted"}) | _REPORT,
    "beat": frozenset({"fresh"}),
    "leave": frozenset(),
    "look": frozenset({"held", "wait", "waiting"}) | _REPORT,
    "steer": frozenset({"pause"}) | _REPORT,
}
"""By the name of the script: what is in each answer that is no error."""

_GRANTED: Final = frozenset({"costs", "tickets"})
_NOT_GRANTED: Final = frozenset({"queued", "wait"})

_EACH: Final = frozenset({"costs", "left", "tickets"})
"""One for each limit."""

_EMPTY: Final = b"\x90"
"""Lua has one kind of empty table."""

_decoder: Final[Any] = msgspec.msgpack.Decoder(_Answer)


def unpack(script: str, limits: int, reply: Any) -> Answer:
    """What a script answered.

    Args:
        script: its name.
        limits: how many the limiter has.
        reply: as the server sent it.

    Raises:
        TypeError, ValueError, RecursionError: it is no answer of this script.
    """
    answer: Answer = {} if reply == _EMPTY else _decoder.decode(reply)
    if "error" in answer:
        return answer
    needed = _NEEDED[script]
    if script == "ask":
        needed |= _GRANTED if answer.get("granted") else _NOT_GRANTED
    if not needed <= answer.keys():
        raise ValueError(f"{', '.join(sorted(needed - answer.keys()))} missing in the answer")
    for each in _EACH & answer.keys():
        if len(answer[each]) != limits:
            raise ValueError(f"{each} of {len(answer[each])} limits in the answer, there are {limits}")
    return answer
