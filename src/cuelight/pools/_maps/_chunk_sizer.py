"""The number of items of a map that go to a thread or process at once."""

from __future__ import annotations

TARGET_MS = 10.0
"""Intended run time of a chunk in milliseconds: much longer than the hand-over, too short for a noticeable wait."""
GROWTH = 8
MAX_SIZE = 8192


class ChunkSizer:
    """Adapts the size of chunks to the run time of the last ones.

    Attributes:
        size: number of items in a chunk.
    """

    def __init__(self, fixed: int | None, total: int | None) -> None:
        """Set the size up.

        Args:
            fixed: a fixed size; None adapts the size.
            total: number of all items, if it is known: then the last chunks are smaller, so that all workers end at
                about the same time.
        """
        self.size = fixed or 1
        self._fixed = fixed is not None
        self._total = total

    def next(self, taken: int, workers: int) -> int:
        """The size of the next chunk, after `taken` items."""
        if self._fixed or self._total is None:
            return self.size
        return max(1, min(self.size, (self._total - taken) // (2 * workers)))

    def record(self, items: int, ms: float) -> None:
        """Record that a chunk of `items` items took `ms` milliseconds."""
        if not self._fixed:
            fitting = int(TARGET_MS * items / ms) if ms > 0 else MAX_SIZE
            self.size = max(1, min(fitting, self.size * GROWTH, MAX_SIZE))
