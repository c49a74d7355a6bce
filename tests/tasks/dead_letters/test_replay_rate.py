"""A replay at a rate, on a virtual clock."""

from __future__ import annotations

import anyio
import pytest

from cuelight.tasks import DeadLetterEntry, DeadLetterQueue
from cuelight.testing import VIRTUAL_BACKENDS, virtual_backend
from helpers import Backend


@pytest.fixture(params=VIRTUAL_BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    return virtual_backend(request.param)


async def test_a_replay_at_a_rate_gives_so_many_letters_per_second() -> None:
    dlq = DeadLetterQueue()
    for number in range(6):
        await dlq.add(number)
    begun, times = anyio.current_time(), list[float]()

    async def take(letter: DeadLetterEntry) -> None:
        times.append(anyio.current_time() - begun)
        await anyio.sleep(0.1)  # the rate is that of the starts
        if letter.payload == 2:
            raise LookupError

    report = await dlq.replay_all(to=take, rate=2)
    assert (report.replayed, report.failed) == (5, 1)
    assert times == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0, 2.5])


async def test_a_replay_at_a_rate_that_is_cancelled_leaves_the_rest() -> None:
    taken: list[DeadLetterEntry] = []
    dlq = DeadLetterQueue(to=taken.append)
    for number in range(6):
        await dlq.add(number)
    with anyio.move_on_after(1.2):
        await dlq.replay_all(rate=2)
    assert [letter.payload async for letter in dlq] == [3, 4, 5]
