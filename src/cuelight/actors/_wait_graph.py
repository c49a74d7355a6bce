"""The wait-for graph, which covers asks and all other blocking waits, such as those for locks.

Its nodes are cells, tasks and threads. An actor waits for the actors that its handler has asked. A task waits for the
actor whose answer it awaits. Each node also waits for the holders of a lock that it wants.

Invariants:
1. A node enters the graph before it looks for a cycle. So if several nodes close a cycle together, at least one of them
   finds it.
2. There is an edge only if the wait cannot end without the node at the end of the edge.
"""

# Nodes are tasks of asyncio or trio, threads and cells: no annotation could say more.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from types import CodeType, FrameType
from typing import Any, Final, Protocol

from cuelight.mailbox import awaited_by, coroutine_of, frame_of, loop_of


class Wait(Protocol):
    """The wait of a node for a thing that other nodes hold."""

    @property
    def thing(self) -> str:
        """The thing that the node waits for, such as `lock 'db'`."""
        ...

    def blockers(self) -> Iterable[Any]:
        """Return the nodes without which the wait cannot end, or none once it has ended."""
        ...


class HeldResources(Protocol):
    """The things that an actor holds."""

    def release_all(self) -> None:
        """Release everything, because the actor's incarnation is over."""
        ...


waits_by_node: Final[dict[Any, list[Wait]]] = {}
"""The waits by waiting node, and also by loop if a whole loop is blocked. Empty while there are no waits."""

held_by: Final[dict[Any, HeldResources]] = {}
"""The things that actors hold beyond one handler, by cell. Empty while no actor holds anything."""

ask_code: Final[set[CodeType]] = set()
"""The code in which an asker awaits an answer."""

wait_code: Final[dict[CodeType, Callable[[Mapping[str, Any], Any], Wait]]] = {}
"""Code in which a task or a thread waits for something else, with a function that makes the wait from its variables."""

Step = tuple[Any, str | None]
"""A node, and the thing through which the previous node waits for it, or None for an ask."""


def release_all(cell: Any) -> None:
    """Release the things held by an actor whose incarnation is over."""
    held = held_by.pop(cell, None)
    if held is not None:
        held.release_all()


def find_cycle(starts: Collection[Any], first: Iterable[Step]) -> list[Step] | None:
    """Return a path from one of `starts` through a node of `first` back to one of `starts`, or None.

    Args:
        starts: the nodes that begin to wait: an actor, its task, or a whole loop.
        first: the nodes that they are about to wait for.

    Returns:
        The steps of the path. The last step leads back.
    """
    came_from: dict[Any, tuple[Any, str | None]] = {}
    frontier: list[Any] = []
    for node, thing in first:
        if node not in came_from:
            came_from[node] = (None, thing)
            frontier.append(node)
    while frontier:
        node = frontier.pop()
        loop = _loop_of(node) if waits_by_node else None
        if node in starts or (loop is not None and loop in starts):
            return _path_to(node, came_from)
        for other, thing in _waits_of(node, loop):
            if other not in came_from:
                came_from[other] = (node, thing)
                frontier.append(other)
    return None


def _path_to(node: Any, came_from: dict[Any, tuple[Any, str | None]]) -> list[Step]:
    path: list[Step] = []
    while node is not None:
        before, thing = came_from[node]
        path.append((node, thing))
        node = before
    return path[::-1]


def format_cycle(starts: Sequence[Any], path: list[Step]) -> str:
    """Describe a cycle: `/s/a → lock 'db' → /s/b → /s/a`. If it leads to a blocked loop, the text ends there."""
    shown = [name_of(starts[0])]
    for node, thing in path:
        shown += [name_of(node)] if thing is None else [thing, name_of(node)]
    if path[-1][0] not in starts:
        shown.append(f"the event loop, which {shown[0]} blocks")
    return " → ".join(shown)


def name_of(node: Any) -> str:
    """Describe a node: the path of an actor, or the name of a task or a thread."""
    path: str | None = getattr(node, "path", None)
    if path is not None:
        return path
    if coroutine_of(node) is None:
        return str(node)
    name: str = node.get_name() if hasattr(node, "get_name") else node.name
    return f"task {name!r}"


def _waits_of(node: Any, loop: Any) -> list[Step]:
    steps: list[Step] = [(ask.cell, None) for ask in list(getattr(node, "asks", None) or ())]
    if waits_by_node:
        for place in (node, loop):
            for wait in waits_by_node.get(place, ()):
                steps += [(blocker, wait.thing) for blocker in wait.blockers()]
        steps += _steps_in_frames(node)
    return steps


def _loop_of(node: Any) -> Any:
    runtime = getattr(node, "runtime", None)
    return loop_of(node) if runtime is None else runtime.backend.loop


def _steps_in_frames(node: Any) -> list[Step]:
    """Return the nodes that a task or thread waits for, found in its frames, so that no wait has to be registered."""
    steps: list[Step] = []
    for frame in _frames_of(node):
        code = frame.f_code
        if code in ask_code:
            steps.append((frame.f_locals["self"].cell, None))
        elif code in wait_code:
            wait = wait_code[code](frame.f_locals, node)
            steps += [(blocker, wait.thing) for blocker in wait.blockers()]
    return steps


def _frames_of(node: Any) -> Iterator[FrameType]:
    """Yield the frames of a task from the outermost coroutine on, or those of a thread from the innermost on."""
    step = coroutine_of(node)
    while step is not None:
        frame = frame_of(step)
        if frame is not None:
            yield frame
        step = awaited_by(step)
    ident = getattr(node, "ident", None)
    if ident is not None and wait_code:
        frame = sys._current_frames().get(ident)
        while frame is not None:
            yield frame
            frame = frame.f_back
