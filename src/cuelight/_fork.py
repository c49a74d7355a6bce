"""Whether this process is a fork of the one in which something was made.

After `os.fork()` a child has no thread but the one that has forked, and shares the sockets and pipes of its parent.
What has threads, an event loop or processes keeps the `generation` in which it was made, and compares it before it
waits for any of them.
"""

from __future__ import annotations

import os
from typing import Final

__all__ = ["Forks", "forks"]


class Forks:
    """Counts forks.

    Attributes:
        generation: how many forks lie between this process and the first one that has loaded this module.
    """

    __slots__ = ("_pid", "generation")

    def __init__(self) -> None:
        self.generation = 0
        self._pid = os.getpid()

    def count(self) -> None:
        """This is a new process."""
        self.generation += 1
        self._pid = os.getpid()

    def is_old(self, generation: int) -> bool:
        """Whether something of this generation was made in another process.

        True also in the moment after a fork in which the finalisers of the threads run that were left behind, before
        anything can be counted.
        """
        return generation != self.generation or os.getpid() != self._pid


forks: Final = Forks()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forks.count)
