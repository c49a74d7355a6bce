"""The progress of a map, reported to a callback or shown as a bar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from cuelight._log import get_log
from cuelight._text import safe_repr
from cuelight.errors import ends_the_program
from cuelight.pools._attempts import is_async

Progress: TypeAlias = Callable[[int, int | None], object]
"""Called with the number of items done, and the number of all items (None if it is not known)."""

log = get_log("cuelight.pools")


class Reporter:
    """Counts finished items, and reports them."""

    def __init__(self, progress: Progress | bool, total: int | None, name: str) -> None:
        """Set the reporter up.

        Args:
            progress: a callback, or True for a bar.
            total: number of all items, if it is known.
            name: label of the bar.

        Raises:
            ModuleNotFoundError: `progress` is True, and tqdm is not installed.
            TypeError: `progress` is neither a plain callback nor True.
        """
        self._done, self._total = 0, total
        self._bar: Any = None
        if progress is True:
            try:
                from tqdm import tqdm  # noqa: PLC0415 - an extra
            except ModuleNotFoundError as error:
                raise ModuleNotFoundError(
                    "progress=True shows a bar with tqdm, which is not installed: install cuelight[progress], "
                    "or give a callback, progress=lambda done, total: ...",
                    name=error.name,
                ) from error
            self._bar = tqdm(total=total, desc=name)
            self._tell: Progress = lambda done, total: self._bar.update()  # noqa: ARG005
        elif callable(progress) and not is_async(progress):
            self._tell = progress
        else:
            raise TypeError(f"progress={safe_repr(progress)}: give a plain callback (done, total), or True for a bar")

    def advance(self, items: int = 1) -> None:
        """Count finished items, and report each of them."""
        for _ in range(items):
            self._done += 1
            self._tell(self._done, self._total)

    def close(self) -> None:
        """Close the bar. Errors are logged, because no caller is left to handle them."""
        if self._bar is not None:
            try:
                self._bar.close()
            except BaseException as error:
                log.exception("a progress bar could not be closed")
                if ends_the_program(error):
                    raise
