"""One process of one queue: `python -m bench.queues PEER ROLE`, "work" or one of `ROLES`.

Its settings are in the environment, see `Settings`. A producer prints its result as one line of JSON.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
from typing import Any

from bench.queues._program import ROLES, produce


def main(peer: str, role: str) -> None:
    logging.basicConfig(level=logging.WARNING)
    program: Any = importlib.import_module(f"bench.queues.{peer}")
    if role == "work":
        program.work()
        return
    assert role in ROLES, f"{role!r} is no role: give one of work, {', '.join(ROLES)}"
    print(json.dumps(produce(program.producer(), role)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
