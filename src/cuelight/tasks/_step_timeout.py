"""How long a step of a store may take: the limit of the caller, handed down through the `Store` seam.

It travels in a context variable, so that no method of a store needs an argument for it, and a store that knows nothing
of it works as before. Whoever makes a step sets it just before:

    with step_timeout(seconds):
        await store.size()

A store that waits for something outside of this process asks for `time_for_step()` and raises `StoreUnavailable` when
that time is over. What was asked for may take effect all the same.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

__all__ = ["LEAST", "STEP_TIMEOUT", "step_timeout", "time_for_step"]

LEAST: Final = 0.1
"""Seconds that a step has in any case: a caller without patience asks once, and not never."""

STEP_TIMEOUT: Final[ContextVar[float | None]] = ContextVar("cuelight step timeout", default=None)
"""Seconds, counted from when the step begins. Set it by hand only where a `with` would cost too much."""


@contextmanager
def step_timeout(seconds: float | None) -> Generator[None]:
    """Give each step that is made in this block so many seconds; None for as long as the store has patience."""
    token = STEP_TIMEOUT.set(seconds)
    try:
        yield
    finally:
        STEP_TIMEOUT.reset(token)


def time_for_step() -> float | None:
    """Seconds that the step which begins now may take; None if its caller has set no limit."""
    seconds = STEP_TIMEOUT.get()
    return None if seconds is None else max(seconds, LEAST)
