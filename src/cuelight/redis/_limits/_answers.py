"""Decodes and checks the answers of the limiter scripts. A server, or another writer of its keys, may send anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypedDict

import msgspec

ScriptAnswer = dict[str, Any]
"""A checked answer: it has the fields that its script promises, with these types."""


class _AnswerFields(TypedDict, total=False):
    """The fields of all answers. Times are whole microseconds."""

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
REQUIRED_FIELDS: Final[Mapping[str, frozenset[str]]] = {
    "adjust": frozenset(),
    "ask": frozenset({"fresh", "granted"}) | _REPORT,
    "renew": frozenset({"fresh"}),
    "leave": frozenset(),
    "look": frozenset({"held", "wait", "waiting"}) | _REPORT,
    "control": frozenset({"pause"}) | _REPORT,
}
"""By the name of the script: the fields of each answer without an error."""

_GRANTED: Final = frozenset({"costs", "tickets"})
_NOT_GRANTED: Final = frozenset({"queued", "wait"})

PER_LIMIT_FIELDS: Final = frozenset({"costs", "left", "tickets"})
"""Fields with one item for each limit."""

_EMPTY: Final = b"\x90"
"""The encoding of an empty array, which stands for an empty answer: Lua has one kind of empty table."""

_decoder: Final[Any] = msgspec.msgpack.Decoder(_AnswerFields)


def unpack(script: str, limits: int, reply: Any) -> ScriptAnswer:
    """Decode the answer of a script.

    Args:
        script: the name of the script.
        limits: the number of limits of the limiter.
        reply: the reply of the server.

    Raises:
        TypeError, ValueError, RecursionError: it is not an answer of this script.
    """
    answer: ScriptAnswer = {} if reply == _EMPTY else _decoder.decode(reply)
    if "error" in answer:
        return answer
    needed = REQUIRED_FIELDS[script]
    if script == "ask":
        needed |= _GRANTED if answer.get("granted") else _NOT_GRANTED
    if not needed <= answer.keys():
        raise ValueError(f"{', '.join(sorted(needed - answer.keys()))} missing in the answer")
    for each in PER_LIMIT_FIELDS & answer.keys():
        if len(answer[each]) != limits:
            raise ValueError(f"{each} of {len(answer[each])} limits in the answer, there are {limits}")
    return answer
