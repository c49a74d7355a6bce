"""Crash reports: the actor, its message, the supervisor's decision and the options that change this decision."""

# Messages, factories and exceptions of users are Any here: no annotation could say more.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from cuelight._log import get_log
from cuelight._text import error_lines, safe_repr, type_name

if TYPE_CHECKING:
    from cuelight.actors import Cell, Crashed

log = get_log("cuelight")

HOW_TO_CHANGE = (
    "  to change that: restart=, backoff= and redeliver= of child(...).with_options(...), strategy, max_restarts and "
    "within of the supervisor; or raise ReplyError to refuse without a crash"
)


def report_crash(cell: Cell, exit_: Crashed, supervisor: Any, decision: str) -> None:
    """Log a crash.

    Crashes of one actor class by one exception type are counted together, see `cuelight._log`.

    Args:
        cell: the crashed actor.
        exit_: its exit.
        supervisor: its supervisor.
        decision: the supervisor's decision.
    """
    if not log.is_enabled_for(logging.ERROR):
        return
    at_work = "outside of messages" if exit_.message is None else f"on {safe_repr(exit_.message)}"
    owner = "the system" if supervisor.owner is None else supervisor.owner.path
    kind = cell.options.restart
    lines = [
        f"actor {cell.path} crashed {at_work}",
        *(f"  {line}" for line in error_lines(exit_.error)),
        f"  {owner} decided (it is {kind!r}): {decision}",
        HOW_TO_CHANGE,
    ]
    log.error("\n".join(lines), error=exit_.error, kind=("crash", cell.table.name, type_name(exit_.error)))
