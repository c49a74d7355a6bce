"""A worker process of the tests: claims from a SQLite file, and writes down what it was given and what was accepted.

Run as `python store_process.py FILE NAME LOG`. Each line of the log is written before the next step is made, so that
it can be trusted when the process is killed.
"""

from __future__ import annotations

import os
import sys

import anyio

from cuelight.tasks import Claim, Finish, SQLiteStore


async def main(path: str, name: str, log: str) -> None:
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    store = SQLiteStore(path, synchronous="OFF")
    await store.open()
    finishes: list[Finish] = []
    turn = 0
    while True:
        since = store.version()
        turn += 1
        exchange = await store.exchange(finishes, Claim(name, f"{name}-{turn}", 7, 0.5))
        lines = [
            f"done {finish.id} {finish.epoch}\n"
            for finish, state in zip(finishes, exchange.accepted, strict=True)
            if state == "completed"
        ]
        lines += [f"given {lease.record.id} {lease.epoch}\n" for lease in exchange.leases]
        os.write(out, "".join(lines).encode())
        finishes = [Finish(lease.record.id, lease.epoch) for lease in exchange.leases]
        if not finishes:
            await store.changed(since, max(0.01, min(1.0, exchange.wake_at - store.now())))


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2], sys.argv[3])
