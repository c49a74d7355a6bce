"""Is a history of concurrent operations one that some order of them could have had, one after the other?

The search of Wing and Gong, with Lowe's memory of what was tried: take, of the operations that began before any other
had ended, one that the sequential model allows, and go on; go back where that leads nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

State = Hashable
Step = Callable[[Any, "Operation"], Iterable[Any]]
"""The states that an operation may lead to from a state; none if it could not have happened there."""


@dataclass(frozen=True)
class Operation:
    """What somebody did, from when to when.

    Attributes:
        began: when it was called.
        ended: when it returned; `math.inf` if it never did, so that it may have happened or not.
        who: the one who did it.
        what: the operation.
        result: what came of it.
    """

    began: float
    ended: float
    who: Hashable
    what: str
    result: Any = None


def is_linearizable(history: list[Operation], start: State, step: Step, most: int = 2_000_000) -> bool:
    """Look for an order. Raises if it had to look at more than `most` states."""
    operations = sorted(history, key=lambda operation: operation.began)
    everything = (1 << len(operations)) - 1
    pending = sum(1 << index for index, one in enumerate(operations) if one.ended == math.inf)
    seen: set[tuple[int, State]] = set()
    stack: list[tuple[int, State]] = [(0, start)]
    while stack:
        done, state = stack.pop()
        if done | pending == everything:
            return True
        if (done, state) in seen:
            continue
        seen.add((done, state))
        if len(seen) > most:
            raise RuntimeError(f"{most} states and no end")
        for index in _next(operations, done):
            stack += [(done | 1 << index, after) for after in step(state, operations[index])]
    return False


def _next(operations: list[Operation], done: int) -> Iterable[int]:
    """Those that began before any other that is not done had ended."""
    first = (~done & (done + 1)).bit_length() - 1
    limit = math.inf
    candidates: list[int] = []
    for index in range(first, len(operations)):
        one = operations[index]
        if one.began > limit:
            break
        if not done >> index & 1:
            limit = min(limit, one.ended)
            candidates.append(index)
    return [index for index in candidates if operations[index].began <= limit]


def room_step(capacity: int) -> Step:
    """The model of a core: who holds how much, as a frozenset of pairs. A lock has room for 1."""

    def step(state: frozenset[tuple[Hashable, int]], operation: Operation) -> Iterable[Any]:
        kind, _, amount = operation.what.partition(" ")
        weight = int(amount or 1)
        used = sum(held for _, held in state)
        if kind == "acquire":
            if used + weight <= capacity:
                yield state | {(operation.who, weight)}
        elif kind == "try" and operation.result is False:
            yield state  # refused: others stood in line, perhaps, which the model does not see
        elif kind == "release" and (operation.who, weight) in state:
            yield state - {(operation.who, weight)}
        elif kind == "try" and used + weight <= capacity:
            yield state | {(operation.who, weight)}

    return step
