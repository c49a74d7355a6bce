"""Setting aside the message being handled, to answer it later or to handle it again later."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cuelight._text import safe_repr
from cuelight.actors._reply import ASIDE, DONE, QUEUED, RUNNING, Asked
from cuelight.actors._stream import StreamSlot
from cuelight.errors import Interrupted, ReplyError, StashFull

if TYPE_CHECKING:
    from cuelight.actors._cell import Cell


class ReplyPort:
    """The answering end of a deferred reply. The ask fails when the port is dropped unused or its actor ends."""

    __slots__ = ("_asked",)

    def __init__(self, asked: Asked) -> None:
        self._asked = asked

    @property
    def abandoned(self) -> bool:
        """Whether the caller no longer waits for the answer, or the answer was already given."""
        return self._asked.state == DONE

    def send(self, value: Any) -> None:
        """Send the answer. A late answer is counted in `system.late_replies` and dropped."""
        self._asked.cell.reply_settled(self._asked)
        self._asked.succeed(value)

    def refuse(self, error: ReplyError) -> None:
        """Answer with an error, which the caller gets as a refusal."""
        self._asked.cell.reply_settled(self._asked)
        self._asked.fail(error)

    def __del__(self) -> None:
        asked = self._asked
        asked.cell.reply_settled(asked)
        if asked.state != DONE:
            error = Interrupted(f"{asked.cell.path} deferred the reply to {safe_repr(asked.message)} and dropped it")
            try:
                asked.cell.runtime.call_threadsafe(asked.fail, error)
            except RuntimeError:
                pass  # the loop has ended, and with it the caller


def take_running(cell: Cell, verb: str) -> Any:
    """Return the item being handled and set it aside. An inline request gets its slot now."""
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
    if isinstance(cell.running, StreamSlot):
        raise RuntimeError(f"{cell.path} cannot defer a reply: a stream handler yields its answers")  # noqa: TRY004
    item = take_running(cell, "defer a reply")
    if isinstance(item, Asked):
        bonds = cell.bonds_made()
        bonds.deferred[item] = []
        bonds.deferred_now = item
        return ReplyPort(item)
    cell.running = item
    raise RuntimeError(f"{cell.path} cannot defer a reply: {safe_repr(item)} was told, not asked")


def stash(cell: Cell) -> None:
    bonds = cell.bonds_made()
    waiting = bonds.stash
    if len(waiting) >= cell.options.capacity:
        raise StashFull(f"the stash of {cell.path} holds {len(waiting)} messages: unstash(), or give it more capacity")
    item = take_running(cell, "stash")
    bonds.deferred_now = None
    if isinstance(item, Asked):
        item.state = QUEUED
    waiting.append(item)
