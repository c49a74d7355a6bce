"""The statements of the SQLite store: constants, so that each is prepared once.

Each query names the index that it uses. If the index cannot be used any more, the query fails, instead of becoming
slow.
"""

# ruff: noqa: S608 - no statement is made of anything but constants

from typing import Final

_HOT: Final = """id, deadline, meta, story, tasks.seq, state, lane, due, epoch, worker, settled, step, ended, reason,
    cancelling"""
_SELECT: Final = f"SELECT {_HOT}, x'', NULL, turn FROM tasks"
SELECT_ALL: Final = f"SELECT {_HOT}, payload, result, turn FROM tasks"
# A task without a body is damaged, and still there.
JOIN: Final = "LEFT JOIN bodies ON bodies.seq = tasks.seq LEFT JOIN stories ON stories.seq = tasks.seq"
_BY_ID: Final = f"{JOIN} WHERE queue = ? AND id IN (SELECT value FROM json_each(?))"

ROWS: Final = f"{_SELECT} {_BY_ID}"
ROWS_ALL: Final = f"{SELECT_ALL} {_BY_ID}"
READY: Final = f"""{SELECT_ALL} INDEXED BY tasks_ready {JOIN}
    WHERE state = 0 AND lane = ? ORDER BY priority, deadline, turn, tasks.seq LIMIT ?"""
PENDING_IN: Final = f"""{_SELECT} INDEXED BY tasks_ready {JOIN}
    WHERE state = 0 AND lane = ? AND queue = ? ORDER BY priority, deadline, turn, tasks.seq LIMIT ?"""
ODD: Final = f"""{_SELECT} {JOIN}
    WHERE queue = ? AND (state < 0 OR state > 6 OR (due IS NULL AND state IN (1, 3, 4, 5))) LIMIT ?"""
BEYOND: Final = f"""{_SELECT} INDEXED BY tasks_due {JOIN}
    WHERE queue = ? AND state = ? AND due IS NOT NULL AND due >= ? ORDER BY due LIMIT ?"""
NEXT_LANE: Final = (
    """SELECT lane FROM tasks INDEXED BY tasks_ready WHERE state = 0 AND lane > ? ORDER BY lane LIMIT 1"""
)
FIRST_OWNER: Final = """SELECT queue FROM tasks INDEXED BY tasks_ready WHERE state = 0 AND lane = ?
    ORDER BY priority, deadline, turn, seq LIMIT 1"""
UNLISTED: Final = "SELECT seq FROM tasks WHERE seq <= 0 AND queue = ? LIMIT ?"
ADOPT: Final = tuple(
    f"UPDATE OR IGNORE {table} SET queue = ? WHERE queue = ?"
    for table in ("tasks", "lanes", "gates", "uniques", "schedules", "turns")
)
WAITING: Final = """SELECT
    EXISTS (SELECT 1 FROM tasks INDEXED BY tasks_ready WHERE state = 0 AND lane = ?)
        OR EXISTS (SELECT 1 FROM lanes WHERE queue = ?),
    EXISTS (SELECT 1 FROM tasks INDEXED BY tasks_due WHERE queue = ? AND state = 1 AND due IS NOT NULL),
    EXISTS (SELECT 1 FROM tasks INDEXED BY tasks_stuck WHERE queue = ? AND state = 2),
    EXISTS (SELECT 1 FROM tasks INDEXED BY tasks_due WHERE queue = ? AND state = 3 AND due IS NOT NULL)"""
PARKED_AFTER: Final = f"""{_SELECT} INDEXED BY tasks_stuck {JOIN}
    WHERE queue = ? AND state = 2 AND tasks.seq > ? ORDER BY tasks.seq LIMIT ?"""
LANES: Final = "SELECT id, queue FROM lanes WHERE id > ? ORDER BY id LIMIT ?"
NEXT_WAIT: Final = """SELECT waits_on FROM lanes INDEXED BY lanes_first
    WHERE queue = ? AND waits_on > ? ORDER BY waits_on LIMIT 1"""
DUE: Final = f"""{_SELECT} INDEXED BY tasks_due {JOIN}
    WHERE queue = ? AND state = ? AND due IS NOT NULL AND due <= ? ORDER BY due LIMIT ?"""
EXPIRED: Final = f"""{_SELECT} INDEXED BY tasks_deadline {JOIN}
    WHERE queue = ? AND state < 3 AND deadline <= ? AND deadline < 9e999 ORDER BY deadline LIMIT ?"""
LAST: Final = f"""{_SELECT} INDEXED BY tasks_last {JOIN} WHERE queue = ? AND state < 3
    ORDER BY priority DESC, deadline DESC, turn DESC, tasks.seq DESC LIMIT 1"""
# Created when a queue sheds for the first time, because it slows down every task of a queue.
MAKE_LAST: Final = """CREATE INDEX IF NOT EXISTS tasks_last ON tasks (queue, priority, deadline, turn, seq)
    WHERE state < 3"""
PARKED_TYPES: Final = f"""{_SELECT} INDEXED BY tasks_stuck {JOIN}
    WHERE queue = ? AND state = 2 AND type IN (SELECT value FROM json_each(?)) ORDER BY tasks.seq"""
PARKED_TYPE: Final = f"""{_SELECT} INDEXED BY tasks_stuck {JOIN}
    WHERE queue = ? AND state = 2 AND type = ? ORDER BY tasks.seq"""
CLAIMED: Final = f"{SELECT_ALL} {JOIN} WHERE tasks.seq IN (SELECT value FROM json_each(?))"
NEXT_DUE: Final = """SELECT
    (SELECT min(due) FROM tasks INDEXED BY tasks_due WHERE queue = ? AND state = 1 AND due IS NOT NULL),
    (SELECT min(due) FROM tasks INDEXED BY tasks_due WHERE queue = ? AND state = 3 AND due IS NOT NULL),
    (SELECT min(deadline) FROM tasks INDEXED BY tasks_deadline WHERE queue = ? AND state < 3 AND deadline < 9e999),
    (SELECT min(due) FROM gates WHERE queue = ? AND due IS NOT NULL)"""
FIRST_LANE: Final = """SELECT id, keys, waits_on, priority, deadline, turn, seq FROM lanes INDEXED BY lanes_first
    WHERE queue = ? AND waits_on = ? ORDER BY priority, deadline, turn, seq LIMIT 1"""
GATES_DUE: Final = """SELECT key FROM gates WHERE queue = ? AND due IS NOT NULL AND due <= ? ORDER BY due LIMIT ?"""
OVER: Final = """SELECT seq FROM tasks INDEXED BY tasks_due
    WHERE queue = ? AND state = ? AND due IS NOT NULL AND due < ? ORDER BY due LIMIT ?"""
NOT_OVER: Final = "(state NOT IN (4, 5) OR due >= ?)"
COUNT_OVER: Final = """SELECT
    (SELECT count(*) FROM tasks INDEXED BY tasks_due WHERE queue = ? AND state = 4 AND due IS NOT NULL AND due < ?),
    (SELECT count(*) FROM tasks INDEXED BY tasks_due WHERE queue = ? AND state = 5 AND due IS NOT NULL AND due < ?)"""
DELETE: Final = (
    "DELETE FROM tasks WHERE seq = ?",
    "DELETE FROM bodies WHERE seq = ?",
    "DELETE FROM stories WHERE seq = ?",
)
FORGET_UNIQUES: Final = """DELETE FROM uniques WHERE queue = ? AND key IN
    (SELECT key FROM uniques WHERE queue = ? AND until < ? AND until < 9e999 ORDER BY until LIMIT ?)"""
FORGET_CLAIMS: Final = """DELETE FROM claims WHERE rowid IN
    (SELECT rowid FROM claims WHERE queue = ? AND until < ? ORDER BY until LIMIT ?)"""
SEQUENCES: Final = """SELECT 0 UNION ALL SELECT sequence FROM file UNION ALL SELECT max(seq) FROM tasks
    UNION ALL SELECT max(seq) FROM bodies UNION ALL SELECT max(seq) FROM stories"""
HOLDER: Final = "SELECT id, until FROM uniques WHERE queue = ? AND key = ? AND until > ?"
UNFINISHED: Final = "SELECT 1 FROM tasks INDEXED BY tasks_id WHERE queue = ? AND id = ? AND state < 4"
LANE_BY_ID: Final = "SELECT id, keys, waits_on, priority, deadline, turn, seq FROM lanes WHERE id = ?"
LANE_BY_KEYS: Final = """SELECT id, keys, waits_on, priority, deadline, turn, seq FROM lanes
    WHERE queue = ? AND keys = ?"""
SAVE_LANE: Final = "UPDATE lanes SET waits_on = ?, priority = ?, deadline = ?, turn = ?, seq = ? WHERE id = ?"
INSERT: Final = """INSERT INTO tasks (seq, queue, id, type, state, lane, priority, deadline, due, turn)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
_CHANGE: Final = """UPDATE tasks SET state = ?, lane = ?, due = ?, epoch = ?, worker = ?, settled = ?, step = ?,
    ended = ?, reason = ?, cancelling = ?, result = ?"""
UPDATE: Final = f"{_CHANGE} WHERE seq = ?"
UPDATE_ALIKE: Final = f"{_CHANGE} WHERE seq IN (SELECT value FROM json_each(?))"
SAVE_GATE: Final = "INSERT OR REPLACE INTO gates VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
