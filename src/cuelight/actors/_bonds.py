"""What few actors have and so no idle one pays for: timers, background tasks, watchers, links, stash, groups."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Self

from cuelight.actors._exits import Crashed, Exit, Terminated
from cuelight.actors._ref import Ref
from cuelight.errors import CuelightError

if TYPE_CHECKING:
    from collections.abc import Callable

    from cuelight.actors._background import Background
    from cuelight.actors._cell import Cell
    from cuelight.actors._exits import Killed
    from cuelight.actors._groups import Group
    from cuelight.actors._timers import ActorTimer
    from cuelight.mailbox import Waiter

__all__ = ["Bonds", "LinkedExit"]


class LinkedExit(CuelightError):
    """An actor to which this one is linked has ended abnormally."""

    @classmethod
    def of(cls, cell: Cell, exit_: Exit) -> Self:
        """What those get that are linked to a cell that ended so."""
        error = cls(f"{cell.path}, to which it is linked, {exit_.describe()}")
        error.__cause__ = exit_.error if isinstance(exit_, Crashed) else None
        return error


class Bonds:
    """Of one cell. What is bound to an incarnation ends with it, the rest with the cell."""

    __slots__ = (
        "background",
        "cell",
        "error_log",
        "exit_forced",
        "groups",
        "links",
        "retry",
        "starting",
        "stash",
        "timers",
        "watched",
        "watchers",
        "when_ended",
    )

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        # Of the incarnation.
        self.exit_forced: Killed | Crashed | None = None
        self.timers: dict[object, ActorTimer] = {}
        self.background: dict[Background, None] = {}
        self.watched: dict[Cell, None] = {}
        # Of the cell.
        self.stash: deque[Any] = deque()
        self.retry: tuple[Any, int] | None = None
        self.error_log: list[BaseException] = []
        self.links: dict[Cell, None] = {}
        self.watchers: dict[Cell, None] = {}
        self.when_ended: list[Waiter | Callable[[Exit], object]] = []
        self.starting: list[Callable[[], object]] = []
        self.groups: dict[Group[Any], None] = {}

    @property
    def busy(self) -> bool:
        """Whether background tasks still run."""
        return bool(self.background)

    def has_started(self) -> None:
        """The incarnation is up, or never will be: tell those who wait for that."""
        starting, self.starting = self.starting, []
        for tell in starting:
            tell()

    def end_incarnation(self) -> None:
        """End what is bound to the incarnation. Background tasks are cancelled and end a little later."""
        for timer in list(self.timers.values()):
            timer.cancel()
        for task in list(self.background):
            task.cancel()
        for other in self.watched:
            if other.bonds is not None:
                other.bonds.watchers.pop(self.cell, None)
        self.watched.clear()
        self.unstash()

    def unstash(self) -> None:
        """Put the stash back in front of the mail, oldest first."""
        if self.stash:
            if self.cell.items is None:
                self.cell.items = deque()
            self.cell.items.extendleft(reversed(self.stash))
            self.stash.clear()
            if self.cell.asleep:
                self.cell.woken()

    def try_again(self, item: Any, error: BaseException) -> bool:
        """Count a crash of this message. Puts it back to the front, or quarantines it when it has crashed enough."""
        cell, count = self.cell, 1
        if self.retry is not None and self.retry[0] is item:
            count += self.retry[1]
        else:
            self.error_log = []
        self.error_log.append(error)
        if count >= cell.options.redeliver:
            self.retry = (item, 0)
            message = cell.content(item)
            cell.runtime.dead_letters.add(message, cell, "quarantined", error, tuple(self.error_log))
            return False
        self.retry = (item, count)
        cell.requeue(item)
        return True

    def settle(self, cell: Cell, exit_: Exit) -> None:
        """The cell has ended for good: tell those who wait for it."""
        self.has_started()
        for group in list(self.groups):
            group.discard(cell)
        terminated = Terminated(Ref(cell), exit_)
        for watcher in self.watchers:
            if watcher.bonds is not None:
                watcher.bonds.watched.pop(cell, None)
            watcher.put_control(terminated)
        for other in self.links:
            if other.bonds is not None:
                other.bonds.links.pop(cell, None)
            if exit_.abnormal:
                other.fail_with(LinkedExit.of(cell, exit_))
        for waiting in self.when_ended:
            if callable(waiting):
                waiting(exit_)
            else:
                waiting.wake()
