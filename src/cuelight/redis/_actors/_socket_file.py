"""Unix sockets of nodes, in a folder that only this user can enter, each with a file that its process keeps locked.

Invariants:
1. The folder belongs to this user, and no other user can enter it.
2. A socket is removed when its node leaves. The sockets of killed processes, whose files are not locked any more, are
   removed by the next node of this user.
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

if sys.platform != "win32":
    import fcntl

BACKLOG: Final = 128

SUPPORTED: Final = sys.platform != "win32" and hasattr(socket, "AF_UNIX")

_ATTEMPTS: Final = 5
"""How often another process may remove a folder or file while it is created here."""

_REMOVED_AT_ONCE: Final = 100


class SocketFile:
    """A Unix socket that listens.

    Attributes:
        path: the path of the socket.
        socket: the listening socket; the code that waits for connections on it closes it.
    """

    def __init__(self, path: str, lock: int, listening: socket.socket) -> None:
        self.path, self.socket = path, listening
        # It also runs at the end of a program that has not closed its node, but not in a forked process.
        self._remove = weakref.finalize(self, _remove, path, lock, os.getpid())

    def remove(self) -> None:
        """Remove the file. Later calls do nothing."""
        self._remove()


def _remove(path: str, lock: int, process: int) -> None:
    if os.getpid() == process:
        for name in (path, f"{path}.lock"):
            with contextlib.suppress(OSError):
                os.unlink(name)
        with contextlib.suppress(OSError):  # the folder contains other sockets
            os.rmdir(os.path.dirname(path))
    os.close(lock)


def open_socket_file() -> SocketFile:
    """Listen on a new socket in the first folder that is suitable.

    Raises:
        OSError: no folder is suitable; the text gives the reasons.
    """
    if not SUPPORTED:
        raise OSError("this operating system has none")
    problems: list[str] = []
    for base in _bases():
        for attempt in range(_ATTEMPTS):
            try:
                return _open(_private_folder(base))
            except FileNotFoundError as error:  # perhaps removed by a node that just ended
                if attempt == _ATTEMPTS - 1 or not os.path.isdir(base):
                    problems.append(str(error))
                    break
            except OSError as error:  # not writable, the path is too long, and so on
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
    """Create a file that this process keeps locked; return its descriptor."""
    lock = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.fstat(lock).st_nlink:
            raise FileNotFoundError(f"{path} was removed by another process")
    except BaseException as error:
        os.close(lock)
        if isinstance(error, BlockingIOError):  # another node tests the lock, and then removes the file
            raise FileNotFoundError(f"{path} was removed by another process") from error
        raise
    return lock


def _remove_those_of_the_dead(folder: str) -> None:
    with os.scandir(folder) as entries:
        locks = [entry.path for entry in entries if entry.name.endswith(".lock")]
    for path in locks[:_REMOVED_AT_ONCE]:
        with contextlib.suppress(OSError):  # another node was quicker, or the process is alive
            lock = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path.removesuffix(".lock"))
                os.unlink(path)
            finally:
                os.close(lock)
