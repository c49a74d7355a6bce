"""The measured queues, their settings and their environments."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Peer:
    """A queue, or one way to use it.

    Attributes:
        label: its name in tables.
        program: the module beside this one.
        concurrency: the number of tasks that a worker runs at once.
        variant: the variant of the library.
        environment: a folder below build/; empty for the environment of this process.
        threads: whether it blocks the sending thread.
        many: whether it can send a batch in one call.
        trio: whether it runs on trio.
    """

    label: str
    program: str
    concurrency: int
    variant: str = ""
    environment: str = "bench-queues"
    threads: bool = False
    many: bool = False
    trio: bool = False

    @property
    def python(self) -> str:
        """The interpreter of its environment.

        Raises:
            ModuleNotFoundError: the environment does not exist.
        """
        if not self.environment:
            return sys.executable
        python = ROOT / "build" / self.environment / "bin" / "python"
        if not python.exists():
            raise ModuleNotFoundError(
                f"there is no {python}: `make build/{self.environment}/.installed`", name=self.program
            )
        return str(python)


OURS = Peer("cuelight", "cuelight", 100, environment="", many=True, trio=True)

FAST = (
    OURS,
    Peer("dramatiq 100 threads", "dramatiq", 100, threads=True),
    Peer("dramatiq 8 threads", "dramatiq", 8, threads=True),
    Peer("taskiq stream", "taskiq", 100),
    Peer("taskiq list", "taskiq", 100, "list"),
    Peer("huey 100 threads", "huey", 100, threads=True),
    Peer("huey 8 threads", "huey", 8, threads=True),
    Peer("SAQ", "saq", 100),
    Peer("streaq", "streaq", 100, many=True, trio=True),
    Peer("docket", "docket", 100, many=True),
    Peer("BullMQ", "bullmq", 100, many=True),
    Peer("Celery 100 threads", "celery", 100, "threads", threads=True),
    Peer("arq", "arq", 100, environment="bench-queues-arq"),
    Peer("RQ simple", "rq", 1, "simple", threads=True, many=True),
)
"""The peers for throughput: each with the settings that its documents recommend for it, the async ones as ours."""

ENQUEUING = tuple(peer for peer in FAST if peer.label not in {"dramatiq 8 threads", "huey 8 threads"})
"""The peers for sending. A producer uses no worker threads, so each library appears only once."""

SAFE = (
    replace(OURS, concurrency=10),
    Peer("dramatiq", "dramatiq", 10),
    Peer("taskiq stream", "taskiq", 10),
    Peer("taskiq list", "taskiq", 10, "list"),
    Peer("huey", "huey", 10),
    Peer("SAQ", "saq", 10),
    Peer("SAQ retries=3", "saq", 10, "retries"),
    Peer("streaq", "streaq", 10),
    Peer("docket", "docket", 10),
    Peer("BullMQ", "bullmq", 10),
    Peer("Celery", "celery", 10),
    Peer("Celery acks_late", "celery", 10, "acks_late"),
    Peer("arq", "arq", 10, environment="bench-queues-arq"),
    Peer("RQ", "rq", 10),
)
"""The peers for losses: ten tasks at once, and the library's defaults in everything else."""
