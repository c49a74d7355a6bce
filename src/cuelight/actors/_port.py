"""Setting a message aside while it is handled: answer it later, or handle it again later."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cuelight.actors._reply import ASIDE, DONE, QUEUED, RUNNING, Asked
from cuelight.errors import Interrupted, ReplyError, StashFull

if TYPE_CHECKING:
    from cuelight.actors._cell import Cell

__all__ = ["ReplyPort", "defer", "stash"]


class ReplyPort:
    """The answering end of a deferred reply. Dropped unused, it fails the ask."""

    __slots__ = ("_asked",)

    def __init__(self, asked: Asked) -> None:
        self._asked = asked

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits for the answer any more, or it was given."""
        return self._asked.state == DONE

    def send(self, value: Any) -> None:
        """Answer. A late answer is counted in `system.late_replies` and dropped."""
        self._asked.succeed(value)

    def refuse(self, error: ReplyError) -> None:
        """Answer with a refusal."""
        self._asked.fail(error)

    def __del__(self) -> None:
        asked = self._asked
        if asked.state != DONE:
            error = Interrupted(f"{asked.cell.path} deferred the reply to {asked.message!r} and dropped it")
            asked.cell.runtime.call_threadsafe(asked.fail, error)


def take_running(cell: Cell, verb: str) -> Any:
    """The item being handled, taken out of the cell's hands; an inline request gets its slot now."""
    item = cell.running
    inline = cell.runtime.is_inline(cell)
    if item is None or item is ASIDE or (inline and isinstance(item, Asked)):
        raise RuntimeError(f"{cell.path} cannot {verb}: no message is being handled, or it was set aside already")
    if inline:
        asked: Asked = Asked(item, cell, cell.runtime.inline_patience())
        asked.state = RUNNING
        cell.running = asked
        return asked
    cell.running = ASIDE
    return item


def defer(cell: Cell) -> ReplyPort:
    """Take over the reply of the request being handled."""
    item = take_running(cell, "defer a reply")
    if isinstance(item, Asked):
        return ReplyPort(item)
    cell.running = item
    raise RuntimeError(f"{cell.path} cannot defer a reply: {item!r} was told, not asked")


def stash(cell: Cell) -> None:
    """Put the message being handled aside."""
    waiting = cell.bonds_made().stash
    if len(waiting) >= cell.options.capacity:
        raise StashFull(f"the stash of {cell.path} holds {len(waiting)} messages: unstash(), or give it more capacity")
    item = take_running(cell, "stash")
    if isinstance(item, Asked):
        item.state = QUEUED
    waiting.append(item)
