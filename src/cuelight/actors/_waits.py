"""Who waits for whom: one graph over asks and whatever else can hold somebody up, such as locks.

Its nodes are cells, tasks and threads. An actor waits for the actors that its handler has asked; a task for the actor
whose answer it awaits; each of them for those that keep it from a lock.

Invariants:
1. Whoever begins to wait is in the graph before it looks for a circle, so that of those who close one together at
   least one finds it.
2. There is an edge only where the wait cannot end without the node that it leads to.
"""

# Nodes are tasks of either library, threads and cells: no annotation could say more.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, Final, Protocol

from cuelight.mailbox import awaited_by, coroutine_of, frame_of, loop_of

if TYPE_CHECKING:
    from cuelight.actors._cell import Cell

__all__ = [
    "Holdings",
    "Wait",
    "blocked",
    "code_of_asks",
    "code_of_waits",
    "find_circle",
    "holdings",
    "let_go",
    "name_of",
    "show_circle",
]


class Wait(Protocol):
    """Somebody waits for a thing that others hold."""

    @property
    def thing(self) -> str:
        """What is waited for, such as `lock 'db'`."""
        ...

    def blockers(self) -> Iterable[Any]:
        """The nodes without which the wait cannot end; none once it has ended."""
        ...


class Holdings(Protocol):
    """What an actor holds."""

    def let_go(self) -> None:
        """The actor's incarnation is over: give it all back."""
        ...


blocked: Final[dict[Any, list[Wait]]] = {}
"""Waits for things, by who waits; by its loop, too, if a whole loop is blocked. Empty as long as nobody waits."""

holdings: Final[dict[Any, Holdings]] = {}
"""What actors hold beyond one handler, by cell. Empty as long as none of them holds anything."""

code_of_asks: Final[set[CodeType]] = set()
"""The code in which an asker is while it awaits an answer."""

code_of_waits: Final[dict[CodeType, Callable[[Mapping[str, Any], Any], Wait]]] = {}
"""Code in which a task or a thread is while it waits for something else, and how to see that wait in its variables."""

Step = tuple[Any, str | None]
"""A node, and through which thing the one before waits for it; None for an ask."""


def let_go(cell: Cell) -> None:
    """Give back what an actor holds whose incarnation is over."""
    held = holdings.pop(cell, None)
    if held is not None:
        held.let_go()


def find_circle(starts: Collection[Any], first: Iterable[Step]) -> list[Step] | None:
    """The way from one of `starts` over one of the nodes of `first` back to one of `starts`, if there is one.

    Args:
        starts: who begins to wait: an actor, its task, or a whole loop.
        first: what it is going to wait for.

    Returns:
        The steps, of which the last leads back.
    """
    came_from: dict[Any, tuple[Any, str | None]] = {}
    frontier: list[Any] = []
    for node, thing in first:
        if node not in came_from:
            came_from[node] = (None, thing)
            frontier.append(node)
    while frontier:
        node = frontier.pop()
        loop = _loop_of(node) if blocked else None
        if node in starts or (loop is not None and loop in starts):
            return _way(node, came_from)
        for other, thing in _waits_of(node, loop):
            if other not in came_from:
                came_from[other] = (node, thing)
                frontier.append(other)
    return None


def _way(node: Any, came_from: dict[Any, tuple[Any, str | None]]) -> list[Step]:
    way: list[Step] = []
    while node is not None:
        before, thing = came_from[node]
        way.append((node, thing))
        node = before
    return way[::-1]


def show_circle(starts: Sequence[Any], way: list[Step]) -> str:
    """A circle in words: `/s/a → lock 'db' → /s/b → /s/a`. One that leads to a blocked loop ends with that."""
    shown = [name_of(starts[0])]
    for node, thing in way:
        shown += [name_of(node)] if thing is None else [thing, name_of(node)]
    if way[-1][0] not in starts:
        shown.append(f"the event loop, which {shown[0]} blocks")
    return " → ".join(shown)


def name_of(node: Any) -> str:
    """A node in words: the path of an actor, a task or a thread by its name."""
    path: str | None = getattr(node, "path", None)
    if path is not None:
        return path
    if coroutine_of(node) is None:
        return str(node)
    name: str = node.get_name() if hasattr(node, "get_name") else node.name
    return f"task {name!r}"


def _waits_of(node: Any, loop: Any) -> list[Step]:
    steps: list[Step] = [(ask.cell, None) for ask in list(getattr(node, "asks", None) or ())]
    if blocked:
        for place in (node, loop):
            for wait in blocked.get(place, ()):
                steps += [(blocker, wait.thing) for blocker in wait.blockers()]
        steps += _seen_in_frames(node)
    return steps


def _loop_of(node: Any) -> Any:
    runtime = getattr(node, "runtime", None)
    return loop_of(node) if runtime is None else runtime.backend.loop


def _seen_in_frames(node: Any) -> list[Step]:
    """What a task or a thread waits for. Seen from outside, so that its wait need not be entered anywhere."""
    steps: list[Step] = []
    for frame in _frames_of(node):
        code = frame.f_code
        if code in code_of_asks:
            steps.append((frame.f_locals["self"].cell, None))
        elif code in code_of_waits:
            wait = code_of_waits[code](frame.f_locals, node)
            steps += [(blocker, wait.thing) for blocker in wait.blockers()]
    return steps


def _frames_of(node: Any) -> Iterator[FrameType]:
    """The frames of a task, from the outermost coroutine on; or of a thread, from the innermost on."""
    step = coroutine_of(node)
    while step is not None:
        frame = frame_of(step)
        if frame is not None:
            yield frame
        step = awaited_by(step)
    ident = getattr(node, "ident", None)
    if ident is not None and code_of_waits:
        frame = sys._current_frames().get(ident)
        while frame is not None:
            yield frame
            frame = frame.f_back
