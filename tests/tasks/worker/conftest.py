"""Workers are tested in virtual time: leases run out and retries wait, and nobody else does."""

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
    """Failed attempts are wanted here; their reports are kept out of the output, and can be looked at with `caplog`."""
    with caplog.at_level(logging.WARNING):
        yield
