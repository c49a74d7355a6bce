"""The rules of limits, without a store: when a task may start, and what starting it takes.

A rate is kept by GCRA: starting a task moves the theoretical arrival time `tat` ahead by its cost, and it may start
when `tat` is at most the burst ahead of now. Two numbers say all, and no time window has an edge.

It is the rule of `coordination.gcra`, and a test holds the two together. It is written again because a task with
several limits asks all of them before it takes any, and because a store keeps seconds and costs that need not be whole.

An override replaces everything of a task's own limit but its cost.
"""

from __future__ import annotations

from math import inf

from cuelight.tasks._rows import Gate
from cuelight.tasks._task import Limit

__all__ = ["forget_at", "opens", "take"]


def opens(gate: Gate, own: Limit) -> float:
    """When a task with this limit may start, in seconds since the epoch.

    Whatever is not after now means at once, `math.inf` when another task has ended. A task that costs more than the
    burst (of an override; its own limit cannot be so) starts when all before it is paid off.
    """
    limit = gate.override or own
    if limit.max_concurrent is not None and gate.running >= limit.max_concurrent:
        return inf
    if limit.rate is None:
        return gate.closed
    burst = limit.rate if limit.burst is None else limit.burst
    return max(gate.closed, gate.tat - max(0.0, burst - own.cost) * limit.per / limit.rate)


def take(gate: Gate, own: Limit, now: float) -> None:
    """Start a task: take a place, and pay its cost."""
    gate.running += 1
    limit = gate.override or own
    if limit.rate is not None:
        gate.tat = max(gate.tat, now) + own.cost * limit.per / limit.rate


def forget_at(gate: Gate) -> float | None:
    """When a gate at which no lane waits says nothing any more that a new one would not; None while it is in use."""
    if gate.running or gate.override is not None:
        return None
    return max(gate.tat, gate.closed)
