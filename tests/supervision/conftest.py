"""Supervision is tested on a virtual clock: restarts wait, and nobody else does."""

import logging
from collections.abc import Iterator

import pytest

from cuelight.testing import VIRTUAL_BACKENDS, virtual_backend
from helpers import Backend


@pytest.fixture(params=VIRTUAL_BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    return virtual_backend(request.param)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Crash reports are wanted here; they are kept out of the output, and can be looked at with `caplog`."""
    with caplog.at_level(logging.ERROR):
        yield
