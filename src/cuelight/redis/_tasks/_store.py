"""The store that keeps tasks on a Redis or Valkey server.

Adds of one loop that are requested while another one is under way are sent together after it, because most of the cost
of an add is the same for one task and for a hundred. A single producer loses nothing: its add is sent at once.

Invariants of the adds:
1. At most one add is under way. A caller that finds none leads: it sends its own add, and all waiting ones with the
   same bounds.
2. If a leader is cancelled, the adds that it sent for others go to the next leader, which sends them again. Each record
   carries a nonce, so the server recognises the same enqueue.
3. While a caller waits, there is a leader.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

import anyio
import msgspec

from cuelight._log import get_log
from cuelight.errors import StoreRefused, StoreUnavailable
from cuelight.mailbox import Slot, new_slot, running_loop
from cuelight.mailbox._backend import yield_now
from cuelight.redis._client import RedisClient, publishing_command
from cuelight.redis._tasks import _scripts as steps
from cuelight.redis._tasks._encoding import (
    CorruptTask,
    encode_limit,
    encode_task,
    leases_of,
    schedule_of,
    snapshot_of_corrupt,
    snapshots_of,
)
from cuelight.redis._tasks._hand_overs import HandOvers
from cuelight.redis._tasks._notifications import ChangeNotifications
from cuelight.redis._tasks._scripts import ScriptCall
from cuelight.redis._tasks._server_steps import ServerSteps
from cuelight.tasks import Added, Beat, Bound, Claim, Exchange, Finish, Limit, Query, Record, Schedule, Size, Snapshot
from cuelight.tasks._stores._checks import (
    KINDS,
    check_beat,
    check_control,
    check_exchange,
    check_ids,
    check_pause,
    check_query,
    check_record,
    check_schedule,
    check_set_limit,
)
from cuelight.tasks._stores._rows import STATES

if TYPE_CHECKING:
    from cuelight.redis._client import Server


MAX_RECORDS: Final = 500
"""The greatest number of records that are sent together."""

_BECOME_LEADER: Final = object()

Bounds = tuple[int, bool]
Send = Callable[[Bounds, list[Any], list[bytes]], Awaitable[Sequence[Any]]]
"""Sends encoded tasks and their blobs under a bound. The answer has two values for each task."""


class _PendingAdd:
    __slots__ = ("blobs", "bounds", "slot", "task_rows")

    def __init__(self, bounds: Bounds, task_rows: list[Any], blobs: list[bytes]) -> None:
        self.bounds, self.task_rows, self.blobs = bounds, task_rows, blobs
        self.slot: Slot | None = None  # the slot on which its caller waits; None for the leader

    @property
    def is_abandoned(self) -> bool:
        """Whether its caller no longer waits."""
        return self.slot is not None and self.slot.done()


class AddBatcher:
    """The adds of one store in one loop."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._waiting: deque[_PendingAdd] = deque()
        self._is_led = False

    async def add(self, bounds: Bounds, task_rows: list[Any], blobs: list[bytes]) -> Sequence[Any]:
        """Send encoded tasks, alone or with others. Returns the answers to these tasks. A checkpoint."""
        pending_add = _PendingAdd(bounds, task_rows, blobs)
        if self._is_led:
            answer = await self._wait(pending_add)
            if answer is not _BECOME_LEADER:
                if isinstance(answer, Exception):
                    raise answer
                found: Sequence[Any] = answer
                return found
        self._is_led = True
        return await self._lead(pending_add)

    async def _wait(self, pending_add: _PendingAdd) -> Any:
        pending_add.slot = slot = new_slot()
        self._waiting.append(pending_add)
        try:
            return await slot
        except BaseException:
            if slot.done() and not slot.cancelled() and slot.result() is _BECOME_LEADER:
                self._pass_on()  # cancelled just after it became the leader
            raise

    async def _lead(self, pending_add: _PendingAdd) -> Sequence[Any]:
        pending_add.slot = None
        others = self._take_matching(pending_add)
        task_rows, blobs = list(pending_add.task_rows), list(pending_add.blobs)
        for other in others:
            task_rows += other.task_rows
            blobs += other.blobs
        try:
            answers = await self._send(pending_add.bounds, task_rows, blobs)
        except Exception as error:
            for other in others:
                _deliver(other, _copy_of_error(error))
            raise
        except BaseException:
            self._waiting.extendleft(reversed(others))
            raise
        else:
            at = 2 * len(pending_add.task_rows)
            for other in others:
                _deliver(other, answers[at : at + 2 * len(other.task_rows)])
                at += 2 * len(other.task_rows)
            return answers[: 2 * len(pending_add.task_rows)]
        finally:
            self._pass_on()

    def _take_matching(self, pending_add: _PendingAdd) -> list[_PendingAdd]:
        """Take the waiting adds that can be sent with this one, in their order."""
        found: list[_PendingAdd] = []
        room = MAX_RECORDS - len(pending_add.task_rows)
        while self._waiting:
            first = self._waiting[0]
            if not first.is_abandoned:
                if first.bounds != pending_add.bounds or len(first.task_rows) > room:
                    break
                room -= len(first.task_rows)
                found.append(first)
            self._waiting.popleft()
        return found

    def _pass_on(self) -> None:
        """Make the next waiting caller the leader, if there is one."""
        while self._waiting:
            first = self._waiting.popleft()
            if not first.is_abandoned:
                _deliver(first, _BECOME_LEADER)
                return
        self._is_led = False


def _deliver(pending_add: _PendingAdd, answer: Any) -> None:
    slot = pending_add.slot
    if slot is not None and not slot.done():
        slot.set_result(answer)


def _copy_of_error(error: Exception) -> Exception:
    """Return an error of its own for another task, so that their tracebacks do not mix."""
    return type(error)(*error.args) if isinstance(error, StoreUnavailable) else error


log = get_log("cuelight.tasks")

_KIND: Final = {kind: number for number, kind in enumerate(KINDS)}
MAX_IDS_PER_STEP: Final = 1000
"""The greatest number of task identifiers in one step of the server."""
CLOSE_TIMEOUT: Final = 1.0
"""Seconds that closing waits for the server."""
_DRIFT: Final = 0.001
"""Seconds by which a slow reply may set back the estimated time of the server."""


class RedisStore(ServerSteps):
    """Keeps the tasks of one queue on a Redis (6.2 or newer) or Valkey server, for any number of processes.

    Each step is one script on the server, which takes effect completely or not at all, by the clock of the server. A
    call that is cancelled while it waits may take effect all the same; repeating it changes nothing more. Calls that
    are made at the same time are sent together.

    `durable` means that nothing is lost when all client processes are killed. Losses when the server itself ends depend
    on the server and its configuration:

    * appendonly yes, appendfsync always: nothing that was acknowledged is lost, unless a disk breaks. * appendonly yes,
    appendfsync everysec: nothing is lost when the server process is killed; the last second or two when its machine
    loses power. * snapshots only, or neither: everything since the last snapshot is lost, or everything. * when a
    replica is promoted: all changes that had not reached it are lost. A task that was added in that time is gone, and a
    task that was finished runs again; its epoch may then be used a second time. `min-replicas-to-write` makes that time
    short.

    The server must not evict keys: set maxmemory-policy noeviction. A queue is refused if part of it was evicted.

    A queue without waiting tasks, running tasks and dead letters is deleted by itself a day after its last result,
    unless it is paused, closed, or has an overridden limit or a schedule.
    """

    durable = True
    overlap = 2

    def __init__(
        self,
        server: Server | str,
        queue: str = "default",
        *,
        prefix: str = "cuelight",
        clock: Callable[[], float] | None = None,
    ) -> None:
        """Create the store of a queue; nothing is sent before `open`.

        Args:
            server: a client, which stays open when the store is closed, or a URL such as "redis://localhost:6379".
            queue: the name of the queue on the server.
            prefix: the prefix of all keys, which separates applications.
            clock: returns seconds since the epoch, instead of the server's clock; for tests.

        Raises:
            ValueError: a name is empty, or the URL is invalid.
        """
        super().__init__(server, queue, prefix, clock)
        self._notifications = ChangeNotifications(self._channel, self._subscribe_changes)
        self._hand_overs = HandOvers(self._channel, self.now, self._notifications.notify)
        self._adds: WeakKeyDictionary[Any, AddBatcher] = WeakKeyDictionary()  # by loop
        self._nonce, self._numbers = secrets.token_hex(8), count(1)

    async def open(self) -> None:
        """Check that the server can be reached and that the stored data belongs to a task queue. A checkpoint.

        Raises:
            StoreRefused: a key is of another type, the data is of a newer version, or the server requires credentials.
            StoreUnavailable: the server cannot be reached.
        """
        with self._in_time("open"):
            await steps.check_keys(self._server, self._keys)
            self._publish = await publishing_command(self._server)
            await self._send(ScriptCall(steps.QUERY, ["size", False]))
        self._is_open = True
        self._notifications.open()

    async def close(self) -> None:
        """Refuse all later calls with `PoolClosed`. A checkpoint.

        Calls that are under way continue. A client that was passed in stays open.
        """
        if not self._is_open:
            await yield_now()
            return
        self._is_open = False
        self._notifications.close()
        self._hand_overs.close()
        try:
            # If the server is away, the keys of an idle queue stay until a store opens and closes again.
            with anyio.move_on_after(CLOSE_TIMEOUT), suppress(StoreUnavailable, StoreRefused):
                await self._send(ScriptCall(steps.CHANGE, ["leave", "", []]))
        finally:
            if isinstance(self._server, RedisClient) and self._url is not None:
                mine, self._server = self._server, RedisClient(self._url)  # for a later `open`
                with anyio.CancelScope(shield=True):
                    await mine.aclose()

    # Making steps

    async def _step(self, call: ScriptCall) -> steps.ScriptReply:
        """Make a step after which its caller may wait for changes."""
        self._check_open()
        self._notifications.reading()
        reply = await self._send(call)
        self._notifications.observe(reply)
        return reply

    async def _change(self, which: str, *args: Any, blobs: Sequence[bytes] = ()) -> Any:
        """Make a step that answers the same when it is sent again."""
        nonce = f"{self._nonce}:{next(self._numbers)}"
        return (await self._step(ScriptCall(steps.CHANGE, [which, nonce, args], blobs))).answer

    async def _each(self, which: str, ids: Sequence[str]) -> list[Any]:
        """Make a step for many tasks, split into several: the server does nothing else during a step."""
        return [await self._change(which, some) for some in _slices(ids)]

    async def _subscribe_changes(self, kind: str, version: int, claimable_version: int) -> bool:
        reply = await self._send(ScriptCall(steps.SUBSCRIBE, [kind, version, claimable_version]))
        if not reply.answer:
            self._notifications.reset(reply)
        return bool(reply.answer)

    # Calls of producers

    async def add(self, records: Sequence[Record], bound: Bound | None = None) -> list[Added]:
        self._check_open()
        for record in records:
            check_record(record)
        task_rows: list[Any] = []
        blobs: list[bytes] = []
        for record in records:
            # Without a nonce, an enqueue that is sent again after a lost answer would count as another one.
            task_row, blob = encode_task(record, record.nonce or f"{self._nonce}:{next(self._numbers)}")
            task_rows.append(task_row)
            blobs.append(blob)
        bounds = (-1, False) if bound is None else (bound.most, bound.shed)
        loop = running_loop()
        batcher = self._adds.get(loop)
        if batcher is None:
            batcher = self._adds[loop] = AddBatcher(self._add)
        outcomes = await batcher.add(bounds, task_rows, blobs)
        return [Added(*outcomes[at : at + 2]) for at in range(0, len(outcomes), 2)]

    async def _add(self, bounds: tuple[int, bool], task_rows: list[Any], blobs: list[bytes]) -> Sequence[Any]:
        outcomes: Sequence[Any] = (await self._step(ScriptCall(steps.ADD, [task_rows, *bounds], blobs))).answer
        return outcomes

    # Calls of workers

    async def exchange(self, finishes: Sequence[Finish], claim: Claim | None = None) -> Exchange:
        self._check_open()
        check_exchange(finishes, claim)
        task_rows: list[Any] = []
        blobs: list[bytes] = []
        for finish in finishes:
            result = 0
            if finish.kind == "done" and finish.result is not None:
                blobs.append(finish.result)
                result = len(blobs)
            pause = False if finish.pause_key is None else finish.pause_key
            attempt = False if finish.attempt is None else finish.attempt
            task_rows.append((finish.id, finish.epoch, _KIND[finish.kind], finish.delay, result, attempt, pause))
        if claim is None:
            reply = await self._step(ScriptCall(steps.EXCHANGE, [task_rows, False], blobs))
            return Exchange(_states(reply.answer[0]), [])
        channel, earlier = self._hand_overs.begin(claim)
        confirmed = [part for lease in claim.confirmed for part in lease]
        asked = (claim.worker, claim.nonce, claim.most, claim.lease, channel, earlier, confirmed)
        reply = await self._send(ScriptCall(steps.EXCHANGE, [task_rows, asked], blobs))
        outcomes, wake_at, wants_tasks = reply.answer
        self._notifications.observe(reply, claimed=True, wants_tasks=wants_tasks)
        waits = self._hand_overs.answered(claim, earlier, waits=wants_tasks and not reply.parts)
        exchange = Exchange(_states(outcomes), [], wake_at, waits)
        corrupt: list[CorruptTask] = []
        for lease in leases_of(reply.parts):
            if isinstance(lease, CorruptTask):
                corrupt.append(lease)
            else:
                exchange.leases.append(lease)
        if corrupt:
            await self._dead_letter_corrupt(corrupt)
        return exchange

    async def _dead_letter_corrupt(self, corrupt: Sequence[CorruptTask]) -> None:
        """Move unreadable tasks to the dead letters; otherwise the next claim would find them again."""
        for one in corrupt:
            log.error("%r: a task is a dead letter now, %s", self, one)
        parts, whys = [one.part for one in corrupt], [one.why for one in corrupt]
        await self._change("dead_letter_corrupt", parts, whys, blobs=[one.row for one in corrupt])

    async def _snapshots(self, call: ScriptCall) -> tuple[list[Snapshot], Any]:
        """Return the tasks in the answer to a query, and the rest of the answer. Unreadable tasks become dead letters
        first.
        """
        reply = await self._step(call)
        found = list(snapshots_of(reply.parts))
        corrupt = [one for one in found if isinstance(one, CorruptTask)]
        if corrupt:
            await self._dead_letter_corrupt(corrupt)
            reply = await self._step(call)
            found = list(snapshots_of(reply.parts))
        snapshots = [one if isinstance(one, Snapshot) else snapshot_of_corrupt(one) for one in found]
        return snapshots, reply.answer

    def beat(self, worker: str, leases: Sequence[tuple[str, int]], lease: float | None) -> Beat:
        self._check_open()
        check_beat(lease)
        asked: list[Any] = [worker, -1 if lease is None else lease]
        for pair in leases:
            asked.extend(pair)
        call = ScriptCall(steps.RENEW, asked)
        reply = self._send_blocking(call)
        self._notifications.observe(reply, claimed=True)
        answer = Beat([], [])
        for pair, state in zip(leases, reply.answer, strict=True):
            if state:
                (answer.lost if state == 2 else answer.cancelled).append(pair)
        return answer

    async def save(
        self, task_id: str, epoch: int, *, progress: bytes | None = None, checkpoint: bytes | None = None
    ) -> bool:
        blobs = [blob for blob in (progress, checkpoint) if blob is not None]
        args = [task_id, epoch, progress is not None, checkpoint is not None]
        reply = await self._step(ScriptCall(steps.CHANGE, ["save", "", args], blobs))
        return bool(reply.answer)

    # Calls of operators

    async def cancel(self, ids: Sequence[str]) -> list[str]:
        answers: list[list[str]] = await self._each("cancel", ids)
        return [outcome for some in answers for outcome in some]

    async def unpark(self, types: Sequence[str]) -> int:
        number = after = 0
        while after >= 0:
            some, after = await self._change("unpark", dict.fromkeys(types, True), after)
            number += some
        return number

    async def control(self, *, paused: bool | None = None, closed: bool | None = None) -> None:
        self._check_open()
        check_control(paused, closed)
        await self._change("control", *(-1 if wanted is None else int(wanted) for wanted in (paused, closed)))

    async def set_limit(self, limit: Limit | None, key: str) -> None:
        self._check_open()
        check_set_limit(limit, key)
        await self._change("set_limit", key, False if limit is None else encode_limit(limit))

    async def pause_limit(self, key: str, seconds: float) -> None:
        self._check_open()
        check_pause(key, seconds)
        await self._change("pause_limit", key, seconds)

    async def put_schedule(self, schedule: Schedule) -> None:
        self._check_open()
        check_schedule(schedule)
        record = schedule.record
        task_row, _ = encode_task(record, record.nonce)
        blob = encode_task(_without_nonce(record), "")[1]
        await self._change("put_schedule", schedule.name, schedule.spec, schedule.due, task_row, blobs=[blob])

    async def remove_schedule(self, name: str) -> bool:
        return bool(await self._change("remove_schedule", name))

    async def schedules(self) -> list[Schedule]:
        reply = await self._step(ScriptCall(steps.QUERY, ["schedules", False]))
        found = [
            schedule_of(*of, *reply.parts[2 * at : 2 * at + 2])  # name, spec, due; row, record
            for at, of in enumerate(reply.answer)
        ]
        return sorted(found, key=lambda schedule: (schedule.due, schedule.name))

    async def fire(self, name: str, due: float, next_due: float) -> bool:
        return bool(await self._change("fire", name, due, next_due))

    async def get(self, ids: Sequence[str]) -> list[Snapshot | None]:
        snapshots: list[Snapshot | None] = []
        for some in _slices(ids):
            found, answer = await self._snapshots(ScriptCall(steps.QUERY, ["get", some]))
            rest = iter(found)
            snapshots.extend(next(rest) if there else None for there in answer)
        return snapshots

    async def size(self) -> Size:
        sizes, paused, closed = (await self._step(ScriptCall(steps.QUERY, ["size", False]))).answer
        return Size(**dict(zip(STATES, sizes, strict=True)), paused=paused, closed=closed)

    async def find(self, query: Query) -> list[Snapshot]:
        """See `Store.find`. If very many tasks must be searched, it takes several steps of the server."""
        self._check_open()
        check_query(query)
        found: list[Snapshot] = []
        state = -1 if query.state is None else STATES.index(query.state)
        after = query.after
        while after >= 0 and len(found) < query.limit:
            asked: dict[str, Any] = {"state": state, "after": after, "limit": query.limit - len(found)}
            for name in ("type", "reason", "ended_before"):
                if getattr(query, name) is not None:
                    asked[name] = getattr(query, name)
            some, after = await self._snapshots(ScriptCall(steps.QUERY, ["find", asked]))
            found.extend(some)
        return found

    async def replay(self, ids: Sequence[str]) -> list[bool]:
        answers: list[list[bool]] = await self._each("replay", ids)
        return [outcome for some in answers for outcome in some]

    async def edit(self, task_id: str, payload: bytes) -> bool:
        return bool(await self._change("edit", task_id, blobs=[payload]))

    async def purge(self, ids: Sequence[str]) -> int:
        answers: list[int] = await self._each("purge", ids)
        return sum(answers)

    def version(self) -> int:
        return self._notifications.version

    async def changed(self, since: int, timeout: float) -> None:
        self._check_open()
        try:
            await self._hand_overs.listen(self._server)
            await self._notifications.changed(self._server, since, timeout)
        except StoreUnavailable:
            if self._is_open:
                raise


def _slices(ids: Sequence[str]) -> list[list[str]]:
    check_ids(ids)
    return [list(ids[at : at + MAX_IDS_PER_STEP]) for at in range(0, max(1, len(ids)), MAX_IDS_PER_STEP)]


def _states(outcomes: Sequence[int]) -> list[str]:
    return ["" if state < 0 else STATES[state] for state in outcomes]


def _without_nonce(record: Record) -> Record:
    return msgspec.structs.replace(record, nonce="")
