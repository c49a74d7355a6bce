"""The time limit of a store's step: the caller sets it, and the store reads it.

The limit is in a context variable, so that no method of a store needs an argument for it, and a store may ignore it.
The caller sets it around a step:

    with step_timeout(seconds):
        await store.size()

A store that waits for something outside this process calls `time_for_step()` and raises `StoreUnavailable` when that
time is over. The step may take effect nevertheless.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

LEAST: Final = 0.1
"""The minimum number of seconds for a step, so that a caller without patience still tries once."""

STEP_TIMEOUT: Final[ContextVar[float | None]] = ContextVar("cuelight step timeout", default=None)
"""Seconds from the start of the step. Set it directly only if a `with` block is too slow."""


@contextmanager
def step_timeout(seconds: float | None) -> Generator[None]:
    """Limit each step in this block to this number of seconds; None for the store's own limit."""
    token = STEP_TIMEOUT.set(seconds)
    try:
        yield
    finally:
        STEP_TIMEOUT.reset(token)


def time_for_step() -> float | None:
    """The number of seconds that a step that starts now may take; None if the caller has set no limit."""
    seconds = STEP_TIMEOUT.get()
    return None if seconds is None else max(seconds, LEAST)
