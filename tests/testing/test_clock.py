"""The virtual clock: a long wait is short, and nothing that is still on its way is overtaken."""

import asyncio
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest

from cuelight.testing import VIRTUAL_BACKENDS, VirtualClockLoop, real_time, virtual_backend
from helpers import Backend, run_on

DAY = 24 * 3600.0
HOUR = 3600.0


def _options(name: str, **more: Any) -> Backend:
    backend, options = virtual_backend("trio" if name == "trio" else "asyncio")
    return backend, options | more


@pytest.fixture(params=[*VIRTUAL_BACKENDS, "asyncio-debug"])
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    if request.param == "asyncio-debug":
        return _options("asyncio", debug=True)
    return _options(request.param)


@pytest.fixture(autouse=True)
def _quick() -> Iterator[None]:
    """Each test here takes virtual hours; in real time all of them are short."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < 10


def _pause() -> None:
    """Give the loop every chance to jump, from a worker thread."""
    threading.Event().wait(0.05)


async def test_a_day_passes_at_once() -> None:
    assert anyio.current_time() == 0
    await anyio.sleep(DAY)
    assert anyio.current_time() == DAY


async def test_each_test_has_a_fresh_clock() -> None:
    assert anyio.current_time() == 0
    await anyio.sleep(HOUR)


async def test_years_pass_exactly() -> None:
    for _ in range(30):
        await anyio.sleep(365 * DAY)
        await anyio.sleep(0.001)
    assert anyio.current_time() == pytest.approx(30 * 365 * DAY + 0.03)


async def test_a_timeout_fires_at_its_time() -> None:
    with pytest.raises(TimeoutError), anyio.fail_after(HOUR):
        await anyio.sleep_forever()
    assert anyio.current_time() == HOUR


async def test_timers_fire_in_order() -> None:
    fired: list[tuple[float, float]] = []

    async def wait(seconds: float) -> None:
        await anyio.sleep(seconds)
        fired.append((seconds, anyio.current_time()))

    async with anyio.create_task_group() as group:
        for seconds in (300.0, 10.0, DAY, 0.5, 200.0, 3.0):
            group.start_soon(wait, seconds)
    assert fired == [(s, s) for s in (0.5, 3.0, 10.0, 200.0, 300.0, DAY)]


async def test_time_stands_still_while_tasks_can_run() -> None:
    async def spin() -> None:
        for _ in range(1000):
            await anyio.lowlevel.checkpoint()

    with anyio.fail_after(0.001):
        await spin()
    assert anyio.current_time() == 0


async def test_waiting_for_all_tasks_to_block_comes_before_a_jump() -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep, HOUR)
        await anyio.wait_all_tasks_blocked()
        assert anyio.current_time() < 1
        group.cancel_scope.cancel()


async def test_a_worker_thread_is_not_overtaken() -> None:
    with anyio.fail_after(HOUR):
        await anyio.to_thread.run_sync(_pause)
    assert anyio.current_time() < 60
    await anyio.sleep(DAY)
    assert anyio.current_time() >= DAY


async def test_worker_threads_under_a_limiter_of_their_own_are_not_overtaken() -> None:
    limiter = anyio.CapacityLimiter(2)
    with anyio.fail_after(HOUR):
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(lambda: anyio.to_thread.run_sync(_pause, limiter=limiter))
    assert anyio.current_time() < 60


async def test_a_call_from_a_worker_thread_may_wait_in_virtual_time_at_real_pace() -> None:
    began = time.monotonic()

    def work() -> float:
        anyio.from_thread.run(anyio.sleep, 0.05)
        return anyio.from_thread.run_sync(anyio.current_time)

    assert await anyio.to_thread.run_sync(work) >= 0.05
    assert time.monotonic() - began >= 0.04


async def test_a_thread_that_hangs_is_abandoned_at_the_real_pace() -> None:
    release = threading.Event()
    try:
        with anyio.move_on_after(0.05) as scope:
            await anyio.to_thread.run_sync(release.wait, abandon_on_cancel=True)
        assert scope.cancelled_caught
    finally:
        release.set()


async def test_the_clock_jumps_again_when_a_pool_thread_is_idle() -> None:
    for _ in range(5):
        await anyio.to_thread.run_sync(int)
        await anyio.sleep(HOUR)
    assert anyio.current_time() >= 5 * HOUR


async def test_a_socket_that_is_waited_for_is_not_overtaken() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)

    def answer() -> None:
        _pause()
        theirs.sendall(b"x")

    with ours, theirs:
        thread = threading.Thread(target=answer)
        thread.start()
        with anyio.fail_after(HOUR):
            await anyio.wait_readable(ours)
        thread.join()
    assert anyio.current_time() < 60
    await anyio.sleep(DAY)
    assert anyio.current_time() >= DAY


@pytest.mark.parametrize("stdout", [subprocess.PIPE, None], ids=["pipe", "no-pipe"])
@pytest.mark.parametrize("command", ["sleep 0.05", ["sleep", "0.05"]], ids=["shell", "exec"])
async def test_a_child_process_is_not_overtaken(command: str | list[str], stdout: int | None) -> None:
    with anyio.fail_after(HOUR):
        await anyio.run_process(command, stdout=stdout, stderr=None)
    assert anyio.current_time() < 60
    await anyio.sleep(DAY)
    assert anyio.current_time() >= DAY


async def test_real_time_holds_the_clock_for_a_thread_of_the_tests_own() -> None:
    event = anyio.Event()
    with anyio.fail_after(HOUR), real_time():
        token = anyio.lowlevel.current_token()

        def call() -> None:
            _pause()
            anyio.from_thread.run_sync(event.set, token=token)

        thread = threading.Thread(target=call)
        thread.start()
        await event.wait()
    await anyio.to_thread.run_sync(thread.join)
    assert anyio.current_time() < 60
    await anyio.sleep(HOUR)
    assert anyio.current_time() >= HOUR


def test_real_time_does_nothing_on_a_real_clock(backend: Backend) -> None:
    async def main() -> None:
        with real_time():
            await anyio.lowlevel.checkpoint()

    run_on(backend, main)


def test_real_time_needs_an_event_loop() -> None:
    with pytest.raises(RuntimeError), real_time():
        raise AssertionError


@pytest.mark.parametrize("debug", [False, True])
def test_an_executor_call_is_not_overtaken(debug: bool) -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(HOUR):
            await asyncio.to_thread(_pause)
            with ThreadPoolExecutor(1) as pool:
                await loop.run_in_executor(pool, _pause)
        held = loop.time()
        await asyncio.sleep(DAY)
        return held

    with asyncio.Runner(debug=debug, loop_factory=VirtualClockLoop) as runner:
        assert runner.run(main()) < 60


def test_the_shutdown_of_the_executor_waits_for_its_threads() -> None:
    done = threading.Event()
    started: list[asyncio.Future[None]] = []

    async def main() -> None:
        def work() -> None:
            _pause()
            done.set()

        started.append(asyncio.get_running_loop().run_in_executor(None, work))

    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        runner.run(main())
    assert done.is_set()


@pytest.mark.parametrize("name", VIRTUAL_BACKENDS)
def test_a_back_end_may_be_used_for_more_than_one_run(name: Literal["asyncio", "trio"]) -> None:
    virtual = virtual_backend(name)
    for _ in range(2):
        run_on(virtual, anyio.sleep, DAY)


def test_an_unknown_back_end_is_refused() -> None:
    with pytest.raises(ValueError, match="curio"):
        virtual_backend("curio")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
