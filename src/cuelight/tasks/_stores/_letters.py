"""The dead letters of a task store."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

from cuelight._dead_letters._attempt import Attempt, last_failure
from cuelight._dead_letters._entry import DeadLetterEntry, LetterFilter
from cuelight._dead_letters._sources import PAGE
from cuelight.errors import TaskNotFound
from cuelight.tasks._arguments import check_store
from cuelight.tasks._functions._values import decode, encode
from cuelight.tasks._stores._protocol import Query, Snapshot, Store
from cuelight.tasks._stores._support import acquire_store, release_store


class StoreLetters:
    """The dead letters of a task store."""

    replayable = True
    dropped = 0

    def __init__(self, store: Store) -> None:
        check_store("DeadLetterQueue(store)", store)
        self._store = store

    async def open(self) -> None:
        await self._store.open()

    async def enter(self) -> None:
        await acquire_store(self._store)

    async def leave(self) -> None:
        await release_store(self._store)

    def add(self, letter: DeadLetterEntry) -> DeadLetterEntry:
        raise TypeError(
            "the dead letters of a task store are tasks that it gave up: add others to a DeadLetterQueue() of their own"
        )

    async def page(self, selected: LetterFilter, after: int, limit: int) -> list[DeadLetterEntry]:
        type_, reason, before = selected.task_type, selected.reason, selected.before
        most = limit if selected.error is None and selected.since is None else PAGE
        found: list[DeadLetterEntry] = []
        while len(found) < limit:
            query = Query(
                state="dead_letter",
                type=type_,
                reason=reason,
                ended_before=before,
                after=after,
                limit=min(most, PAGE),
            )
            snapshots = await self._store.find(query)
            found += [letter for snapshot in snapshots if selected.matches(letter := _letter_of(snapshot))]
            if len(snapshots) < query.limit:
                break
            after = snapshots[-1].sequence
        return found[:limit]

    async def snapshot_limit(self) -> tuple[float, float]:
        # A task keeps its sequence when it is replayed and given up again, so it is not returned twice.
        return inf, self._store.now()

    async def get(self, letter_id: str) -> DeadLetterEntry | None:
        snapshot = (await self._store.get([letter_id]))[0]
        return None if snapshot is None or snapshot.state != "dead_letter" else _letter_of(snapshot)

    async def count(self) -> int:
        return (await self._store.size()).dead_letter

    async def edit(self, letter_id: str, payload: Any) -> bool:
        data = encode(payload, "payload")
        return await self.get(letter_id) is not None and await self._store.edit(letter_id, data)

    async def remove(self, letter_ids: Sequence[str]) -> int:
        # `purge` would also delete completed tasks.
        snapshots = await self._store.get(letter_ids)
        dead = [one.record.id for one in snapshots if one is not None and one.state == "dead_letter"]
        return await self._store.purge(dead)

    async def replay(self, letters: Sequence[DeadLetterEntry]) -> list[Exception | None]:
        accepted = await self._store.replay([letter.id for letter in letters])
        return [
            None if done else TaskNotFound(f"{letter.id} is not a dead letter any more")
            for letter, done in zip(letters, accepted, strict=True)
        ]

    def note(self, letter_id: str, error: Exception) -> None:
        """The history of a task only contains attempts."""


def _letter_of(snapshot: Snapshot) -> DeadLetterEntry:
    record, history = snapshot.record, snapshot.history
    try:
        payload = decode(record.payload)
    except ValueError:
        payload = record.payload  # not written by this library: shown as bytes
    error, trace = last_failure(history)
    last: Attempt | None = history[-1] if history else None
    return DeadLetterEntry(
        id=record.id,
        sequence=snapshot.sequence,
        source=snapshot.worker or ("" if last is None else last.worker),
        task_type=record.type,
        payload=payload,
        reason=snapshot.reason,
        error=error,
        traceback=trace,
        history=history,
        dead_at=snapshot.ended,
        counts=snapshot.counts,
    )
