"""Crashes are wanted here."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Crash reports are kept out of the output, and can be looked at with `caplog`."""
    with caplog.at_level(logging.ERROR):
        yield
