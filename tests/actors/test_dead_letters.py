"""What nobody handled can be seen; statistics; threads; and memory that comes back."""

import gc
import logging
import threading
import tracemalloc
from collections import deque
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest

from cuelight import ActorSystem, Channel, ChannelClosed, child
from cuelight.testing import real_time, wait_until_idle
from helpers import Backend, run_on
from helpers.players import Busy, Get, Hold, Plain, Put, Wait, outcome, settle


async def test_dead_letters_keep_the_latest_and_count_all() -> None:
    async with ActorSystem(keep_dead_letters=3) as system:
        ref = await system.spawn(child(Plain).with_options(name="gone"))
        await ref.stop()
        for number in range(5):
            ref.tell_nowait(Put(number))
        letters = system.dead_letters
        assert [letter.message.item for letter in letters] == [2, 3, 4]
        assert len(letters) == 3
        assert letters.total == 5
        assert letters.counts == {"stopped": 5}
        assert {(letter.actor, letter.reason, letter.error) for letter in letters} == {
            ("/system/gone", "stopped", None)
        }
        times = [letter.time for letter in letters]
        assert times == sorted(times)
        assert times[-1] <= anyio.current_time()


async def test_a_subscription_gets_dead_letters_and_drops_the_oldest(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "cuelight.dead_letters"):
        async with ActorSystem() as system:
            ref = await system.spawn(Plain)
            await ref.stop()
            every, last, closed = [system.dead_letters.subscribe(*args) for args in ((), (1,), ())]
            closed.close()
            for number in range(3):
                await ref.tell(Put(number))
            assert [every.receive_nowait().message.item for _ in range(3)] == [0, 1, 2]
            assert last.receive_nowait().message.item == 2
            with pytest.raises(ChannelClosed):
                closed.receive_nowait()
        with pytest.raises(ChannelClosed):
            every.receive_nowait()
    assert "dead letter (stopped)" in caplog.text


async def test_an_overflow_policy_that_raises_costs_what_could_not_be_told(caplog: pytest.LogCaptureFixture) -> None:
    def raises(channel: Any, item: Any) -> Any:
        raise ZeroDivisionError

    async with ActorSystem() as system:
        ref = await system.spawn(child(Busy).with_options(capacity=1, overflow=raises))
        await ref.tell(Hold())
        await settle()
        ref.tell_nowait(Put("fits"))
        with pytest.raises(ZeroDivisionError):
            ref.tell_nowait(Put("told"))
        ref.tell_threadsafe(Put("not told"))
        await settle()
        assert [(each.message, each.reason) for each in system.dead_letters] == [(Put("not told"), "policy_failed")]
        ref.interrupt()
        await settle()
        assert await ref.ask(Get()) == ["cut", "fits"]
    assert "overflow policy" in caplog.text


async def test_a_subscriber_of_dead_letters_in_another_loop_costs_no_other(caplog: pytest.LogCaptureFixture) -> None:
    foreign: list[tuple[anyio.CancelScope, anyio.lowlevel.EventLoopToken]] = []
    waiting = anyio.Event()
    token = anyio.lowlevel.current_token()

    async def receive(channel: Channel[Any]) -> None:
        with anyio.CancelScope() as scope:
            foreign.append((scope, anyio.lowlevel.current_token()))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(channel.receive)
                await anyio.wait_all_tasks_blocked()
                anyio.from_thread.run_sync(waiting.set, token=token)

    async with anyio.create_task_group() as tasks:
        async with ActorSystem() as system:
            ref = await system.spawn(Plain)
            await ref.stop()
            bad, good = system.dead_letters.subscribe(), system.dead_letters.subscribe()
            tasks.start_soon(anyio.to_thread.run_sync, lambda: anyio.run(receive, bad))
            await waiting.wait()
            await ref.tell(Put(1))
            assert good.receive_nowait().message == Put(1)
        with pytest.raises(ChannelClosed):
            good.receive_nowait()
        scope, other = foreign[0]
        anyio.from_thread.run_sync(scope.cancel, token=other)
    assert "a subscriber of dead letters was not told" in caplog.text


async def test_statistics_say_what_an_actor_does() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(child(Busy).with_options(capacity=1))
        assert ref.statistics().state == "running"
        await ref.tell(Hold())
        await settle()
        ref.tell_nowait(Put(1))
        reply = ref.ask(Get())
        shown = ref.statistics()
        assert (shown.queued, shown.waiting_senders, shown.running, shown.handled) == (1, 1, Hold(), 0)
        ref.interrupt()
        await reply
        await wait_until_idle(system)
        shown = ref.statistics()
        assert (shown.queued, shown.waiting_senders, shown.running, shown.handled) == (0, 0, None, 2)
        assert (shown.restarts, shown.children) == (0, 0)
        assert hash(ref) == hash(ref._cell)
        assert repr(ref._cell) == f"<cell {ref.path}>"
    assert ref.statistics().state == "ended"


async def test_threads_tell_with_tell_threadsafe() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(child(Plain).with_options(capacity=2000))
        dead = await system.spawn(Plain)
        await dead.stop()

        def work() -> None:
            for number in range(500):
                ref.tell_threadsafe(Put(number))
            dead.tell_threadsafe(Put("dead"))

        with real_time():
            async with anyio.create_task_group() as tasks:
                for _ in range(2):
                    tasks.start_soon(anyio.to_thread.run_sync, work)
        await settle()
        items = await ref.ask(Get())
        assert len(items) == 1000
        assert sorted(items) == sorted([*range(500)] * 2)
        assert system.dead_letters.counts == {"stopped": 2}


def test_tell_threadsafe_after_the_loop_has_ended_says_so_or_does_nothing(backend: Backend) -> None:
    kept: list[Any] = []

    async def main() -> None:
        async with ActorSystem() as system:
            kept.extend((await system.spawn(Plain), system))

    run_on(backend, main)
    kept[0].tell_threadsafe(Put(1))  # the system has ended in order

    async def abandoned() -> None:
        system = ActorSystem(slow_after=None)
        async with system:
            kept.append(await system.spawn(Plain))
            kept.append(system)

    run_on(backend, abandoned)
    kept[-1]._open = True  # as if it had not
    with pytest.raises(RuntimeError):
        kept[-2].tell_threadsafe(Put(1))


async def test_a_thread_that_tells_wakes_an_idle_loop() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Busy)
        await ref.ask(Get())
        reply = ref.ask(Wait("x"))
        await settle()
        with real_time():
            thread = threading.Thread(target=ref.tell_threadsafe, args=(Put("open"),))
            thread.start()
            await anyio.to_thread.run_sync(thread.join)
        await settle()
        assert ref.statistics().queued == 1  # it is handling the other
        reply.cancel()
        assert isinstance(await outcome(reply), Exception)


def _memory() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


async def _asks(system: ActorSystem, count: int) -> None:
    kept: Any = deque[Any](maxlen=10)
    busy, plain = await system.spawn(Busy, kept), await system.spawn(Plain)
    for number in range(count // 10):
        await busy.tell(Hold())
        replies: list[Any] = [busy.ask(Wait()) for _ in range(5)]
        for reply in replies[:3]:
            reply.cancel()
        busy.interrupt()
        replies += [plain.ask(Get(), timeout=0.5 + number % 7) for _ in range(4)]
        for reply in replies[3:5]:
            with anyio.move_on_after(0):
                await reply
        for reply in replies:
            reply.cancel()
        busy.interrupt()
    await wait_until_idle(system)


async def _spawns(system: ActorSystem, count: int) -> None:
    for _ in range(count // 2):
        plain, busy = await system.spawn(Plain), await system.spawn(Busy)
        await plain.tell(Put(1))
        await busy.tell(Put(1))
        await plain.stop()
        await busy.stop()


@pytest.mark.stress
@pytest.mark.timeout(1100)
@pytest.mark.parametrize(("work", "short", "long"), [(_asks, 20_000, 1_000_000), (_spawns, 5_000, 100_000)])
def test_memory_comes_back(work: Any, short: int, long: int, stress: bool) -> None:
    async def main() -> int:
        async with ActorSystem(slow_after=None, keep_dead_letters=10) as system:
            await work(system, 1000)
            tracemalloc.start()
            before = _memory()
            await work(system, long if stress else short)
            after = _memory()
            tracemalloc.stop()
        return after - before

    for name in ("asyncio", "trio"):
        assert run_on((name, {}), main) < 300_000
