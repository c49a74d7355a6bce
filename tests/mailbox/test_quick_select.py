"""`select` polls channels in its own code; that comes to the same as polling any case."""

from __future__ import annotations

from itertools import repeat
from random import Random
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuelight.errors import ChannelClosed
from cuelight.mailbox import Case, Channel, _select, select, select_nowait
from helpers.players import settle

states = st.lists(
    st.tuples(
        st.integers(0, 2),  # capacity
        st.integers(0, 3),  # senders
        st.sampled_from(["open", "open", "closed", "none", "wrapped"]),
        st.booleans(),  # whether the first sender is cancelled, and has not left its place yet
    ),
    min_size=1,
    max_size=7,
)


class Wrapped:
    """A channel that is a case of another type."""

    def __init__(self, channel: Channel[int]) -> None:
        self._channel = channel

    def case_poll(self) -> Any:
        return self._channel.case_poll()

    def case_enroll(self, waiter: Any, /) -> None:
        self._channel.case_enroll(waiter)

    def case_withdraw(self, waiter: Any, /) -> None:
        self._channel.case_withdraw(waiter)

    def case_put_back(self, item: int, /) -> bool:
        return self._channel.case_put_back(item)


async def _send(channel: Channel[int], item: int, scope: anyio.CancelScope) -> None:
    with scope:
        try:
            await channel.send(item)
        except ChannelClosed:
            return


async def _cases(program: list[tuple[int, int, str, bool]], tasks: Any) -> list[Any]:
    cases: list[Any] = []
    cancelled: list[anyio.CancelScope] = []
    for capacity, senders, state, first_goes in program:
        channel: Channel[int] = Channel(capacity)
        for item in range(senders):
            scope = anyio.CancelScope()
            tasks.start_soon(_send, channel, item, scope)
            await settle()
            if first_goes and not item:
                cancelled.append(scope)
        if state == "closed":
            channel.close()
        cases.append(None if state == "none" else Wrapped(channel) if state == "wrapped" else channel)
    for scope in cancelled:
        scope.cancel()
    return cases


async def _take(quickly: bool, cases: list[Case[int] | None], seed: int, ready: int) -> list[Any]:
    """What one after another is taken. `select` would wait where nothing is ready: it is asked `ready` times."""
    taken: list[Any] = []
    rng = Random(seed)
    for _ in range(ready if quickly else 5):
        try:
            taken.append(await select(*cases, rng=rng) if quickly else select_nowait(*cases, rng=rng))
        except anyio.WouldBlock:
            break
        except (ChannelClosed, ValueError) as error:
            taken.append(type(error))
    return taken


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@given(program=states, seed=st.integers(0, 99))
def test_select_takes_what_select_nowait_would_take(
    backend: str, program: list[tuple[int, int, str, bool]], seed: int
) -> None:
    async def main() -> None:
        seen: list[Any] = []
        for quickly in (False, True):
            async with anyio.create_task_group() as tasks:
                cases = await _cases(program, tasks)
                seen.append(await _take(quickly, cases, seed, len(seen[0]) if seen else 0))
                tasks.cancel_scope.cancel()
        assert seen[0] == seen[1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_select, "_turns", repeat(False))  # else others may run in between
        anyio.run(main, backend=backend)
