"""A worker process as an executor: a call that is cancelled is really stopped, and a death costs one item.

The invariants:

1. A call is begun by at most one process. If a process dies before it has begun a call, the call goes to its successor.
2. What a process finished before it died keeps its outcome; the item that it had under way is `WorkerDied`; later ones
   are run by its successor.
3. When a call was cancelled its process is killed, with all that it has started.
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
from cuelight.pools._child import UNLOADABLE
from cuelight.pools._executor import Successes
from cuelight.pools._process_link import ProcessLink, encode_call, encode_chunk
from cuelight.pools._process_start import check_executable, check_importable, main_source
from cuelight.pools._threads import full_name, tamed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cuelight.pools._executor import Outcome

__all__ = ["Answer", "ProcessExecutor", "call_frame", "died"]

_REAP: Final = 1.0  # seconds that a killed process may take to be gone before nobody waits for it any more


@dataclass
class Answer:
    """What came of one frame.

    Attributes:
        outcomes: one for each item that was finished, unless there are values.
        loaded: whether the process could unpickle the call; if not, the only outcome says why.
        begun: whether the process began the call.
        death: how the process ended; None if it lives.
        values: what the items returned, if it came as a whole: every one has succeeded.
    """

    outcomes: list[Outcome]
    loaded: bool = True
    begun: bool = True
    death: str | None = None
    values: list[Any] | None = None

    @classmethod
    def of(cls, link: ProcessLink, kind: bytes) -> Answer:
        """The answer of a process that lives."""
        answer = cls(link.outcomes(), loaded=kind != UNLOADABLE, values=link.values)
        if not answer.loaded and main_source() is None:
            for _, error in answer.outcomes:
                error.add_note(
                    "if this is about something of the main program: worker processes cannot import that, because it "
                    "was typed in, or came from standard input or `-c`; define it in a module"
                )
        return answer

    @classmethod
    def of_dead(cls, link: ProcessLink) -> Answer:
        """What is left of the answer of a process that died, after `wait`."""
        return cls(link.salvage(), begun=link.begun, death=f"process {link.pid} {link.last_words()}")


def call_frame(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """The frame for one call.

    Raises:
        pickle.PicklingError: the function or an argument cannot be pickled; it says which.
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
        return False  # why it cannot is told by the first attempt
    return True


def died(name: str, answer: Answer, under: str) -> WorkerDied:
    """The error for the item that was under way."""
    when = "under" if answer.begun else "before it began"
    return WorkerDied(f"{name}: {answer.death} {when} {under}")


class ProcessExecutor:
    """Runs plain functions in a worker process; see `Executor`.

    The process starts with the first call and is used for many. Functions, arguments, results and exceptions are
    pickled. Functions of the main program work as with the "spawn" method of `multiprocessing`: its module is loaded
    under another name, so what it does must be guarded by `if __name__ == "__main__":`. The process ignores Ctrl-C,
    has no input, writes to the same output, and is killed when this process ends, however that ends. What a call
    started (other processes) is ended together with the worker process.

    An exception of a call has a `RemoteTraceback` as its cause. It needs POSIX: process groups.
    """

    def __init__(
        self, name: str, *, close_timeout: float = 5.0, executable: str | os.PathLike[str] | None = None
    ) -> None:
        """Set up an executor; its process starts with the first call.

        Args:
            name: for error messages.
            close_timeout: seconds that an idle process may take to end before it is killed.
            executable: the Python interpreter of the process; by default the one that runs this program.

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
        self._link: ProcessLink | None = None
        self._busy = False
        self._closed = False

    @property
    def pid(self) -> int | None:
        """The number of the worker process; None while there is none."""
        return None if self._link is None else self._link.pid

    async def run(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function in the process and return its result. A checkpoint.

        Cancelling this kills the process.

        Raises:
            WorkerDied: the process died under it (killed, out of memory, `os._exit`).
            Exception: what the function raised.
            pickle.PicklingError: the function, an argument or the result cannot be pickled.
            PoolClosed: the executor was closed.
            RuntimeError: another call is under way.
        """
        answer = await self._deliver(call_frame(function, args, kwargs))
        if answer.death is not None and not answer.outcomes:
            raise died(self.name, answer, full_name(function))
        [(succeeded, value)] = answer.outcomes
        if succeeded:
            return value
        try:
            raise tamed(value, function)
        finally:
            del value, answer  # the traceback would hold itself

    async def run_chunk(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Outcome]:
        """Call the function with each item, in order; one round trip for all. A checkpoint.

        Cancelling this kills the process.

        Returns:
            One outcome for each item. If the process died at item k, outcome k is `(False, WorkerDied)`, and the items
            after k were run by its successor. An item that cannot be pickled costs only itself.

        Raises:
            pickle.PicklingError: the function cannot be pickled.
            PoolClosed: the executor was closed.
            RuntimeError: another call is under way.
        """
        outcomes = await self.run_many(function, items)
        return [(True, value) for value in outcomes] if isinstance(outcomes, Successes) else outcomes

    async def run_many(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Successes | list[Outcome]:
        """As `run_chunk`, but without a tuple for each item if every one of them has returned an atom."""
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
                    call_frame(function, (), {})
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
                left = 1 if answer.begun else len(items) - len(outcomes)  # two in a row could not even begin
                outcomes += [(False, died(self.name, answer, under)) for _ in range(left)]
        return outcomes

    async def _run_item(self, function: Callable[[Any], Any], item: Any) -> Outcome:
        try:
            answer = await self._deliver(call_frame(function, (item,), {}))
        except pickle.PicklingError as error:
            return False, error
        return answer.outcomes[0] if answer.outcomes else (False, died(self.name, answer, full_name(function)))

    async def aclose(self) -> None:
        """End the process; one that runs a call, or takes longer than `close_timeout`, is killed. A checkpoint."""
        self._closed = True
        link = self._link
        if link is not None and link.is_of_parent:
            link = self._link = None
        if link is None or self._busy:
            if link is not None:
                link.kill()  # whoever awaits the call will see it, and let go of the process
            await current_backend().checkpoint()
            return
        self._link = None
        try:
            link.hang_up()
            with anyio.move_on_after(self._close_timeout):
                await _wait(link)
        finally:
            await self._end(link)

    # One frame.

    async def _deliver(self, frame: bytes) -> Answer:
        """Have a process answer. One that dies before it has begun is replaced, once."""
        if self._link is not None and self._link.is_of_parent:
            self._link, self._busy = None, False
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

    async def _exchange(self, frame: bytes) -> Answer:
        if self._closed:
            raise PoolClosed(f"the executor {self.name!r} was closed: make a new one")
        if self._link is None:
            self._link = ProcessLink(
                self._executable
            )  # a millisecond or two, as event loops themselves start processes
        link = self._link
        try:
            try:
                link.begin(frame)
                while not link.send():
                    await anyio.wait_writable(link)
                await anyio.wait_readable(link)
                while (kind := link.receive()) is None:
                    await anyio.wait_readable(link)
                return Answer.of(link, kind)
            except (EOFError, OSError):
                link.kill()  # should it live, deaf
                await _wait(link)
                answer = Answer.of_dead(link)
        except BaseException:
            self._link = None
            self.replaced += 1
            await self._end(link)
            raise
        self._link = None
        self.replaced += 1
        link.close()
        return answer

    @staticmethod
    async def _end(link: ProcessLink) -> None:
        """Kill the process, and wait a moment until it is gone, whatever happens."""
        link.kill()
        try:
            with anyio.move_on_after(_REAP, shield=True):
                await _wait(link)
        finally:
            link.close()


async def _wait(link: ProcessLink) -> None:
    # A limiter of its own: the threads that all share may be taken.
    await anyio.to_thread.run_sync(link.wait, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1))
