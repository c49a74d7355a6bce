"""Two exchanges under way, for stores where each is a round trip."""

from collections import Counter
from collections.abc import Sequence

import anyio
import pytest

from cuelight.errors import StoreUnavailable
from cuelight.mailbox import loop_time
from cuelight.tasks import Claim, Exchange, Finish, MemoryStore, Task
from cuelight.tasks._worker._fetcher import BATCH, MAX_LOOKAHEAD
from helpers.workers import EPOCH, new_worker, open_queue

SLOTS = 3 * BATCH
TASKS = 20 * SLOTS


class Distant(MemoryStore):
    """A store that answers after some milliseconds, whose k-th exchanges fail before or after they take effect."""

    overlap = 2

    def __init__(self, fails_every: int = 0) -> None:
        super().__init__(clock=lambda: EPOCH + loop_time())
        self._fails_every = fails_every
        self._calls = self._under_way = 0
        self.most_under_way = self.most_leased = self._leased = 0
        self.settled: Counter[str] = Counter()
        self.batches: dict[str, Sequence[Finish]] = {}
        self.claimed: Counter[str] = Counter()  # by nonce

    async def exchange(self, finishes: Sequence[Finish], claim: Claim | None = None) -> Exchange:
        if not finishes and claim is not None and not claim.most:  # of the queue, which sees to what time brings
            return await super().exchange(finishes, claim)
        self._calls += 1
        number = self._calls
        self._under_way += 1
        self.most_under_way = max(self.most_under_way, self._under_way)
        try:
            await anyio.sleep(0.002)
            fails = self._fails_every and number % self._fails_every == 0
            if fails and number % 2:
                raise StoreUnavailable("before, on purpose")
            answer = await super().exchange(finishes, claim)
            self._count(finishes, claim, answer)
            await anyio.sleep(0.002)
            if fails:
                raise StoreUnavailable("after, on purpose")
            return answer
        finally:
            self._under_way -= 1

    def _count(self, finishes: Sequence[Finish], claim: Claim | None, answer: Exchange) -> None:
        for finish, state in zip(finishes, answer.accepted, strict=True):
            assert state == "completed"
            assert self.batches.setdefault(finish.id, finishes) is finishes  # made again it is the same exchange
            if not self.settled[finish.id]:
                self._leased -= 1
            self.settled[finish.id] += 1
        if claim is not None:
            if not self.claimed[claim.nonce]:
                self._leased += len(answer.leases)
            self.claimed[claim.nonce] += 1
        self.most_leased = max(self.most_leased, self._leased)


async def _run_all(store: Distant) -> None:
    done: Counter[int] = Counter()

    async def work(payload: int) -> None:
        done[payload] += 1

    async with open_queue(store) as queue:
        await queue.enqueue_many([Task(task_type="work", payload=number) for number in range(TASKS)])
        async with new_worker(queue, {"work": work}, concurrency=SLOTS):
            await queue.drain()
        assert set(done.values()) == {1}
        assert len(done) == TASKS
        size = await queue.size()
        assert (size.completed, size.in_flight, size.pending) == (TASKS, 0, 0)


async def test_a_worker_has_two_exchanges_under_way_where_each_is_a_round_trip() -> None:
    store = Distant()
    await _run_all(store)
    assert store.most_under_way == 2
    assert len(store.settled) == TASKS


async def test_no_more_is_claimed_by_two_exchanges_than_there_is_room_for() -> None:
    store = Distant()
    await _run_all(store)
    assert store.most_leased <= SLOTS + MAX_LOOKAHEAD


@pytest.mark.parametrize("every", [2, 3, 5, 7])
async def test_exchanges_that_fail_while_another_is_under_way_are_made_again_alone(every: int) -> None:
    store = Distant(fails_every=every)
    await _run_all(store)
    assert len(store.settled) == TASKS
    assert len(store.claimed) > 1


async def test_a_worker_that_is_cancelled_with_two_exchanges_under_way_gives_everything_back() -> None:
    store = Distant()
    async with open_queue(store) as queue:
        begun = anyio.Event()

        async def work(_payload: int) -> None:
            if store.most_under_way == 2:
                begun.set()

        await queue.enqueue_many([Task(task_type="work", payload=number) for number in range(TASKS)])
        async with anyio.create_task_group() as group:
            group.start_soon(new_worker(queue, {"work": work}, concurrency=SLOTS).run)
            await begun.wait()
            group.cancel_scope.cancel()
        size = await queue.size()
        assert size.in_flight == 0
        assert size.completed + size.pending + size.scheduled == TASKS
