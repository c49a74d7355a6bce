"""The blocking interface of `DeadLetterQueue`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, Unpack

from cuelight.tasks._blocking import BlockingFace
from cuelight.tasks._dead_letters._entry import DeadLetterEntry, ReplayReport, Target, Which
from cuelight.tasks._dead_letters._sources import PAGE

if TYPE_CHECKING:
    from cuelight.tasks._dead_letters._queue import DeadLetterQueue  # noqa: F401 - in strings; it imports this module
    from cuelight.tasks._task import Attempt

Entries: TypeAlias = list[DeadLetterEntry]
"""Needed because `list` is a method inside the class."""


class BlockingDeadLetterQueue(BlockingFace["DeadLetterQueue"]):
    """Dead letters for blocking code, made by `with DeadLetterQueue() as dlq:`.

    Its methods may be called from any thread. Functions to which letters are replayed run in the event loop of the
    block, so they may be async.
    """

    async def _begin(self) -> None:
        await self._made[0].__aenter__()

    async def _end(self) -> None:
        await self._made[0].__aexit__(None, None, None)

    @property
    def dropped(self) -> int:
        """Blocking version of `DeadLetterQueue.dropped`."""
        handle = self._handle
        return self._do(lambda: handle.dropped)

    def add(
        self,
        payload: Any = None,
        *,
        error: BaseException | str | None = None,
        reason: str = "failed",
        task_type: str = "",
        source: str = "",
        letter_id: str | None = None,
        history: Sequence[Attempt] = (),
    ) -> DeadLetterEntry:
        """Blocking version of `DeadLetterQueue.add`."""
        return self._call(
            self._handle.add,
            payload,
            error=error,
            reason=reason,
            task_type=task_type,
            source=source,
            letter_id=letter_id,
            history=history,
        )

    def list(self, *, limit: int = PAGE, after: int = 0, **which: Unpack[Which]) -> Entries:
        """Blocking version of `DeadLetterQueue.list`."""
        handle = self._handle
        return self._call(lambda: handle.list(limit=limit, after=after, **which))

    def __iter__(self) -> Iterator[DeadLetterEntry]:
        """Iterate over all dead letters, which are fetched in pages."""
        after = 0
        while page := self.list(after=after):
            yield from page
            after = page[-1].sequence

    def get(self, letter_id: str) -> DeadLetterEntry:
        """Blocking version of `DeadLetterQueue.get`."""
        return self._call(self._handle.get, letter_id)

    def count(self, **which: Unpack[Which]) -> int:
        """Blocking version of `DeadLetterQueue.count`."""
        handle = self._handle
        return self._call(lambda: handle.count(**which))

    def edit(self, letter_id: str, payload: Any) -> DeadLetterEntry:
        """Blocking version of `DeadLetterQueue.edit`."""
        return self._call(self._handle.edit, letter_id, payload)

    def replay(self, letter_id: str, *, to: Target | None = None) -> None:
        """Blocking version of `DeadLetterQueue.replay`."""
        self._call(self._handle.replay, letter_id, to=to)

    def replay_all(
        self,
        *,
        to: Target | None = None,
        dry_run: bool = False,
        rate: float | None = None,
        limit: int | None = None,
        **which: Unpack[Which],
    ) -> ReplayReport:
        """As `DeadLetterQueue.replay_all`."""
        handle = self._handle
        return self._call(lambda: handle.replay_all(to=to, dry_run=dry_run, rate=rate, limit=limit, **which))

    def remove(self, letter_id: str) -> bool:
        """Blocking version of `DeadLetterQueue.remove`."""
        return self._call(self._handle.remove, letter_id)

    def purge(self, *, everything: bool = False, **which: Unpack[Which]) -> int:
        """Blocking version of `DeadLetterQueue.purge`."""
        handle = self._handle
        return self._call(lambda: handle.purge(everything=everything, **which))
