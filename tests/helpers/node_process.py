"""A node in a process of its own, with a `counter` and a `player`, and a `watcher` of the actor called `mine`.

Run as `python -m helpers.node_process URL CLUSTER LEASE BACKEND TRANSPORT`. It says `ready`, and ends when its
input does.
"""

from __future__ import annotations

import sys

import anyio

from cuelight import ActorSystem, Ref
from helpers.nodes import Plain, Player, Watcher, node


async def main(url: str, cluster: str, lease: float, transport: str) -> None:
    async with ActorSystem("other", node=node(cluster, url=url, lease=lease, transport=transport)) as system:
        await system.expose(await system.spawn(Plain), "counter")
        await system.expose(await system.spawn(Player), "player")
        mine: Ref[object] = await system.resolve("mine", timeout=10)
        await system.expose(await system.spawn(Watcher, mine), "watcher")
        print("ready", flush=True)
        await anyio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[5], backend=sys.argv[4])
