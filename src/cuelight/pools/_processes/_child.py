"""The program of a worker process, and the protocol between it and the parent.

This file imports only the standard library, and the process loads it without its package. So the process starts in
milliseconds, and imports the modules of a call with the call. It loads the modules for errors with the first error, in
the same way.

One socket connects parent and child. A frame is a kind, a length and that many bytes. The parent sends one call and
then only waits. The child answers with frames of kind PART and one of kind END, or with one frame of kind UNLOADABLE.
Their bytes are records, one for each item, in order. If every item of a chunk has succeeded with an atom, and all
records are in the region, the answer is one frame of kind VALUES: one pickled list, which the parent decodes much
faster. It replaces all parts. (A list would be wrong for other values: a later call may change a value, but it must
arrive as it was when it was returned.)

The region is shared memory, so its content outlives a child that is killed. The invariants:

1. BEGUN is 0 until the child has unpickled the call, then 1. The parent sets it to 0 before it sends a call.
2. The region holds the records of the items BASE, BASE + 1, ... in its first WRITTEN bytes, each of them complete. If
   KIND is not RECORDS, it holds the first WRITTEN items as numbers of eight bytes instead, and BASE is 0.
3. An item is in the region, or in a frame that was sent, before the next item begins. Both may hold it.
"""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import socket
import struct
import sys
from typing import Any

if sys.platform != "win32":
    import fcntl

FRAME = struct.Struct("=cQ")  # kind, length
SETUP, CALL, CHUNK = b"s", b"c", b"k"
PART, END, UNLOADABLE, VALUES = b"p", b"e", b"u", b"v"

ATOMS = frozenset({type(None), bool, int, float, str, bytes})  # exactly these types, whose values are immutable

RECORD = struct.Struct("=?Q")  # succeeded, length
HEADS = [RECORD.pack(True, length) for length in range(128)]  # most results are short
BEGUN, BASE, WRITTEN, KIND = range(4)  # the fields of the header: eight bytes each, at the start of the region
DATA = 32  # where its records begin
REGION = 65536  # bytes; records that do not fit go through the socket
RECORDS, INTS, FLOATS = range(3)  # kinds of content of the region
KINDS: dict[type, tuple[int, str]] = {int: (INTS, "q"), float: (FLOATS, "d")}

SOURCE, LOADING = "__cuelight_source__", "__cuelight_loading__"  # marks in the stand-in for `__main__`
READ = 65536  # bytes at once; malloc has blocks of this size ready

RUN_MODULE = "run_module"

Source = tuple[str, str]
"""The origin of the parent's `__main__`: ("init_main_from_path", path) or ("init_main_from_name", module), as in
`multiprocessing`, or (RUN_MODULE, module and path in two lines) for a `__main__.py`, which `multiprocessing` would not
load.
"""


class Frames:
    """Assembles received bytes to frames."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def add(self, data: bytes) -> None:
        self._bytes += data

    def take(self) -> tuple[bytes, bytes] | None:
        """Remove and return the next frame, kind and content; None if it is not complete."""
        if len(self._bytes) < FRAME.size:
            return None
        kind, length = FRAME.unpack_from(self._bytes)
        end = FRAME.size + length
        if len(self._bytes) < end:
            return None
        content = bytes(memoryview(self._bytes)[FRAME.size : end])
        del self._bytes[:end]
        return kind, content


def _send(connection: socket.socket, kind: bytes, *parts: bytes) -> None:
    connection.sendall(b"".join((FRAME.pack(kind, sum(map(len, parts))), *parts)))


def _receive(connection: socket.socket, frames: Frames) -> tuple[bytes, bytes] | None:
    """The next frame; None when the parent has closed the connection."""
    while (frame := frames.take()) is None:
        data = connection.recv(READ)
        if not data:
            return None
        frames.add(data)
    return frame


# Records.


def _success(value: object) -> bytes:
    try:
        pickled = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except BaseException as error:
        return _unpicklable(value, error)
    return RECORD.pack(True, len(pickled)) + pickled


def _unpicklable(value: object, error: BaseException) -> bytes:
    cls = type(value)
    named = f"{type.__getattribute__(cls, '__module__')}.{type.__getattribute__(cls, '__qualname__')}"
    advice = "return plain data, or a picklable object"
    told = _sibling("../../_text.py").describe_error(error)
    return _failure(pickle.PicklingError(f"the result, a {named}, cannot be pickled: {told}; {advice}"))


def _failure(error: BaseException) -> bytes:
    """The record of an error and its traceback. Raises only when memory runs out."""
    errors, texts = _sibling("_sent_errors.py"), _sibling("../../_text.py")
    trace = error.__traceback__
    if trace is not None:
        error = error.with_traceback(trace.tb_next)  # without the frame of this file
    report = errors.dump(error, texts.describe_error), texts.format_traceback(error)
    record = pickle.dumps(report, pickle.HIGHEST_PROTOCOL)
    return RECORD.pack(False, len(record)) + record


def _sibling(name: str) -> Any:
    """A module of this package, loaded like this one: by its path, without the package, on first use."""
    module = _siblings.get(name)
    if module is None:
        from importlib import import_module, util  # noqa: PLC0415 - few calls need it

        if __package__:  # in a frozen program, which has no files
            places = {"_sent_errors.py": "cuelight.pools._processes._sent_errors", "../../_text.py": "cuelight._text"}
            return import_module(places[name])
        label = "cuelight_" + os.path.basename(name).strip("_").removesuffix(".py")
        spec = util.spec_from_file_location(label, os.path.join(os.path.dirname(__file__), name))
        assert spec is not None and spec.loader is not None  # noqa: S101, PT018 - the file is beside this one
        module = util.module_from_spec(spec)
        sys.modules[label] = module
        spec.loader.exec_module(module)
        _siblings[name] = module
    return module


_siblings: dict[str, Any] = {}


# Calls.


class _Main:
    """Loads the `__main__` of the parent when a call needs it, under another name, so that its guard holds."""

    def __init__(self) -> None:
        self.source: Source | None = None

    def load(self) -> None:
        from multiprocessing import spawn  # noqa: PLC0415 - few calls need it

        assert self.source is not None  # noqa: S101 - the caller looked
        stand_in = vars(sys.modules["__main__"])
        stand_in[LOADING] = True
        try:
            if self.source[0] == RUN_MODULE:
                self._run_module(*self.source[1].split("\n"))
            else:
                spawn.prepare(dict([self.source]))
        finally:
            del stand_in[LOADING]
        self.source = None

    @staticmethod
    def _run_module(name: str, path: str) -> None:
        import runpy  # noqa: PLC0415 - few calls need it
        import types  # noqa: PLC0415 - few calls need it

        module = types.ModuleType("__mp_main__")
        if name == "__main__":  # the `__main__.py` of a folder
            content = runpy.run_path(path, run_name="__mp_main__")
        else:
            content = runpy.run_module(name, run_name="__mp_main__", alter_sys=True)
        vars(module).update(content)
        sys.modules["__main__"] = sys.modules["__mp_main__"] = module


def _load(content: bytes, main: _Main) -> Any:
    try:
        return pickle.loads(content)  # noqa: S301 - from the parent, over a socket that only it has
    except (AttributeError, ImportError):
        if main.source is None or (b"__main__" not in content and b"__mp_main__" not in content):
            raise
        main.load()
        return pickle.loads(content)  # noqa: S301 - as above


def _run_call(connection: socket.socket, call: tuple[Any, tuple[Any, ...], dict[str, Any]]) -> None:
    function, args, kwargs = call
    try:
        value = function(*args, **kwargs)
    except BaseException as error:
        record = _failure(error)
    else:
        record = _success(value)
    _send(connection, END, record)


def _run_chunk(connection: socket.socket, region: mmap.mmap, header: memoryview, call: tuple[Any, list[Any]]) -> None:
    numbers, after = _run_numbers(region, header, call)
    if after is None and numbers:
        _send(connection, VALUES, pickle.dumps(numbers, pickle.HIGHEST_PROTOCOL))
        return
    if numbers:
        _send(connection, PART, *map(_success, numbers))
    header[WRITTEN] = 0  # before kind and base, so that old content is not read as records
    header[KIND] = RECORDS
    header[BASE] = len(numbers)
    _run_others(connection, region, header, call, (numbers, after))


def _run_numbers(
    region: mmap.mmap, header: memoryview, call: tuple[Any, list[Any]]
) -> tuple[list[Any], tuple[bool, Any] | None]:
    """Run items as long as they return numbers of one type, each of which fits into eight bytes.

    Writing such a number to the region takes a fraction of the time of a record.

    Returns:
        The numbers, and the outcome of the item after them, (True, value) or (False, record); None if there is none.
    """
    function, items = call
    values: list[Any] = []
    add = values.append
    cls: Any = None
    value: Any
    numbers: Any = memoryview(b"")
    try:
        for index, item in enumerate(items):
            value = function(item)
            if type(value) is not cls:
                if index or type(value) not in KINDS:
                    return values, (True, value)
                cls = type(value)  # pyright: ignore[reportUnknownVariableType]
                kind, form = KINDS[cls]
                slots: Any = memoryview(region)[DATA : DATA + REGION]
                numbers = slots.cast(form)
                header[KIND] = kind
            try:
                numbers[index] = value
            except (ValueError, IndexError):  # it takes more than eight bytes, or the region is full
                return values, (True, value)
            header[WRITTEN] = index + 1
            add(value)
    except BaseException as error:
        return values, (False, _failure(error))
    finally:
        numbers.release()
    return values, None


def _run_others(
    connection: socket.socket,
    region: mmap.mmap,
    header: memoryview,
    call: tuple[Any, list[Any]],
    begun: tuple[list[Any], tuple[bool, Any] | None],
) -> None:
    """Run the items of a chunk that `_run_numbers` has left, and write a record of each item."""
    (function, items), (numbers, after) = call, begun
    position, room = DATA, len(region)
    dumps, protocol, heads, short = pickle.dumps, pickle.HIGHEST_PROTOCOL, HEADS, len(HEADS)
    values: list[Any] | None = numbers  # at most as many as fit into the region
    for index in range(len(numbers), len(items)):
        try:
            if after is None:
                fine, value = True, function(items[index])
            else:
                (fine, value), after = after, None
        except BaseException as error:
            fine, value = False, _failure(error)
        record = value
        if fine:
            try:
                record = dumps(value, protocol)
            except BaseException as error:
                record = _unpicklable(value, error)
            else:
                length = len(record)
                record = (heads[length] if length < short else RECORD.pack(True, length)) + record
                end = position + len(record)
                if end <= room:
                    if values is not None:
                        values.append(value)
                    region[position:end] = record
                    position = end
                    header[WRITTEN] = end - DATA
                    continue
        values = None
        _send(connection, PART, region[DATA:position], record)
        header[WRITTEN] = 0  # before the base, so that old records are not counted from the new base
        header[BASE] = index + 1
        position = DATA
    if values is not None and _are_atoms(values):
        _send(connection, VALUES, dumps(values, protocol))
    else:
        _send(connection, END, region[DATA:position])


def _are_atoms(values: list[Any]) -> bool:
    try:
        return ATOMS.issuperset(map(type, values))
    except BaseException:  # a class whose metaclass makes it unhashable
        return False


def serve(connection: socket.socket, region: mmap.mmap) -> None:
    """Run call after call, until the parent closes the connection."""
    frames, main = Frames(), _Main()
    with memoryview(region)[:DATA] as raw_header, raw_header.cast("Q") as header:
        while (frame := _receive(connection, frames)) is not None:
            kind, content = frame
            del frame
            try:
                call = _load(content, main)
            except BaseException as error:
                _send(connection, UNLOADABLE, _failure(error))
                continue
            if kind == SETUP:
                sys.path[:], sys.argv[:], main.source = call
                vars(sys.modules["__main__"])[SOURCE] = main.source
                continue
            header[BEGUN] = 1
            if kind == CALL:
                _run_call(connection, call)
            else:
                _run_chunk(connection, region, header, call)
            del call, content  # so that arguments are not kept alive until the next call


# The process.


def _die_with_parent(lifeline: int) -> None:  # pragma: no cover - in another process
    """Have this process, and all processes that it starts, killed when the parent ends, whatever runs here then.

    The parent holds the other end of the lifeline, and never writes to it.
    """
    os.set_inheritable(lifeline, False)
    if sys.platform == "linux":
        # The kernel sends the signal, so a call that never releases the GIL cannot prevent it.
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK)
        try:
            _wait_for_end(lifeline)  # the parent may have ended before
        except BlockingIOError:
            return
    else:
        import threading  # noqa: PLC0415 - only here

        threading.Thread(target=_wait_for_end, args=(lifeline,), name="lifeline", daemon=True).start()


def _wait_for_end(lifeline: int) -> None:  # pragma: no cover - in another process
    os.read(lifeline, 1)
    os.killpg(0, signal.SIGKILL)


def main(descriptors: list[str] | None = None) -> None:  # pragma: no cover - in another process
    """Run as a worker process.

    Args:
        descriptors: the file descriptors of the socket, the region and the lifeline; by default the arguments of the
            program.
    """
    connection_fd, region_fd, lifeline = map(int, sys.argv[1:] if descriptors is None else descriptors)
    _die_with_parent(lifeline)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # the parent may have closed its own
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # the streams of Python have this method
    connection = socket.socket(fileno=connection_fd)
    connection.set_inheritable(False)
    # A process that a call forks must not keep the connection open after this process has died.
    os.register_at_fork(after_in_child=connection.close)
    region = mmap.mmap(region_fd, 0)
    os.close(region_fd)
    serve(connection, region)
