"""Crash reports that teach: who crashed on what, what was decided, by whom, and how to change that."""

# Messages, factories and what users raise are Any here: no annotation could say more.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cuelight.actors import Cell, Crashed

__all__ = ["flatten", "report_crash"]

log = logging.getLogger("cuelight")

SHOWN = 300

HOW_TO_CHANGE = (
    "  to change that: restart=, backoff= and redeliver= of child(...).with_options(...), strategy, max_restarts and "
    "within of the supervisor; or raise ReplyError to refuse without a crash"
)


def report_crash(cell: Cell, exit_: Crashed, family: Any, decision: str) -> None:
    """Log a crash.

    Args:
        cell: who crashed.
        exit_: how.
        family: its supervisor's.
        decision: what the supervisor decided.
    """
    if not log.isEnabledFor(logging.ERROR):
        return
    message = repr(exit_.message)
    at_work = "outside of messages" if exit_.message is None else f"on {message[:SHOWN]}"
    supervisor = "the system" if family.owner is None else family.owner.path
    kind = cell.options.restart
    lines = [
        f"actor {cell.path} crashed {at_work}",
        *(f"  {line}" for line in flatten(exit_.error)),
        f"  {supervisor} decided (it is {kind!r}): {decision}",
        HOW_TO_CHANGE,
    ]
    log.error("\n".join(lines), exc_info=exit_.error)


def flatten(error: BaseException, depth: int = 0) -> Iterator[str]:
    """One line for an exception, and for each one inside an exception group."""
    indent = "  " * depth
    yield f"{indent}{type(error).__name__}: {error}"
    if isinstance(error, BaseExceptionGroup):
        inner: BaseException
        for inner in error.exceptions:
            yield from flatten(inner, depth + 1)
