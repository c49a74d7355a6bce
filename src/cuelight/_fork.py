"""Detects that this process is a fork of the process that made an object.

After `os.fork()`, a child has only the thread that forked, and shares its parent's sockets and pipes. An object that
has threads, an event loop or processes stores the `generation` in which it was made, and compares it before it waits
for any of them.
"""

from __future__ import annotations

import os
import threading
from typing import Final


class Forks:
    """Counts forks.

    Attributes:
        generation: the number of forks between this process and the first process that loaded this module.
    """

    __slots__ = ("_pid", "_thread", "generation")

    def __init__(self) -> None:
        self.generation = 0
        self._pid = os.getpid()
        self._thread = threading.get_ident()

    def count(self) -> None:
        """Note that this is a new process."""
        self.generation += 1
        self._pid = os.getpid()
        self._thread = threading.get_ident()

    def is_old(self, generation: int) -> bool:
        """Whether an object of this generation was made in another process.

        It is True also immediately after a fork, before the fork is counted: the finalisers of the threads that stayed
        in the parent run at that time.
        """
        return generation != self.generation or os.getpid() != self._pid

    def has_ended(self, thread: int, generation: int) -> bool:
        """Whether a thread of this generation is missing in this process because another thread forked.

        Args:
            thread: its identifier, as returned by `threading.get_ident`.
            generation: the generation in which it was started.
        """
        return self.is_old(generation) and thread != self._thread


forks: Final = Forks()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forks.count)
