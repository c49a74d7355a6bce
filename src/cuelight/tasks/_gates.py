"""The rules of limits: when a task may start, and how a start changes a limit. Independent of the store.

A rate is enforced with GCRA: starting a task moves the theoretical arrival time `tat` ahead by the task's cost, and a
task may start if `tat` is then at most the burst ahead of now. The state is one number, so there are no time windows
with edges.

This is the algorithm of `coordination.gcra`, and a test compares the two. It is implemented again because a task with
several limits must pass all of them before it uses any, and because stores use seconds and costs that need not be
integers.

An override replaces the whole limit of a task except for its cost.
"""

from __future__ import annotations

from math import inf

from cuelight.tasks._rows import Gate
from cuelight.tasks._task import Limit


def opens(gate: Gate, own: Limit) -> float:
    """The time at which a task with this limit may start, in seconds since the epoch.

    A time that is not after now means at once; `math.inf` means when another task has ended. If a task costs more than
    the burst, it may start when all earlier costs are paid off. That only happens with an override: a task's own limit
    cannot be like that.
    """
    limit = gate.override or own
    if limit.max_concurrent is not None and gate.running >= limit.max_concurrent:
        return inf
    if limit.rate is None:
        return gate.closed
    burst = limit.rate if limit.burst is None else limit.burst
    return max(gate.closed, gate.tat - max(0.0, burst - own.cost) * limit.per / limit.rate)


def take(gate: Gate, own: Limit, now: float) -> None:
    """Start a task: count it as running and charge its cost."""
    gate.running += 1
    limit = gate.override or own
    if limit.rate is not None:
        gate.tat = max(gate.tat, now) + own.cost * limit.per / limit.rate


def forget_at(gate: Gate) -> float | None:
    """The time from which a gate without waiting lanes equals a new one, or None while it is in use."""
    if gate.running or gate.override is not None:
        return None
    return max(gate.tat, gate.closed)
