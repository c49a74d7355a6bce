"""The commands that may block and for how long, and the commands that a shared connection cannot carry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

_BY_LAST: Final = frozenset({"BLMOVE", "BLPOP", "BRPOP", "BRPOPLPUSH", "BZPOPMAX", "BZPOPMIN"})
_BY_FIRST: Final = frozenset({"BLMPOP", "BZMPOP"})
_BY_OPTION: Final = frozenset({"XREAD", "XREADGROUP"})

_REFUSED: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        ("AUTH", "CLIENT NO-EVICT", "CLIENT NO-TOUCH", "CLIENT REPLY", "CLIENT SETNAME", "CLIENT TRACKING"),
        "it concerns one connection, and this one is shared by many tasks: use `async with client.dedicated()`",
    ),
    **dict.fromkeys(
        ("HELLO", "READONLY", "READWRITE", "SELECT", "WAIT", "WAITAOF"),
        "it concerns one connection, and this one is shared by many tasks: use `async with client.dedicated()`",
    ),
    **dict.fromkeys(
        ("DISCARD", "EXEC", "MULTI"),
        "commands of other tasks would get between: use `client.pipeline()`, or `async with client.dedicated()`",
    ),
    **dict.fromkeys(
        ("UNWATCH", "WATCH"), "it concerns one connection, and this one is shared: use `async with client.dedicated()`"
    ),
    **dict.fromkeys(
        ("PSUBSCRIBE", "PUNSUBSCRIBE", "SSUBSCRIBE", "SUBSCRIBE", "SUNSUBSCRIBE", "UNSUBSCRIBE"),
        "its replies are push messages: use `client.subscribe()`",
    ),
    **dict.fromkeys(("MONITOR", "PSYNC", "QUIT", "RESET", "SYNC"), "it would end the connection that many tasks share"),
}

PLAIN, MAY_BLOCK, REFUSED = range(3)

_command_kinds: Final[dict[Any, int]] = {}


def command_kind(name: Any) -> int:
    """Classify a command by its name as the caller wrote it. For some REFUSED commands, the second word decides."""
    kind = _command_kinds.get(name)
    if kind is None:
        word = _word(name)
        if word in _BY_LAST | _BY_FIRST | _BY_OPTION:
            kind = MAY_BLOCK
        elif word in _REFUSED or word.partition(" ")[0] == "CLIENT":
            kind = REFUSED
        else:
            kind = PLAIN
        if len(_command_kinds) < 2000:  # limits the memory: names may come from user input
            _command_kinds[name] = kind
    return kind


def reject(command: Sequence[Any]) -> None:
    """Reject a command that cannot be sent over a connection that is shared.

    Raises:
        ValueError: it is such a command. The message names the alternative.
    """
    word = _word(command[0])
    if word == "CLIENT" and len(command) > 1:
        word = f"CLIENT {_word(command[1])}"
    reason = _REFUSED.get(word)
    if reason is not None:
        raise ValueError(f"{word}: {reason}")


def blocking_timeout(command: Sequence[Any]) -> float | None:
    """Return the seconds that a command may block: 0 if it does not block, None for no limit."""
    words = _word(command[0]).split()
    name, arguments = words[0], [*words[1:], *command[1:]]
    read: Callable[[Any], float] = float
    try:
        if name in _BY_LAST:
            given = read(_text(arguments[-1]))
        elif name in _BY_FIRST:
            given = read(_text(arguments[0]))
        else:
            given = _block_option(arguments)
    except (IndexError, ValueError):
        return 0.0  # the server reports the mistake
    if name in _BY_OPTION:
        return None if given == 0 else max(given, 0.0) / 1000
    return given or None


def _block_option(arguments: Sequence[Any]) -> float:
    """Return the milliseconds of BLOCK; -1 if it is not given."""
    for place, argument in enumerate(arguments):
        word = argument.upper() if isinstance(argument, (bytes, str)) else argument
        if word in {"STREAMS", b"STREAMS"}:
            break
        if word in {"BLOCK", b"BLOCK"}:
            return float(_text(arguments[place + 1]))
    return -1.0


def _text(argument: Any) -> Any:
    return argument.decode() if isinstance(argument, bytes) else argument


def _word(name: Any) -> str:
    return (name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)).strip().upper()
