"""Iteration over dead letters in pages. These are not generators, so that a loop over them can stop at any time."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from math import inf
from typing import Self

from cuelight._dead_letters._entry import DeadLetterEntry, LetterFilter
from cuelight._dead_letters._sources import PAGE, LetterSource


class PageIterator:
    """The selected letters in non-empty pages."""

    def __init__(
        self,
        letters: LetterSource,
        selected: LetterFilter,
        *,
        ready: Callable[[], Awaitable[None]],
        until: tuple[float, float] = (inf, inf),
        limit: int | None = None,
    ) -> None:
        """Prepare to iterate in the order of `sequence`.

        Args:
            letters: the source of the letters.
            selected: the conditions.
            ready: awaited before each page.
            until: the greatest sequence and the latest `dead_at` of the letters to return.
            limit: the maximum number of letters.
        """
        self._letters, self._selected, self._ready = letters, selected, ready
        self._until, self._left = until, inf if limit is None else limit
        self._after = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[DeadLetterEntry]:
        sequence, time = self._until
        while self._left > 0 and self._after < sequence:
            await self._ready()
            page = await self._letters.page(self._selected, self._after, int(min(PAGE, self._left)))
            if not page:
                break
            self._after = page[-1].sequence
            wanted = [letter for letter in page if letter.sequence <= sequence and letter.dead_at <= time]
            self._left -= len(wanted)
            if wanted:
                return wanted
        raise StopAsyncIteration


class LetterIterator:
    """The letters of pages, one at a time."""

    def __init__(self, pages: PageIterator) -> None:
        self._pages = pages
        self._page: deque[DeadLetterEntry] = deque()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> DeadLetterEntry:
        if not self._page:
            self._page.extend(await anext(self._pages))
        return self._page.popleft()
