"""Failures are wanted here, and what the interpreter itself would say of them is not."""

import logging
from collections.abc import Iterator

import pytest


def _ignore(_: object) -> None:
    """Finalizers that raise are one of the cases."""


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("_thread.interrupt_main", lambda: None)  # a report that raises KeyboardInterrupt is one, too
    monkeypatch.setattr("sys.unraisablehook", _ignore)
    with caplog.at_level(logging.ERROR):
        yield
