"""Bars, and what is said when they cannot be shown."""

from __future__ import annotations

import io
import sys
from typing import Any, ClassVar

import anyio
import pytest
import tqdm

from cuelight.pools import AsyncWorkerPool
from cuelight.pools._results import Reporter


async def nothing(_: int) -> None:
    await anyio.lowlevel.checkpoint()


class Bar:
    """Stands in for the bar of tqdm."""

    made: ClassVar[list[Bar]] = []

    def __init__(self, *, total: int | None, desc: str) -> None:
        self.total, self.desc, self.done, self.closed = total, desc, 0, False
        Bar.made.append(self)

    def update(self) -> None:
        self.done += 1

    def close(self) -> None:
        self.closed = True


async def test_a_bar_is_shown_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    Bar.made.clear()
    monkeypatch.setattr(tqdm, "tqdm", Bar)
    async with AsyncWorkerPool() as pool:
        await pool.map(nothing, range(5), progress=True)
        async for _ in pool.map(nothing, iter(range(5)), progress=True):
            break
        await pool.map(nothing, range(5), progress=False)
    whole, left = Bar.made
    assert (whole.total, whole.desc, whole.done, whole.closed) == (5, "nothing", 5, True)
    assert (left.total, left.closed) == (None, True)


def test_the_bar_is_that_of_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    reporter = Reporter(True, 2, "work")
    reporter.advance()
    reporter.advance()
    reporter.close()
    assert "work: 100%" in screen.getvalue()


async def test_a_missing_extra_is_named_and_nothing_was_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    async with AsyncWorkerPool() as pool:
        with pytest.raises(ModuleNotFoundError, match=r"install cuelight\[progress\]"):
            await pool.map(nothing, range(5), progress=True)
        assert pool.stats().submitted == 0


async def test_what_is_no_callback_is_refused() -> None:
    wrong: Any = 3
    async with AsyncWorkerPool() as pool:
        with pytest.raises(TypeError, match="progress=3"):
            await pool.map(nothing, range(5), progress=wrong)
