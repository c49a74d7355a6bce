"""One process of one queue: `python -m bench.queues PEER work|enqueue|enqueue_many|enqueue_slow|trickle`.

What it shall do is in the environment, `Settings`. A producer says how it went as one line of JSON.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
from typing import Any

from bench.queues._program import FATES, produce


def main(peer: str, role: str) -> None:
    logging.basicConfig(level=logging.WARNING)
    program: Any = importlib.import_module(f"bench.queues.{peer}")
    if role == "work":
        program.work()
        return
    assert role in FATES, f"{role!r} is no role: give one of work, {', '.join(FATES)}"
    print(json.dumps(produce(program.producer(), role)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
