"""The options of a blocking pool, with checks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from cuelight._text import safe_repr


@dataclass
class WorkerPoolConfig:
    """The options of a `WorkerPool`.

    Attributes:
        max_workers: maximum number of threads. They start when there is work.
        task_timeout_seconds: seconds that one attempt may run; `math.inf` for no limit.
        max_retries: maximum number of attempts after the first. Attempts that took too long count.
        backoff_base_seconds: seconds before the first retry. The delay doubles with each retry.
        backoff_max_seconds: maximum delay before a retry, in seconds.
        enable_instrumentation: whether to log each task with the logger "cuelight.pools" and to keep its metrics. A
            task is logged when it completes (debug), is tried again (info) or fails (warning, with its traceback).
    """

    max_workers: int = 50
    task_timeout_seconds: float = 180.0
    max_retries: int = 3
    backoff_base_seconds: float = 1.0
    backoff_max_seconds: float = 60.0
    enable_instrumentation: bool = True

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: a value is invalid; the message says which.
        """
        for field, least in {"max_workers": 1, "max_retries": 0}.items():
            count: Any = getattr(self, field)
            if isinstance(count, bool) or not isinstance(count, int) or count < least:
                raise ValueError(f"WorkerPoolConfig({field}={safe_repr(count)}): give a whole number, {least} or more")
        for field in ("backoff_base_seconds", "backoff_max_seconds"):
            delay: Any = getattr(self, field)
            if not _is_number(delay) or not 0 <= delay < math.inf:
                raise ValueError(f"WorkerPoolConfig({field}={safe_repr(delay)}): give seconds, 0 or more")
        if not _is_number(self.task_timeout_seconds) or not self.task_timeout_seconds > 0:
            raise ValueError(
                f"WorkerPoolConfig(task_timeout_seconds={safe_repr(self.task_timeout_seconds)}): give more than 0 "
                f"seconds, or math.inf for no time-out"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
