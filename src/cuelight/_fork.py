"""Whether this process is a fork of the one in which something was made.

After `os.fork()` a child has no thread but the one that has forked, and shares the sockets and pipes of its parent.
What has threads, an event loop or processes keeps the `generation` in which it was made, and compares it before it
waits for any of them.
"""

from __future__ import annotations

import os
import threading
from typing import Final

__all__ = ["Forks", "forks"]


class Forks:
    """Counts forks.

    Attributes:
        generation: how many forks lie between this process and the first one that has loaded this module.
    """

    __slots__ = ("_pid", "_thread", "generation")

    def __init__(self) -> None:
        self.generation = 0
        self._pid = os.getpid()
        self._thread = threading.get_ident()

    def count(self) -> None:
        """This is a new process."""
        self.generation += 1
        self._pid = os.getpid()
        self._thread = threading.get_ident()

    def is_old(self, generation: int) -> bool:
        """Whether something of this generation was made in another process.

        True also in the moment after a fork in which the finalisers of the threads run that were left behind, before
        anything can be counted.
        """
        return generation != self.generation or os.getpid() != self._pid

    def has_ended(self, thread: int, generation: int) -> bool:
        """Whether a thread of this generation does not run in this process: another thread than it has forked.

        Args:
            thread: its identifier, as of `threading.get_ident`.
            generation: the one in which it was started.
        """
        return self.is_old(generation) and thread != self._thread


forks: Final = Forks()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forks.count)
