"""Which queues are measured, how, and in which environment each of them runs."""

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
        concurrency: tasks that a worker runs at once.
        variant: of the library.
        environment: below build/; empty for that of this process.
        threads: whether it blocks the thread that sends.
        many: whether it can send a batch in one go.
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
            ModuleNotFoundError: the environment was not made.
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
"""For how many per second: each with what its documents recommend for that, the async ones as ours."""

ENQUEUING = tuple(peer for peer in FAST if peer.label not in {"dramatiq 8 threads", "huey 8 threads"})
"""A producer has no threads of the library, so each library is once among them."""

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
"""For what is lost: ten tasks at once, and the defaults of the library in everything else."""
