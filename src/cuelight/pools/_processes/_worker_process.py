"""The parent's end of a worker process. It never waits for answers: its user does, in an event loop or a thread."""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

from cuelight._text import describe_error
from cuelight.pools._failures import as_failure, without_our_frame
from cuelight.pools._processes import _child
from cuelight.pools._processes._child import BASE, BEGUN, DATA, FRAME, KIND, KINDS, RECORD, VALUES, WRITTEN, Frames
from cuelight.pools._processes._sent_errors import load
from cuelight.pools._processes._start import command, main_source

if TYPE_CHECKING:
    from cuelight.pools._threads._executor import Outcome


class RemoteTraceback(Exception):
    """The traceback of an exception of a worker process. It is the cause of that exception in this process."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _frame(kind: bytes, content: bytes) -> bytes:
    return FRAME.pack(kind, len(content)) + content


def encode_call(call: tuple[Any, tuple[Any, ...], dict[str, Any]]) -> bytes:
    """The frame for one call: (function, args, kwargs). Raises the exceptions of pickling."""
    return _frame(_child.CALL, pickle.dumps(call, pickle.HIGHEST_PROTOCOL))


def encode_chunk(chunk: tuple[Any, list[Any]]) -> bytes:
    """The frame for one chunk: (function, items). Raises the exceptions of pickling."""
    return _frame(_child.CHUNK, pickle.dumps(chunk, pickle.HIGHEST_PROTOCOL))


def _setup() -> bytes:
    # In a worker process, and so in its answers, classes of `__main__` belong to the module of this name.
    sys.modules.setdefault("__mp_main__", sys.modules["__main__"])
    path = [entry or os.getcwd() for entry in sys.path]
    return _frame(_child.SETUP, pickle.dumps((path, sys.argv, main_source()), pickle.HIGHEST_PROTOCOL))


def _new_region() -> int:
    if sys.platform == "linux":
        fd = os.memfd_create("cuelight")
    else:
        import tempfile  # noqa: PLC0415 - only here

        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, DATA + _child.REGION)
    return fd


_worker_processes: Final[WeakSet[WorkerProcess]] = WeakSet()


def _leave_to_parent() -> None:
    """In a forked process: leave the worker processes to the parent. They end with it, not with this process."""
    for worker_process in list(_worker_processes):
        worker_process.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


class WorkerProcess:
    """One worker process, from its start to its end.

    It leads a process group. Processes that it starts belong to this group, and `kill` ends all of them.

    Attributes:
        values: the returned values of a chunk, if every item has succeeded and the process has sent them in one frame.
        is_of_parent: whether this process was forked after the start, so that the worker process belongs to its parent.
    """

    def __init__(self, executable: str | None = None) -> None:
        """Start the process. It sends nothing before it gets a call.

        Args:
            executable: path of the Python interpreter; by default the one that runs this program.

        Raises:
            RuntimeError: this process is itself a worker process that is loading the main module for a call; or this
                program is frozen and has not called `freeze_support`; or the system has no process groups.
            OSError: the process could not be started.
        """
        if sys.platform == "win32":
            raise RuntimeError("worker processes need process groups, which Windows does not have: use threads")
        if _child.LOADING in vars(sys.modules["__main__"]):
            raise RuntimeError(
                "a worker process is loading this program for a function of it, and that starts worker processes: "
                "put what the program does under `if __name__ == '__main__':`"
            )
        command(executable, ())  # raises before any resource is made
        self.is_of_parent = False
        self._lock = threading.Lock()
        self._frames = Frames()
        self._records = bytearray()
        self.values: list[Any] | None = None
        self._outgoing = memoryview(_setup())
        self._connection, child_end = socket.socketpair()
        lifeline, parent_end = os.pipe()
        self._lifeline = os.fdopen(parent_end, "wb", buffering=0)
        region = _new_region()
        try:
            self._popen = self._start(executable, child_end.fileno(), region, lifeline)
            self._region = mmap.mmap(region, 0)
        except BaseException:
            self._connection.close()
            self._lifeline.close()
            raise
        finally:
            child_end.close()
            os.close(lifeline)
            os.close(region)
        self._header = memoryview(self._region)[:DATA].cast("Q")
        self._connection.setblocking(False)
        self.pid = self._popen.pid
        _worker_processes.add(self)

    def leave_to_parent(self) -> None:
        """In a forked process: close this end, and leave the worker process alone."""
        self.is_of_parent = True
        self._popen.returncode = 0  # so that `subprocess` neither waits for it nor warns that it still runs
        self._connection.close()
        self._lifeline.close()  # else the worker process would live as long as this process

    @staticmethod
    def _start(executable: str | None, *descriptors: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603 - the command starts a Python interpreter
            command(executable, descriptors),
            stdin=subprocess.DEVNULL,
            pass_fds=descriptors,
            process_group=0,
        )

    def fileno(self) -> int:
        """The socket: readable when an answer may be there, writable when `send` can continue."""
        return self._connection.fileno()

    # One call at a time.

    def begin(self, frame: bytes) -> None:
        self._header[BEGUN] = self._header[BASE] = self._header[WRITTEN] = self._header[KIND] = 0
        self._records.clear()
        self.values = None
        self._outgoing = memoryview(bytes(self._outgoing) + frame if self._outgoing else frame)

    def send(self) -> bool:
        """Send as much as possible without waiting. Returns whether all of the call is sent.

        Raises:
            OSError: the process has died.
        """
        try:
            while self._outgoing:
                self._outgoing = self._outgoing[self._connection.send(self._outgoing) :]
        except BlockingIOError:
            return False
        return True

    def receive(self) -> bytes | None:
        """Read the available bytes. Returns the kind of the last frame once the answer is complete, before that None.

        Raises:
            EOFError: the process has died.
            OSError: the process has died.
        """
        try:
            data = self._connection.recv(_child.READ)
        except BlockingIOError:
            return None
        if not data:
            raise EOFError
        self._frames.add(data)
        return self._take_frames()

    def _take_frames(self) -> bytes | None:
        while (frame := self._frames.take()) is not None:
            kind, content = frame
            if kind == VALUES:
                self.values = pickle.loads(content)  # noqa: S301 - from a process of this pool; atoms always unpickle
                return kind
            self._records += content
            if kind != _child.PART:
                return kind
        return None

    @property
    def begun(self) -> bool:
        return bool(self._header[BEGUN])

    def outcomes(self) -> list[Outcome]:
        """The outcomes that were sent in frames, in order; an empty list if there are `values`."""
        return [] if self.values is not None else _decode(self._records)

    def recover_results(self) -> list[Outcome]:
        sent = self.outcomes()
        written = self._header[WRITTEN]
        for kind, form in KINDS.values():
            if kind == self._header[KIND]:
                kept: list[Outcome] = [(True, value) for value in self._numbers(form, written)]
                break
        else:
            kept = _decode(self._region[DATA : DATA + written])
        return sent + kept[len(sent) - self._header[BASE] :]

    def _numbers(self, form: str, written: int) -> list[Any]:
        part: Any = memoryview(self._region)[DATA : DATA + 8 * written]
        with part, part.cast(form) as numbers:
            return list(numbers)

    # The end of the process.

    def close_writing(self) -> None:
        """Close the connection for writing, so that the process ends once it is idle."""
        try:
            self._connection.shutdown(socket.SHUT_WR)
        except OSError:
            self.kill()  # the process has died, or is about to die

    def kill(self) -> None:
        """Kill the process and all processes that it has started. Harmless when it has ended."""
        with self._lock:
            self._kill_group()

    def _kill_group(self) -> None:
        if self._popen.returncode is None:  # until it is reaped, no other process can get its number
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                return

    def wait(self) -> int:
        """Block until the process has ended, and kill the processes that it left running.

        Returns:
            Its exit status; if negative, the negated number of the signal that killed it.
        """
        if not hasattr(os, "waitid"):  # macOS before Python 3.13: processes that it left go on running
            return self._popen.wait()
        try:
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            return self._popen.wait()  # another thread has reaped it
        with self._lock:
            self._kill_group()
            return self._popen.wait()

    def close(self) -> None:
        """Kill the process if it still runs, and close all resources."""
        self.kill()
        self._header.release()
        self._region.close()
        self._connection.close()
        self._lifeline.close()

    def exit_description(self) -> str:
        """Describe how the process ended. Call this after `wait`."""
        status = self._popen.returncode
        if status is None:
            return "was killed"
        if status >= 0:
            return f"ended with exit status {status}"
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
        return f"was killed by {name}" + (" (out of memory, or `kill -9`)" if name == "SIGKILL" else "")


def _decode(records: bytes | bytearray) -> list[Outcome]:
    outcomes: list[Outcome] = []
    position, end = 0, len(records)
    loads, unpack, head = pickle.loads, RECORD.unpack_from, RECORD.size
    with memoryview(records) as view:
        while position < end:
            succeeded, length = unpack(records, position)
            start = position + head
            position = start + length
            try:
                value = loads(view[start:position])
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # unpickling runs user code
                reason = f"the result cannot be unpickled here: {describe_error(error)}"
                outcomes.append((False, pickle.UnpicklingError(reason)))
                outcomes[-1][1].__cause__ = without_our_frame(error)
            else:
                outcomes.append((True, value) if succeeded else (False, _restore_error(*value)))
    return outcomes


def _restore_error(report: list[tuple[Any, ...]], text: str) -> Exception:
    """The error of a call, as an `Exception`, so that no error of a worker process ends this process.

    The remote traceback becomes the last of its causes.
    """
    error = load(report, describe_error)
    failure = as_failure("a function in a worker process", error)
    last, seen = error, {id(error)}
    while (cause := last.__cause__) is not None:
        if id(cause) in seen:
            last = error  # a cycle has no last cause
            break
        last = cause
        seen.add(id(last))
    suppressed = last.__suppress_context__
    last.__cause__ = RemoteTraceback(text)
    last.__suppress_context__ = suppressed
    return failure
