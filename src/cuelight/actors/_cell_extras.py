"""The state that only few actors need: timers, background tasks, watchers, links, stash, groups.

It is a separate object, so that an idle actor without it takes no memory for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from cuelight.actors._messages import Crashed, Exit, Killed
    from cuelight.actors._reply import PendingAsk
    from cuelight.mailbox import Waiter

C = TypeVar("C")


class Cancellable(Protocol):
    """A timer, or a task in the background."""

    def cancel(self) -> None:
        """End it."""
        ...


class JoinedGroup(Protocol):
    """A group that an actor has joined."""

    def discard(self, cell: Any) -> None:
        """Remove a member that has ended."""
        ...


class CellExtras(Generic[C]):
    """The rarely used state of one cell. State bound to an incarnation ends with it, the rest with the cell."""

    __slots__ = (
        "background",
        "deferred",
        "deferred_now",
        "error_log",
        "exit_forced",
        "groups",
        "keyed_timers",
        "links",
        "retry",
        "stash",
        "timers",
        "watched",
        "watchers",
        "when_ended",
        "when_started",
    )

    def __init__(self) -> None:
        # Bound to the incarnation.
        self.exit_forced: Killed | Crashed | None = None
        self.timers: dict[Cancellable, None] = {}
        self.keyed_timers: dict[int, list[Any]] = {}  # by the hash of the key
        self.background: dict[Cancellable, None] = {}
        self.deferred: dict[PendingAsk, list[Cancellable]] = {}  # each with the work that serves it
        self.deferred_now: PendingAsk | None = None  # by the running handler, or by an earlier one
        self.watched: dict[C, None] = {}
        # Bound to the cell.
        self.stash: deque[Any] = deque()
        self.retry: tuple[Any, int] | None = None
        self.error_log: list[BaseException] = []
        self.links: dict[C, None] = {}
        self.watchers: dict[C, Callable[[Exit], object]] = {}  # each with the function that tells it
        self.when_ended: dict[Waiter | Callable[[Exit], object], None] = {}
        self.when_started: dict[Callable[[], object], None] = {}
        self.groups: dict[JoinedGroup, None] = {}

    def call_when_ended(self, callback: Waiter | Callable[[Exit], object]) -> None:
        """Call `callback(exit)`, or wake a waiter, when the cell has ended permanently."""
        self.when_ended[callback] = None

    def call_when_started(self, callback: Callable[[], object]) -> None:
        """Call `callback()` once, when the next incarnation has started or can no longer start."""
        self.when_started[callback] = None
