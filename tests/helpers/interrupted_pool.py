"""A blocking program that interrupts itself: Ctrl-C comes at the n-th moment when its main thread looks for it.

    python -m helpers.interrupted_pool KIND FIRST LAST STEP

For each n a pool is used from its start to its end. The interrupt must come out of that in time, however deep in the
pool it was raised, and nothing may be left that keeps the program from ending.
"""

from __future__ import annotations

import dis
import faulthandler
import gc
import signal
import sys
import threading
import time
import weakref
from typing import Any

from cuelight import WorkerPool, WorkerPoolConfig

DEADLINE = 20.0


CHECKED = {"CALL", "CALL_FUNCTION_EX", "CALL_KW", "JUMP_BACKWARD", "RESUME"}
"""The instructions after which CPython looks for signals."""

AFTER_YIELD_FROM = 2
"""The least argument of `RESUME` with which it does not look."""


class Interrupter:
    """Sends this process SIGINT at one of the moments when its main thread looks for signals, in whatever file."""

    def __init__(self, moment: int) -> None:
        self.left = moment
        self.where = ""
        self._before: str = ""
        self._codes: dict[Any, bytes] = {}

    def __enter__(self) -> Interrupter:
        sys._getframe().f_trace_opcodes = True  # else Python 3.12 reports no instructions of other frames either
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: Any, event: str, arg: Any) -> Any:
        if event == "call":
            frame.f_trace_opcodes = True
            # A coroutine that goes on within an `await` does not look; the coroutine that it awaits does, if it is new.
            self._before = "RESUME" if self._code(frame)[frame.f_lasti + 1] & 3 < AFTER_YIELD_FROM else ""
        elif event == "opcode":
            code = self._code(frame)
            at: int = frame.f_lasti
            before, self._before = self._before, dis.opname[code[at]]
            # A call that makes a coroutine is not followed by a look before that is awaited.
            if before in CHECKED and self._before != "GET_AWAITABLE" and not is_left_out(frame):
                self._tick(frame)
        elif event == "return":
            self._before = ""  # nothing is looked for after a call of a Python function
        return self._trace

    def _code(self, frame: Any) -> bytes:
        return self._codes.get(frame.f_code) or self._codes.setdefault(frame.f_code, frame.f_code.co_code)

    def _tick(self, frame: Any) -> None:
        self.left -= 1
        if self.left < 0:
            sys.settrace(None)
            frame.f_trace = None
            self.where = f"{frame.f_code.co_filename}:{frame.f_lineno} ({frame.f_code.co_qualname})"
            signal.raise_signal(signal.SIGINT)


def is_left_out(frame: Any) -> bool:
    """Whether nothing can be learned from an interrupt here.

    The interpreter drops one in a callback of a weak reference; and with a trace function it does not let go of the
    frames when one comes out of `signal.signal`.
    """
    if frame.f_code.co_filename == signal.__file__:
        return True
    while frame is not None:
        if frame.f_code.co_filename == weakref.__file__:
            return True
        frame = frame.f_back
    return False


def nap() -> str:
    time.sleep(0.001)
    return "slept"


def use(kind: Any, tasks: int) -> None:
    """Use a pool for all that it can do."""
    config = WorkerPoolConfig(max_workers=2, max_retries=1, backoff_base_seconds=0.001, task_timeout_seconds=10)
    with WorkerPool(config, kind=kind) as pool:
        ids = [pool.submit_task("nap", nap) for _ in range(tasks)]
        failing = pool.submit_task("fail", int, ("none",))
        pool.get_task_result(ids[0])
        assert [result.result for result in pool.map(abs, range(tasks))] == list(range(tasks))
        pool.get_task_result(failing)
        pool.submit_task("aborted", nap)
        pool.abort_pending_tasks()
        pool.wait_for_all()
        pool.get_summary_metrics()


def left() -> list[str]:
    """The threads of pools that are still there."""
    gc.collect()  # the traceback of an interrupt may hold a pool that was not closed
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("pool-")]


def was_interrupted(error: BaseException) -> bool:
    """Whether it is an interrupt, or was raised on top of one, as the RuntimeError of a `Condition` is."""
    while type(error) is not KeyboardInterrupt:
        if error.__context__ is None:
            return False
        error = error.__context__
    return True


def main(kind: str, first: int, last: int, step: int) -> None:
    """Interrupt one run after another; end when a run is over before it is interrupted."""
    use(kind, 2)
    tried = 0
    for moment in range(first, last, step):
        faulthandler.dump_traceback_later(DEADLINE, exit=True)
        interrupter = Interrupter(moment)
        try:
            with interrupter:
                use(kind, 2)
        except BaseException as error:
            if not was_interrupted(error):
                raise
        else:
            if interrupter.where:
                raise AssertionError(f"the interrupt at moment {moment}, {interrupter.where}, was lost")
            break
        tried += 1
        while left():
            time.sleep(0.001)  # until the deadline
    print("interrupted", tried, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *(int(text) for text in sys.argv[2:]))
