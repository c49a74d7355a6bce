"""Waits for work of pools, in the graph of who waits for whom.

A caller that waits for a task of a pool waits for the worker that runs it. That edge is seen in two ways. A task of a
pool and a handler of an actor, which others may wait for, enter their wait in the graph. Of everybody else it is seen
from outside, in the frames of who waits, when somebody looks for a circle: so waiting for a pool costs nothing for it.

A task that has not begun waits for any of those who keep the workers of its pool busy. It can never begin if each of
them waits, in the end, for the one who waits for the task.
"""

# Nodes are tasks of either library, threads and cells: no annotation could say more.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol

from cuelight.actors import blocked, find_circle, name_of, show_circle
from cuelight.coordination._endings import monitor
from cuelight.errors import DeadlockError

__all__ = ["Awaited", "OUTSIDE", "PoolWait", "blocked", "check", "waiting"]

OUTSIDE: Final = "Let the task return and wait for the other one outside of the pool, or give back what it holds first"
"""The way out of most deadlocks with pools."""


class Awaited(Protocol):
    """What can be waited for: a task or a map of a pool."""

    @property
    def thing(self) -> str:
        """What it is, such as `task 'fetch' of the pool 'web'`."""
        ...

    @property
    def way_out(self) -> str:
        """What to do about a deadlock."""
        ...

    def runners(self) -> Collection[Any] | None:
        """The nodes that run it now, without which it cannot end; None if it waits for a worker."""
        ...

    def occupants(self) -> Sequence[Any]:
        """The nodes of which one must end before it can begin; none if it can begin, or that is not known."""
        ...


class PoolWait:
    """A wait in the graph."""

    __slots__ = ("_awaited", "_owners")

    def __init__(self, awaited: Awaited, owners: Collection[Any]) -> None:
        self._awaited, self._owners = awaited, owners

    @property
    def thing(self) -> str:
        """What is waited for."""
        return self._awaited.thing

    @property
    def way_out(self) -> str:
        """What to do about a deadlock."""
        return self._awaited.way_out

    def blockers(self) -> Iterable[Any]:
        """The nodes without which the wait cannot end."""
        runners = self._awaited.runners()
        if runners is not None:
            return runners
        if _looking:
            return ()  # within such a look; a task that may begin holds nobody up
        _looking.append(self)
        try:
            occupants = self._awaited.occupants()
            stuck = all([find_circle(self._owners, [(one, self.thing)]) is not None for one in occupants])  # noqa: C419
            return occupants if stuck else ()
        finally:
            _looking.clear()


_looking: Final[list[PoolWait]] = []  # under the monitor


@contextmanager
def waiting(awaited: Awaited, owners: Sequence[Any]) -> Generator[None]:
    """Enter a wait in the graph for the time of a block.

    Args:
        awaited: what is waited for.
        owners: who is held up meanwhile; nobody is not an error.

    Raises:
        DeadlockError: it would wait for itself, through whomever.
    """
    if not owners:
        yield
        return
    wait = PoolWait(awaited, owners)
    with monitor:
        for owner in owners:
            blocked.setdefault(owner, []).append(wait)
    try:
        check(wait, owners)
        yield
    finally:
        with monitor:
            for owner in owners:
                _leave(owner, wait)


def check(wait: PoolWait, owners: Sequence[Any]) -> None:
    """Look for a circle.

    Raises:
        DeadlockError: there is one.
    """
    with monitor:
        way = find_circle(owners, [(blocker, wait.thing) for blocker in wait.blockers()])
        if way is None:
            return
        circle = show_circle(owners, way)
    raise DeadlockError(
        f"{name_of(owners[0])} waits for {wait.thing} and would wait for ever, because each waits for the next: "
        f"{circle}. {wait.way_out}"
    )


def _leave(owner: Any, wait: PoolWait) -> None:
    waits = blocked.get(owner, [])
    if wait in waits:
        waits.remove(wait)
    if not waits:
        blocked.pop(owner, None)
