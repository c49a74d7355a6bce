"""Waits for work of pools, in the graph of waits.

A caller that waits for a task of a pool waits for the worker that runs it. This edge is known in two ways. A task of a
pool or a handler of an actor, for which others may wait, enters its wait into the graph. For all other callers, a
search for a cycle finds the wait in the stack frames of the caller. So waiting for a pool costs them nothing.

A task that has not begun waits for any one of the nodes that keep the workers of its pool busy. It can never begin if
each of these nodes waits, directly or through others, for the caller that waits for the task.
"""

# Nodes are tasks of asyncio or trio, threads and cells. No annotation could be more precise.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol

from cuelight.actors import find_cycle, format_cycle, name_of, waits_by_node
from cuelight.coordination._lock_waiting import monitor
from cuelight.errors import DeadlockError

OUTSIDE: Final = "Let the task return and wait for the other one outside of the pool, or give back what it holds first"
"""The advice for most deadlocks with pools."""


class Awaited(Protocol):
    """An object that callers wait for: a task or a map of a pool."""

    @property
    def thing(self) -> str:
        """Its description, such as `task 'fetch' of the pool 'web'`."""
        ...

    @property
    def way_out(self) -> str:
        """The advice in deadlock errors."""
        ...

    def running_nodes(self) -> Collection[Any] | None:
        """The nodes that run it now, and must end first; None if it waits for a worker."""
        ...

    def busy_nodes(self) -> Sequence[Any]:
        """The nodes, one of which must end before it can begin; empty if it can begin, or this is not known."""
        ...


class PoolWait:
    """A wait in the graph of waits."""

    __slots__ = ("_awaited", "_owners")

    def __init__(self, awaited: Awaited, owners: Collection[Any]) -> None:
        self._awaited, self._owners = awaited, owners

    @property
    def thing(self) -> str:
        return self._awaited.thing

    @property
    def way_out(self) -> str:
        return self._awaited.way_out

    def blockers(self) -> Iterable[Any]:
        """The nodes on which the end of the wait depends."""
        running_nodes = self._awaited.running_nodes()
        if running_nodes is not None:
            return running_nodes
        if _looking:
            return ()  # this search is nested in another one, in which a task that has not begun blocks no node
        _looking.append(self)
        try:
            busy_nodes = self._awaited.busy_nodes()
            stuck = all([find_cycle(self._owners, [(one, self.thing)]) is not None for one in busy_nodes])  # noqa: C419
            return busy_nodes if stuck else ()
        finally:
            _looking.clear()


_looking: Final[list[PoolWait]] = []  # used only under the monitor


@contextmanager
def waiting(awaited: Awaited, owners: Sequence[Any]) -> Generator[None]:
    """Enter a wait into the graph for the time of a block.

    Args:
        awaited: the awaited task or map.
        owners: the nodes that wait; may be empty.

    Raises:
        DeadlockError: an owner would wait for itself, directly or through others.
    """
    if not owners:
        yield
        return
    wait = PoolWait(awaited, owners)
    with monitor:
        for owner in owners:
            waits_by_node.setdefault(owner, []).append(wait)
    try:
        check(wait, owners)
        yield
    finally:
        with monitor:
            for owner in owners:
                _leave(owner, wait)


def check(wait: PoolWait, owners: Sequence[Any]) -> None:
    """Search the graph for a cycle.

    Raises:
        DeadlockError: there is a cycle.
    """
    with monitor:
        way = find_cycle(owners, [(blocker, wait.thing) for blocker in wait.blockers()])
        if way is None:
            return
        circle = format_cycle(owners, way)
    raise DeadlockError(
        f"{name_of(owners[0])} waits for {wait.thing} and would wait for ever, because each waits for the next: "
        f"{circle}. {wait.way_out}"
    )


def _leave(owner: Any, wait: PoolWait) -> None:
    waits = waits_by_node.get(owner, [])
    if wait in waits:
        waits.remove(wait)
    if not waits:
        waits_by_node.pop(owner, None)
