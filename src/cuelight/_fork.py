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

    __slots__ = ("generation",)

    def __init__(self) -> None:
        self.generation = 0

    def count(self) -> None:
        """This is a new process."""
        self.generation += 1


forks: Final = Forks()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forks.count)
