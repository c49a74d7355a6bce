"""How many items of a map go to a thread or process at once."""

from __future__ import annotations

__all__ = ["Chunks"]

AIM_MS = 10.0
"""A chunk should take about so many milliseconds: much longer than handing it over, too short to be waited for."""
GROWTH = 8
MOST = 8192


class Chunks:
    """Finds the size of chunks from the time that the last ones took.

    Attributes:
        size: items in a chunk.
    """

    def __init__(self, fixed: int | None, total: int | None) -> None:
        """Set it up.

        Args:
            fixed: always so many; None finds out.
            total: how many items there are, if that is known: the last chunks are smaller, so that all workers end
                at about the same time.
        """
        self.size = fixed or 1
        self._fixed = fixed is not None
        self._total = total

    def next(self, taken: int, workers: int) -> int:
        """The size of the next chunk, after `taken` items were taken."""
        if self._fixed or self._total is None:
            return self.size
        return max(1, min(self.size, (self._total - taken) // (2 * workers)))

    def took(self, items: int, ms: float) -> None:
        """A chunk of so many items took so many milliseconds."""
        if not self._fixed:
            fitting = int(AIM_MS * items / ms) if ms > 0 else MOST
            self.size = max(1, min(fitting, self.size * GROWTH, MOST))
