"""Task functions of a module, as worker processes need them."""

from __future__ import annotations

import os
import signal
import time

from cuelight.tasks import current_task, task


@task(name="jobs.who")
def who(number: int) -> dict[str, int]:
    return {"pid": os.getpid(), "number": number, "attempt": current_task().attempt}


@task(name="jobs.spin", max_timeouts=1)
def spin() -> None:
    while True:
        time.sleep(0.01)


@task(name="jobs.die", max_crashes=2)
def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@task(name="jobs.nap")
def nap() -> str:
    time.sleep(0.5)
    return "rested"
