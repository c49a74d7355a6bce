"""The store that keeps tasks on a Redis or Valkey server.

Combines the adds of one loop: adds that are requested while another one is under way are sent together after it.

Most of the cost of an add is the same for one task and for a hundred. Therefore many producers gain. A single producer
loses nothing, because its add is sent at once.

The invariants:

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
from cuelight.redis._tasks._encoding import Unreadable, card_of, leases_of, limit_card, schedule_of, shown, snapshots_of
from cuelight.redis._tasks._hand_overs import HandOvers
from cuelight.redis._tasks._notifications import Hints
from cuelight.redis._tasks._scripts import Call
from cuelight.redis._tasks._server_steps import Steps
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


MOST: Final = 500
"""The greatest number of records that are sent together."""

_LEAD: Final = object()

Bounds = tuple[int, bool]
Send = Callable[[Bounds, list[Any], list[bytes]], Awaitable[Sequence[Any]]]
"""Sends cards and their blobs under a bound. The answer has two values for each card."""


class _Wish:
    __slots__ = ("blobs", "bounds", "cards", "slot")

    def __init__(self, bounds: Bounds, cards: list[Any], blobs: list[bytes]) -> None:
        self.bounds, self.cards, self.blobs = bounds, cards, blobs
        self.slot: Slot | None = None  # the slot on which its caller waits; None for the leader

    @property
    def fail_deferred(self) -> bool:
        """Whether its caller no longer waits."""
        return self.slot is not None and self.slot.done()


class Together:
    """The adds of one store in one loop."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._waiting: deque[_Wish] = deque()
        self._is_led = False

    async def add(self, bounds: Bounds, cards: list[Any], blobs: list[bytes]) -> Sequence[Any]:
        """Send cards, alone or with others. Returns the answers to these cards. A checkpoint."""
        wish = _Wish(bounds, cards, blobs)
        if self._is_led:
            answer = await self._wait(wish)
            if answer is not _LEAD:
                if isinstance(answer, Exception):
                    raise answer
                found: Sequence[Any] = answer
                return found
        self._is_led = True
        return await self._lead(wish)

    async def _wait(self, wish: _Wish) -> Any:
        wish.slot = slot = new_slot()
        self._waiting.append(wish)
        try:
            return await slot
        except BaseException:
            if slot.done() and not slot.cancelled() and slot.result() is _LEAD:
                self._pass_on()  # cancelled just after it became the leader
            raise

    async def _lead(self, wish: _Wish) -> Sequence[Any]:
        wish.slot = None
        others = self._alike(wish)
        cards, blobs = list(wish.cards), list(wish.blobs)
        for other in others:
            cards += other.cards
            blobs += other.blobs
        try:
            answers = await self._send(wish.bounds, cards, blobs)
        except Exception as error:
            for other in others:
                _give(other, _again(error))
            raise
        except BaseException:
            self._waiting.extendleft(reversed(others))
            raise
        else:
            at = 2 * len(wish.cards)
            for other in others:
                _give(other, answers[at : at + 2 * len(other.cards)])
                at += 2 * len(other.cards)
            return answers[: 2 * len(wish.cards)]
        finally:
            self._pass_on()

    def _alike(self, wish: _Wish) -> list[_Wish]:
        """Take the waiting adds that can be sent with this one, in their order."""
        found: list[_Wish] = []
        room = MOST - len(wish.cards)
        while self._waiting:
            first = self._waiting[0]
            if not first.fail_deferred:
                if first.bounds != wish.bounds or len(first.cards) > room:
                    break
                room -= len(first.cards)
                found.append(first)
            self._waiting.popleft()
        return found

    def _pass_on(self) -> None:
        """Make the next waiting caller the leader, if there is one."""
        while self._waiting:
            first = self._waiting.popleft()
            if not first.fail_deferred:
                _give(first, _LEAD)
                return
        self._is_led = False


def _give(wish: _Wish, answer: Any) -> None:
    slot = wish.slot
    if slot is not None and not slot.done():
        slot.set_result(answer)


def _again(error: Exception) -> Exception:
    """Return an error of its own for another task, so that their tracebacks do not mix."""
    return type(error)(*error.args) if isinstance(error, StoreUnavailable) else error


log = get_log("cuelight.tasks")

_KIND: Final = {kind: number for number, kind in enumerate(KINDS)}
_AT_ONCE: Final = 1000
"""The greatest number of task identifiers in one step of the server."""
_LEAVING: Final = 1.0
"""Seconds that closing waits for the server."""
_DRIFT: Final = 0.001
"""Seconds by which a slow reply may set back the estimated time of the server."""


class RedisStore(Steps):
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
        self._hints = Hints(self._channel, self._arm)
        self._hand_overs = HandOvers(self._channel, self.now, self._hints.notify)
        self._adds: WeakKeyDictionary[Any, Together] = WeakKeyDictionary()  # by loop
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
            await self._send(Call(steps.ASK, ["size", False]))
        self._is_open = True
        self._hints.open()

    async def close(self) -> None:
        """Refuse all later calls with `PoolClosed`. A checkpoint.

        Calls that are under way continue. A client that was passed in stays open.
        """
        if not self._is_open:
            await yield_now()
            return
        self._is_open = False
        self._hints.close()
        self._hand_overs.close()
        try:
            # If the server is away, the keys of an idle queue stay until a store opens and closes again.
            with anyio.move_on_after(_LEAVING), suppress(StoreUnavailable, StoreRefused):
                await self._send(Call(steps.CHANGE, ["leave", "", []]))
        finally:
            if isinstance(self._server, RedisClient) and self._url is not None:
                mine, self._server = self._server, RedisClient(self._url)  # for a later `open`
                with anyio.CancelScope(shield=True):
                    await mine.aclose()

    # Making steps

    async def _step(self, call: Call) -> steps.Reply:
        """Make a step after which its caller may wait for changes."""
        self._check_open()
        self._hints.reading()
        reply = await self._send(call)
        self._hints.saw(reply)
        return reply

    async def _change(self, which: str, *args: Any, blobs: Sequence[bytes] = ()) -> Any:
        """Make a step that answers the same when it is sent again."""
        nonce = f"{self._nonce}:{next(self._numbers)}"
        return (await self._step(Call(steps.CHANGE, [which, nonce, args], blobs))).answer

    async def _each(self, which: str, ids: Sequence[str]) -> list[Any]:
        """Make a step for many tasks, split into several: the server does nothing else during a step."""
        return [await self._change(which, some) for some in _slices(ids)]

    async def _arm(self, kind: str, version: int, stirred: int) -> bool:
        reply = await self._send(Call(steps.ARM, [kind, version, stirred]))
        if not reply.answer:
            self._hints.reset(reply)
        return bool(reply.answer)

    # Calls of producers

    async def add(self, records: Sequence[Record], bound: Bound | None = None) -> list[Added]:
        self._check_open()
        for record in records:
            check_record(record)
        cards: list[Any] = []
        blobs: list[bytes] = []
        for record in records:
            # Without a nonce, an enqueue that is sent again after a lost answer would count as another one.
            card, blob = card_of(record, record.nonce or f"{self._nonce}:{next(self._numbers)}")
            cards.append(card)
            blobs.append(blob)
        bounds = (-1, False) if bound is None else (bound.most, bound.shed)
        loop = running_loop()
        together = self._adds.get(loop)
        if together is None:
            together = self._adds[loop] = Together(self._add)
        outcomes = await together.add(bounds, cards, blobs)
        return [Added(*outcomes[at : at + 2]) for at in range(0, len(outcomes), 2)]

    async def _add(self, bounds: tuple[int, bool], cards: list[Any], blobs: list[bytes]) -> Sequence[Any]:
        outcomes: Sequence[Any] = (await self._step(Call(steps.ADD, [cards, *bounds], blobs))).answer
        return outcomes

    # Calls of workers

    async def exchange(self, finishes: Sequence[Finish], claim: Claim | None = None) -> Exchange:
        self._check_open()
        check_exchange(finishes, claim)
        cards: list[Any] = []
        blobs: list[bytes] = []
        for finish in finishes:
            result = 0
            if finish.kind == "done" and finish.result is not None:
                blobs.append(finish.result)
                result = len(blobs)
            pause = False if finish.pause_key is None else finish.pause_key
            attempt = False if finish.attempt is None else finish.attempt
            cards.append((finish.id, finish.epoch, _KIND[finish.kind], finish.delay, result, attempt, pause))
        if claim is None:
            reply = await self._step(Call(steps.EXCHANGE, [cards, False], blobs))
            return Exchange(_states(reply.answer[0]), [])
        channel, earlier = self._hand_overs.begin(claim)
        confirmed = [part for lease in claim.confirmed for part in lease]
        asked = (claim.worker, claim.nonce, claim.most, claim.lease, channel, earlier, confirmed)
        reply = await self._send(Call(steps.EXCHANGE, [cards, asked], blobs))
        outcomes, wake_at, hungry = reply.answer
        self._hints.saw(reply, claimed=True, hungry=hungry)
        waits = self._hand_overs.answered(claim, earlier, waits=hungry)
        exchange = Exchange(_states(outcomes), [], wake_at, waits)
        unreadable: list[Unreadable] = []
        for lease in leases_of(reply.parts):
            if isinstance(lease, Unreadable):
                unreadable.append(lease)
            else:
                exchange.leases.append(lease)
        if unreadable:
            await self._condemn(unreadable)
        return exchange

    async def _condemn(self, unreadable: Sequence[Unreadable]) -> None:
        """Move unreadable tasks to the dead letters; otherwise the next claim would find them again."""
        for one in unreadable:
            log.error("%r: a task is a dead letter now, %s", self, one)
        parts, whys = [one.part for one in unreadable], [one.why for one in unreadable]
        await self._change("condemn", parts, whys, blobs=[one.row for one in unreadable])

    async def _snapshots(self, call: Call) -> tuple[list[Snapshot], Any]:
        """Return the tasks in the answer to a query, and the rest of the answer. Unreadable tasks become dead letters
        first.
        """
        reply = await self._step(call)
        found = list(snapshots_of(reply.parts))
        unreadable = [one for one in found if isinstance(one, Unreadable)]
        if unreadable:
            await self._condemn(unreadable)
            reply = await self._step(call)
            found = list(snapshots_of(reply.parts))
        snapshots = [one if isinstance(one, Snapshot) else shown(one) for one in found]
        return snapshots, reply.answer

    def beat(self, worker: str, leases: Sequence[tuple[str, int]], lease: float | None) -> Beat:
        self._check_open()
        check_beat(lease)
        asked: list[Any] = [worker, -1 if lease is None else lease]
        for pair in leases:
            asked.extend(pair)
        call = Call(steps.BEAT, asked)
        reply = self._send_blocking(call)
        self._hints.saw(reply, claimed=True)
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
        reply = await self._step(Call(steps.CHANGE, ["save", "", args], blobs))
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
        await self._change("set_limit", key, False if limit is None else limit_card(limit))

    async def pause_limit(self, key: str, seconds: float) -> None:
        self._check_open()
        check_pause(key, seconds)
        await self._change("pause_limit", key, seconds)

    async def put_schedule(self, schedule: Schedule) -> None:
        self._check_open()
        check_schedule(schedule)
        record = schedule.record
        card, _ = card_of(record, record.nonce)
        blob = card_of(_without_nonce(record), "")[1]
        await self._change("put_schedule", schedule.name, schedule.spec, schedule.due, card, blobs=[blob])

    async def remove_schedule(self, name: str) -> bool:
        return bool(await self._change("remove_schedule", name))

    async def schedules(self) -> list[Schedule]:
        reply = await self._step(Call(steps.ASK, ["schedules", False]))
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
            found, answer = await self._snapshots(Call(steps.ASK, ["get", some]))
            rest = iter(found)
            snapshots.extend(next(rest) if there else None for there in answer)
        return snapshots

    async def size(self) -> Size:
        sizes, paused, closed = (await self._step(Call(steps.ASK, ["size", False]))).answer
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
            some, after = await self._snapshots(Call(steps.ASK, ["find", asked]))
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
        return self._hints.version

    async def changed(self, since: int, timeout: float) -> None:
        self._check_open()
        try:
            await self._hand_overs.listen(self._server)
            await self._hints.changed(self._server, since, timeout)
        except StoreUnavailable:
            if self._is_open:
                raise


def _slices(ids: Sequence[str]) -> list[list[str]]:
    check_ids(ids)
    return [list(ids[at : at + _AT_ONCE]) for at in range(0, max(1, len(ids)), _AT_ONCE)]


def _states(outcomes: Sequence[int]) -> list[str]:
    return ["" if state < 0 else STATES[state] for state in outcomes]


def _without_nonce(record: Record) -> Record:
    return msgspec.structs.replace(record, nonce="")
