"""Agents that share a budget and a file: one limiter and the same locks for threads, asyncio and trio at once.

Half of the agents run in this event loop. The other half run in a loop of the other kind, in a second thread. A plain
thread writes to the same file. The example needs the extra `trio`.

Run it with `python examples/09_coordination.py`, or with `--backend trio`.
"""

import logging
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from cuelight import (
    Actor,
    ActorSystem,
    DeadlockError,
    LocalLock,
    LockManager,
    RateLimitConfig,
    RateLimiter,
    Request,
    on,
)

DAY = 86400
budget = RateLimiter(tokens=RateLimitConfig(1000, DAY), requests=RateLimitConfig(20, DAY), concurrency=3)
files = LockManager()


class TooManyRequests(Exception):
    """The answer 429 of a service."""

    def __init__(self, headers: dict[str, str]) -> None:
        super().__init__("429")
        self.headers = headers


class Service:
    """A model that charges by the token. It rejects the third request, and all requests that follow too soon."""

    def __init__(self) -> None:
        self.lock = LocalLock("service")
        self.asked = self.refused = self.at_work = self.most = 0
        self.closed_until = 0.0

    async def answer(self, question: str) -> tuple[str, int]:
        """Return the answer, and its cost in tokens."""
        with self.lock:  # a blocking lock is fine in a task for a moment without an await
            self.asked += 1
            if self.asked == 3:
                self.closed_until = time.monotonic() + 0.2
            if time.monotonic() < self.closed_until:
                self.refused += 1
                raise TooManyRequests({"Retry-After": "0.2"})
            self.at_work += 1
            self.most = max(self.most, self.at_work)
        await anyio.sleep(0.02)
        with self.lock:
            self.at_work -= 1
        return f"all about {question}", 40


service = Service()


class Research(Request[int]):
    topic: str
    notes: Path


class Agent(Actor[Research]):
    """Asks the service within the budget, and appends the answer to the notes."""

    @on(Research)
    async def research(self, message: Research) -> int:
        answer, cost = await self.ask_the_service(message.topic)
        async with files.acquire(message.notes.name):  # held by the actor: if it crashes, the lock is released
            text = message.notes.read_text(encoding="utf-8")
            await anyio.sleep(0.001)  # without the lock, others could read the same text now
            message.notes.write_text(f"{text}{answer}\n", encoding="utf-8")
        return cost

    async def ask_the_service(self, question: str) -> tuple[str, int]:
        while True:
            try:
                async with budget.request(tokens=100, refund_on_failure=True) as request:
                    answer, cost = await service.answer(question)
                    request.settle(tokens=cost)  # 100 was an estimate
                    return answer, cost
            except TooManyRequests as refusal:
                budget.observe(refusal.headers)  # all requests wait, in both loops


async def crew(topics: list[str], notes: Path) -> None:
    """Run one agent for each topic, all at once."""

    async def research(topic: str) -> None:
        agent = await system.spawn(Agent)
        await agent.ask(Research(topic, notes), timeout=30)

    async with ActorSystem() as system, anyio.create_task_group() as tasks:
        for topic in topics:
            tasks.start_soon(research, topic)


def librarian(notes: Path) -> None:
    """Use the same lock in a plain thread."""
    for number in range(1, 6):
        with files.acquire(notes.name, timeout=30):
            text = notes.read_text(encoding="utf-8")
            notes.write_text(f"{text}page {number}\n", encoding="utf-8")


async def sharing(notes: Path, other: str) -> None:
    def others() -> None:
        anyio.run(crew, ["wool", "salt", "tin", "amber"], notes, backend=other)

    print("Eight agents in two event loops and a thread share a budget and a file:")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.to_thread.run_sync, others)
        tasks.start_soon(anyio.to_thread.run_sync, librarian, notes)
        tasks.start_soon(crew, ["bees", "tides", "rust", "moss"], notes)
    lines = await anyio.Path(notes).read_text(encoding="utf-8")
    topics = sorted(line.removeprefix("all about ") for line in lines.splitlines() if line.startswith("all"))
    pages = lines.count("page")
    print(f"    noted: {', '.join(topics)}; and {pages} pages of the thread")
    print(f"    the service refused some: {service.refused > 0}; at most {service.most} at a time")
    print(f"    left of the budget: {budget.remaining()}")
    try:
        async with budget.request(tokens=900, timeout=60):
            pass
    except TimeoutError:  # at once
        print(f"    900 tokens more: not within a minute, but in {budget.retry_after(tokens=900) / 3600:.0f} hours")


each_has_one = threading.Barrier(3, timeout=30)


async def move(source: str, target: str, circles: list[str]) -> None:
    """Acquire one file and then the other, while others do the same in another order."""
    try:
        async with files.acquire(source):
            await anyio.to_thread.run_sync(each_has_one.wait)
            async with files.acquire(target):
                pass
    except DeadlockError as error:
        circles.append(str(error))


async def move_well(source: str, target: str, circles: list[str]) -> None:  # noqa: ARG001 - it is called as `move` is
    """Acquire both files together."""
    async with files.acquire_all([source, target], timeout=30):
        await anyio.sleep(0.001)


def elsewhere(way: Callable[[str, str, list[str]], Coroutine[Any, Any, None]], circles: list[str]) -> None:
    """Run in another event loop."""
    anyio.run(way, "c.md", "a.md", circles)


async def in_a_circle() -> None:
    print("Two tasks and a third in another loop need two of three files each:")
    for way in (move, move_well):
        circles: list[str] = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(way, "a.md", "b.md", circles)
            tasks.start_soon(way, "b.md", "c.md", circles)
            tasks.start_soon(anyio.to_thread.run_sync, elsewhere, way, circles)
        for circle in circles:
            through = ", ".join(name for name in ("a.md", "b.md", "c.md") if name in circle)
            print(f"    one after the other: one of them closed a circle through {through}, and gave up")
        if not circles:
            print("    both together: nobody had to give up")


async def main() -> None:
    logging.getLogger("cuelight").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder, "notes.md")
        await anyio.Path(notes).touch()
        await sharing(notes, other="asyncio" if "trio" in sys.argv else "trio")
    await in_a_circle()


if __name__ == "__main__":
    anyio.run(main, backend="trio" if "trio" in sys.argv else "asyncio")
