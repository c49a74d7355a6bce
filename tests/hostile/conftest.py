"""Failures are wanted here, and what the interpreter itself would say of them is not."""

import logging
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In the gate each cell of the table runs on one of the two loops; `make stress` runs all on both."""
    if os.environ.get("CUELIGHT_STRESS") == "1":
        return
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        (kept if FOLDER not in item.path.parents or _runs_here(item) else left_out).append(item)
    if left_out:
        items[:] = kept
        config.hook.pytest_deselected(items=left_out)


def _runs_here(item: pytest.Item) -> bool:
    name = item.nodeid.rpartition("::")[2]
    on_trio = "trio" in name
    if not on_trio and "asyncio" not in name:
        return True
    cell = name.replace("trio", "").replace("asyncio", "")
    return zlib.crc32(cell.encode()) % 2 == on_trio


def _ignore(_: object) -> None:
    """Finalizers that raise are one of the cases."""


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("_thread.interrupt_main", lambda: None)  # a report that raises KeyboardInterrupt is one, too
    monkeypatch.setattr("sys.unraisablehook", _ignore)
    with caplog.at_level(logging.ERROR):
        yield
