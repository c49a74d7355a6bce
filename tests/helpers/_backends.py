"""The event loops that the tests run on."""

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar, TypeVarTuple, Unpack

import anyio

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

Backend = tuple[str, dict[str, Any]]

BACKENDS: Final[dict[str, Backend]] = {
    "asyncio": ("asyncio", {}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "asyncio-debug": ("asyncio", {"debug": True}),
    "trio": ("trio", {}),
}


def run_on(backend: Backend, function: Callable[[Unpack[_Ts]], Awaitable[_T]], *args: *_Ts) -> _T:
    """Run an async function on a back end and return its result.

    For property tests: hypothesis calls a plain function many times, and each call gets a loop of its own.

        @given(...)
        def test_law(backend: Backend, items: list[int]) -> None:
            run_on(backend, scenario, items)
    """
    name, options = backend
    return anyio.run(function, *args, backend=name, backend_options=options)
