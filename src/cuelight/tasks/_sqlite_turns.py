"""The turns of tenants in SQLite, read at the beginning of a transaction. The ends are read on demand."""

from __future__ import annotations

import sqlite3

import msgspec

from cuelight.tasks._checks import EXACT
from cuelight.tasks._sqlite_rows import lines_of
from cuelight.tasks._turns import Turns


class SQLiteTurns(Turns):
    """`Turns` in SQLite tables."""

    def __init__(self, connection: sqlite3.Connection, queue: int) -> None:
        super().__init__()
        self._run = connection.execute
        self._queue = queue
        self._before: tuple[float, float, str | None] = (0.0, 0.0, None)

    def begin(self, floor: float, top: float, lines: str | None) -> None:
        """Set the values that were read from the row of the queue."""
        self._before = (floor, top, lines)
        sound = 0.0 <= floor <= top < EXACT
        self.floor, self.top = (floor, top) if sound else (0.0, 0.0)
        self.lines = lines_of(lines) if sound else {}

    def end(self) -> None:
        """Write the changes."""
        lines = msgspec.json.encode(self.lines).decode() if self.lines else None
        if (self.floor, self.top, lines) != self._before:
            statement = "UPDATE queues SET floor = ?, top = ?, lines = ? WHERE id = ?"
            self._run(statement, (self.floor, self.top, lines, self._queue))

    def end_of(self, line: str, tenant: str) -> float:
        query = "SELECT until FROM turns WHERE queue = ? AND line = ? AND tenant = ?"
        found = self._run(query, (self._queue, line, tenant)).fetchone()
        return found[0] if found is not None and 0 <= found[0] < EXACT else 0.0

    def keep(self, line: str, tenant: str, end: float) -> None:
        self._run("INSERT OR REPLACE INTO turns VALUES (?, ?, ?, ?)", (self._queue, line, tenant, end))

    def forget(self) -> None:
        statement = "DELETE FROM turns INDEXED BY turns_until WHERE queue = ? AND line = ? AND until <= ?"
        for line, virtual in self.lines.items():
            self._run(statement, (self._queue, line, virtual))

    def forget_all(self) -> None:
        self._run("DELETE FROM turns WHERE queue = ?", (self._queue,))
