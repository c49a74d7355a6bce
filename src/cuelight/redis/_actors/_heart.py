"""Renews the lease of a node and detects expired leases of others, in a thread: a blocked loop is not a dead node.

Invariants:
1. The lease is renewed every fifth of its length while the server answers, even if the loop is blocked.
2. A node does not declare others lost if it was itself out of touch just before: after an outage, all have a chance to
   renew.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from cuelight._log import get_log
from cuelight._text import safe_str
from cuelight.coordination._spread import spread
from cuelight.redis._actors._directory import Directory

log = get_log("cuelight.redis")

BEATS: Final = 5
"""Beats in one lease."""


class Listener(Protocol):
    """Callbacks of a heart, called in its thread."""

    def others(self) -> Sequence[str]:
        """Return the identities of the nodes to check."""
        ...

    def were_gone(self, identities: list[str]) -> None:
        """Handle that some of them are no longer members."""
        ...

    def was_expelled(self) -> None:
        """Handle that this node is no longer a member."""
        ...


class Heart:
    """The thread that renews the lease of one membership.

    Attributes:
        renewed: the time at which the last successful beat was sent, on `time.monotonic`.
    """

    def __init__(self, directory: Directory, lease: float, listener: Listener) -> None:
        self._directory, self._lease, self._listener = directory, lease, listener
        self.renewed = math.inf
        self._away = False
        self._closed = threading.Event()
        name = f"cuelight heart of {directory.identity}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self, joined: float) -> None:
        """Start the thread.

        Args:
            joined: the earliest time at which the lease began.
        """
        self.renewed = joined
        self._thread.start()

    @property
    def overdue(self) -> bool:
        """Whether the other nodes may take this one for lost."""
        return time.monotonic() - self.renewed > self._lease * 0.9

    def close(self) -> None:
        """End the thread soon."""
        self._closed.set()

    def join(self) -> None:
        """Wait until the thread has ended, at most for the duration of one call to the server. Blocks."""
        self._thread.join()

    def _run(self) -> None:
        pause = self._lease / BEATS
        while not self._closed.wait(pause):
            try:
                pause = self._beat()
            except BaseException as error:  # any error: the lease continues to run, and so must this thread
                if not self._away and not self._closed.is_set():
                    log.warning(
                        "%s cannot renew its lease, and goes on trying: %s", self._directory.identity, safe_str(error)
                    )
                self._away = True
                pause = self._lease / BEATS * spread.uniform(0.3, 0.6)

    def _beat(self) -> float:
        """Renew the lease and report the result. Returns the seconds until the next beat."""
        began, before = time.monotonic(), self.renewed
        beat = self._directory.beat(self._listener.others())
        if not beat.member:
            self._tell(self._listener.was_expelled)
            self._closed.set()
            return 0.0
        self.renewed, self._away = began, False
        gone = beat.gone
        in_touch = began - before < self._lease / 2
        if in_touch:
            gone = gone + [one for one in beat.expired if self._directory.bury(one)]
        if gone:
            self._tell(lambda: self._listener.were_gone(gone))
        pause = self._lease / BEATS
        if beat.soonest is not None and in_touch:
            pause = min(pause, max(0.01, beat.soonest + 0.005))
        return pause

    def _tell(self, what: Callable[[], None]) -> None:
        if not self._closed.is_set():
            what()
