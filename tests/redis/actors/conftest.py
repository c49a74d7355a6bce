"""Contracts of messages between nodes hold however they travel: over direct connections, and through the server."""

from __future__ import annotations

import inspect
import os
import zlib

import pytest

from helpers.nodes import defaults

TRANSPORTS = ("unix", "redis")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test with nodes that connect directly, and with nodes that do not; in the gate on one of both."""
    if not inspect.iscoroutinefunction(metafunc.function):
        return
    marker = metafunc.definition.get_closest_marker("transport")
    chosen = TRANSPORTS if marker is None else marker.args
    if os.environ.get("CUELIGHT_GATE") == "1" and len(chosen) > 1:
        chosen = (chosen[zlib.crc32(metafunc.function.__name__.encode()) % len(chosen)],)
    metafunc.parametrize("transport", chosen, indirect=True)


@pytest.fixture(autouse=True)
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The transport of nodes of this test that are not given another one."""
    chosen: str = getattr(request, "param", "unix")
    monkeypatch.setitem(defaults, "transport", chosen)
    return chosen
