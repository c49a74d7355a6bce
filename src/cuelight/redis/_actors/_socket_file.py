"""Unix sockets of nodes: in a folder that only this user can enter, each with a file that its process keeps locked.

Invariants:
1. The folder belongs to this user, and nobody else can enter it.
2. A socket is removed when its node leaves. Those of processes that were killed are removed by the next node of this
   user: nobody has locked the file beside them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import stat
import sys
import weakref
from collections.abc import Iterator
from typing import Final

__all__ = ["SocketFile", "open_socket_file"]

if sys.platform != "win32":
    import fcntl

BACKLOG: Final = 128

SUPPORTED: Final = sys.platform != "win32" and hasattr(socket, "AF_UNIX")

_ATTEMPTS: Final = 5
"""How often a folder or file may be removed by another process while it is made here."""

_REMOVED_AT_ONCE: Final = 100


class SocketFile:
    """A Unix socket that listens.

    Attributes:
        path: where it is.
        socket: which accepts; whoever waits for connections on it closes it.
    """

    def __init__(self, path: str, lock: int, listening: socket.socket) -> None:
        self.path, self.socket = path, listening
        # Also at the end of a program that has left its node open; not in a fork.
        self._remove = weakref.finalize(self, _remove, path, lock, os.getpid())

    def remove(self) -> None:
        """Remove the file. Again, it does nothing."""
        self._remove()


def _remove(path: str, lock: int, process: int) -> None:
    if os.getpid() == process:
        for name in (path, f"{path}.lock"):
            with contextlib.suppress(OSError):
                os.unlink(name)
        with contextlib.suppress(OSError):  # others have sockets there
            os.rmdir(os.path.dirname(path))
    os.close(lock)


def open_socket_file() -> SocketFile:
    """Listen on a new socket, in the first folder that will do.

    Raises:
        OSError: none will do; the text says why.
    """
    if not SUPPORTED:
        raise OSError("this operating system has none")
    problems: list[str] = []
    for base in _bases():
        for attempt in range(_ATTEMPTS):
            try:
                return _open(_private_folder(base))
            except FileNotFoundError as error:  # removed by a node that ended just now, perhaps
                if attempt == _ATTEMPTS - 1 or not os.path.isdir(base):
                    problems.append(str(error))
                    break
            except OSError as error:  # not to be written to, too long a path, and so on
                problems.append(f"{base}: {error}")
                break
    raise OSError("; ".join(problems) or "there is no folder for temporary files")


def _bases() -> Iterator[str]:
    named = (os.environ.get("XDG_RUNTIME_DIR"), os.environ.get("TMPDIR"), "/tmp", "/var/tmp")  # noqa: S108
    return iter(dict.fromkeys(os.path.abspath(one) for one in named if one))


def _private_folder(base: str) -> str:
    folder = os.path.join(base, f"cuelight-{os.getuid()}")
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) != 0o700:
        raise PermissionError(f"{folder} is no folder that this user alone can enter")
    return folder


def _open(folder: str) -> SocketFile:
    _remove_those_of_the_dead(folder)
    path = os.path.join(folder, secrets.token_hex(6))
    lock = _locked(f"{path}.lock")
    listening = socket.socket(socket.AF_UNIX)
    try:
        listening.bind(path)
        listening.listen(BACKLOG)
        listening.setblocking(False)
    except BaseException:
        listening.close()
        _remove(path, lock, os.getpid())
        raise
    return SocketFile(path, lock, listening)


def _locked(path: str) -> int:
    """A new file that this process keeps locked; its descriptor."""
    lock = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.fstat(lock).st_nlink:
            raise FileNotFoundError(f"{path} was removed by another process")
    except BaseException as error:
        os.close(lock)
        if isinstance(error, BlockingIOError):  # another node looks whether it is locked, finds so, and removes it
            raise FileNotFoundError(f"{path} was removed by another process") from error
        raise
    return lock


def _remove_those_of_the_dead(folder: str) -> None:
    with os.scandir(folder) as entries:
        locks = [entry.path for entry in entries if entry.name.endswith(".lock")]
    for path in locks[:_REMOVED_AT_ONCE]:
        with contextlib.suppress(OSError):  # another node was quicker, or its process lives
            lock = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path.removesuffix(".lock"))
                os.unlink(path)
            finally:
                os.close(lock)
