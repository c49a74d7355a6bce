"""An executor that runs calls in a worker process: it can stop a cancelled call, and loses one item when it dies.

The invariants:

1. At most one process begins a call. If a process dies before it has begun a call, the next process gets the call.
2. Items that a process finished before it died keep their outcomes. The item that it was running gets `WorkerDied`. The
   next process runs the later items.
3. When a call is cancelled, its process is killed, with all processes that it has started.
"""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.to_thread

from cuelight._checks import check_seconds
from cuelight._text import describe_error, safe_repr, type_name
from cuelight.errors import PoolClosed, WorkerDied, ends_the_program
from cuelight.mailbox import current_backend
from cuelight.pools._processes._child import UNLOADABLE
from cuelight.pools._processes._start import check_executable, check_importable, main_source
from cuelight.pools._processes._worker_process import WorkerProcess, encode_call, encode_chunk
from cuelight.pools._threads._executor import Successes, as_task_error, full_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cuelight.pools._threads._executor import Outcome

_REAP: Final = 1.0  # longest wait, in seconds, for the end of a killed process


@dataclass
class ProcessAnswer:
    """The answer to one frame.

    Attributes:
        outcomes: one for each finished item, unless there are values.
        loaded: whether the process could unpickle the call; if not, the only outcome is the error.
        begun: whether the process began the call.
        death: description of how the process ended; None if it is alive.
        values: the returned values, if every item has succeeded and they came in one frame.
    """

    outcomes: list[Outcome]
    loaded: bool = True
    begun: bool = True
    death: str | None = None
    values: list[Any] | None = None

    @classmethod
    def of(cls, process: WorkerProcess, kind: bytes) -> ProcessAnswer:
        """The answer of a live process."""
        answer = cls(process.outcomes(), loaded=kind != UNLOADABLE, values=process.values)
        if not answer.loaded and main_source() is None:
            for _, error in answer.outcomes:
                error.add_note(
                    "if this is about something of the main program: worker processes cannot import that, because it "
                    "was typed in, or came from standard input or `-c`; define it in a module"
                )
        return answer

    @classmethod
    def of_dead(cls, process: WorkerProcess) -> ProcessAnswer:
        """The recovered answer of a process that died. Call this after `wait`."""
        return cls(
            process.recover_results(), begun=process.begun, death=f"process {process.pid} {process.exit_description()}"
        )


def encode_checked_call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """The frame for one call.

    Raises:
        pickle.PicklingError: the function or an argument cannot be pickled; the message says which.
    """
    check_importable(function)
    try:
        return encode_call((function, args, kwargs))
    except BaseException as error:
        if ends_the_program(error):
            raise
        what = _unpicklable(function, args, kwargs)
        raise pickle.PicklingError(f"{what}: {describe_error(error)}") from error


def _unpicklable(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    name = full_name(function)
    if not _can_pickle(function):
        return f"{name} cannot be sent to a worker process; define it at the top level of a module"
    for place, value in [*enumerate(args), *kwargs.items()]:
        if not _can_pickle(value):
            label = f"argument {place + 1}" if isinstance(place, int) else f"argument {safe_repr(place)}"
            return f"{label} of {name}, a {type_name(value)}, cannot be sent to a worker process; give plain data"
    return f"the arguments of {name} cannot be sent to a worker process; give plain data"


def _can_pickle(value: object) -> bool:
    try:
        pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except BaseException as error:
        if ends_the_program(error):
            raise
        return False  # the caller has the error of the first attempt
    return True


def death_error(name: str, answer: ProcessAnswer, under: str) -> WorkerDied:
    """The error of the item that was running when the process died."""
    when = "under" if answer.begun else "before it began"
    return WorkerDied(f"{name}: {answer.death} {when} {under}")


class ProcessExecutor:
    """Runs plain functions in a worker process; see `Executor`.

    The process starts with the first call and runs all further calls. Functions, arguments, results and exceptions are
    pickled. Functions of the main program work as with the "spawn" method of `multiprocessing`: the process loads the
    main module under another name, so the module must guard its actions with `if __name__ == "__main__":`. The
    process ignores Ctrl-C, has no input, and writes to the same output. It is killed when this process ends in any
    way. Processes that a call started end together with the worker process.

    An exception of a call has a `RemoteTraceback` as its cause. The executor needs POSIX process groups.
    """

    def __init__(
        self, name: str, *, close_timeout: float = 5.0, executable: str | os.PathLike[str] | None = None
    ) -> None:
        """Set up an executor. Its process starts with the first call.

        Args:
            name: name of the executor in error messages.
            close_timeout: seconds that an idle process may take to end before it is killed.
            executable: path of the Python interpreter of the process; by default the one that runs this program.

        Raises:
            ValueError: the time-out is negative or not a number, or there is no such interpreter.
            TypeError: an argument is of a wrong type.
        """
        check_seconds("ProcessExecutor(close_timeout)", close_timeout, 0)
        self.name = name
        self._executable = check_executable(executable)
        self.abandoned = 0
        self.replaced = 0
        self._close_timeout = close_timeout
        self._process: WorkerProcess | None = None
        self._busy = False
        self._closed = False

    @property
    def pid(self) -> int | None:
        """The process ID of the worker process; None while there is no process."""
        return None if self._process is None else self._process.pid

    async def run(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function in the process and return its result. A checkpoint.

        If the caller is cancelled, the process is killed.

        Raises:
            WorkerDied: the process died during the call (killed, out of memory, `os._exit`).
            Exception: the exception that the function raised.
            pickle.PicklingError: the function, an argument or the result cannot be pickled.
            PoolClosed: the executor was closed.
            RuntimeError: another call is in progress.
        """
        answer = await self._deliver(encode_checked_call(function, args, kwargs))
        if answer.death is not None and not answer.outcomes:
            raise death_error(self.name, answer, full_name(function))
        [(succeeded, value)] = answer.outcomes
        if succeeded:
            return value
        try:
            raise as_task_error(value, function)
        finally:
            del value, answer  # break the cycle with the traceback

    async def run_chunk(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Outcome]:
        """Call the function with each item, in order, in one round trip. A checkpoint.

        If the caller is cancelled, the process is killed.

        Returns:
            One outcome for each item. If the process died at item k, outcome k is `(False, WorkerDied)`, and a new
            process has run the items after k. If an item cannot be pickled, only this item fails.

        Raises:
            pickle.PicklingError: the function cannot be pickled.
            PoolClosed: the executor was closed.
            RuntimeError: another call is in progress.
        """
        outcomes = await self.run_many(function, items)
        return [(True, value) for value in outcomes] if isinstance(outcomes, Successes) else outcomes

    async def run_many(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Successes | list[Outcome]:
        """As `run_chunk`, but returns `Successes` without a tuple for each item if every item has returned an atom."""
        outcomes: list[Outcome] = []
        while len(outcomes) < len(items) or not items:
            rest = list(items[len(outcomes) :])
            check_importable(function)
            try:
                frame = encode_chunk((function, rest))
            except BaseException as error:
                if ends_the_program(error):
                    raise
                if not _can_pickle(function):
                    encode_checked_call(function, (), {})
                return outcomes + [await self._run_item(function, item) for item in rest]
            answer = await self._deliver(frame)
            if not answer.loaded:
                return outcomes + [await self._run_item(function, item) for item in rest]
            if answer.values is not None:
                if not outcomes:
                    return Successes(answer.values)
                outcomes += [(True, value) for value in answer.values]
            outcomes += answer.outcomes
            if not items:
                break
            if answer.death is not None and len(outcomes) < len(items):
                under = f"{full_name(function)}, item {len(outcomes)} of its chunk"
                # If it had not begun, two processes in a row have died before they began.
                left = 1 if answer.begun else len(items) - len(outcomes)
                outcomes += [(False, death_error(self.name, answer, under)) for _ in range(left)]
        return outcomes

    async def _run_item(self, function: Callable[[Any], Any], item: Any) -> Outcome:
        try:
            answer = await self._deliver(encode_checked_call(function, (item,), {}))
        except pickle.PicklingError as error:
            return False, error
        return answer.outcomes[0] if answer.outcomes else (False, death_error(self.name, answer, full_name(function)))

    async def aclose(self) -> None:
        """End the process; kill it if it runs a call or takes longer than `close_timeout`. A checkpoint."""
        self._closed = True
        process = self._process
        if process is not None and process.is_of_parent:
            process = self._process = None
        if process is None or self._busy:
            if process is not None:
                process.kill()  # the task that awaits the call notices it, and closes the link
            await current_backend().checkpoint()
            return
        self._process = None
        try:
            process.close_writing()
            with anyio.move_on_after(self._close_timeout):
                await _wait(process)
        finally:
            await self._end(process)

    # One frame.

    async def _deliver(self, frame: bytes) -> ProcessAnswer:
        """Send a frame and return the answer. If the process dies before it has begun the call, try once more."""
        if self._process is not None and self._process.is_of_parent:
            self._process, self._busy = None, False
        if self._busy:
            raise RuntimeError(f"the executor {self.name!r} runs one call at a time: await the first, or make another")
        self._busy = True
        try:
            answer = await self._exchange(frame)
            if answer.death is not None and not answer.begun:
                answer = await self._exchange(frame)
        finally:
            self._busy = False
        return answer

    async def _exchange(self, frame: bytes) -> ProcessAnswer:
        if self._closed:
            raise PoolClosed(f"the executor {self.name!r} was closed: make a new one")
        if self._process is None:
            # Blocks for a millisecond or two; event loops start processes in the same way.
            self._process = WorkerProcess(self._executable)
        process = self._process
        try:
            try:
                process.begin(frame)
                while not process.send():
                    await anyio.wait_writable(process)
                await anyio.wait_readable(process)
                while (kind := process.receive()) is None:
                    await anyio.wait_readable(process)
                return ProcessAnswer.of(process, kind)
            except (EOFError, OSError):
                process.kill()  # in case it is alive and has only closed the socket
                await _wait(process)
                answer = ProcessAnswer.of_dead(process)
        except BaseException:
            self._process = None
            self.replaced += 1
            await self._end(process)
            raise
        self._process = None
        self.replaced += 1
        process.close()
        return answer

    @staticmethod
    async def _end(process: WorkerProcess) -> None:
        """Kill the process, and wait a moment for its end, also if the task is cancelled."""
        process.kill()
        try:
            with anyio.move_on_after(_REAP, shield=True):
                await _wait(process)
        finally:
            process.close()


async def _wait(process: WorkerProcess) -> None:
    # A limiter of its own, because all threads of the shared limiter may be in use.
    await anyio.to_thread.run_sync(process.wait, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1))
