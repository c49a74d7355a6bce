"""The state of an open `TaskQueue`: its access to the store, and the leases of the tasks that it has dequeued.

The handle calls the store directly. An actor opens the store, receives reports of lost leases, completes the steps
whose callers no longer wait for the answer, and gives back all tasks at the end.

Invariants:

1. A lease of this handle is renewed until the task is settled, lost or given back. After `close`, the handle has no
   leases.
2. If the caller of a claim no longer waits for the answer, the claimed task is given back. Cancelling `dequeue`
   therefore neither loses a task nor costs it an attempt.
3. A cancelled `ack` or `nack` takes effect, or can be repeated.
4. After the end, every call raises `PoolClosed`, including calls that were waiting.
"""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

import anyio
import anyio.to_thread
import msgspec

from cuelight._dead_letters._attempt import Attempt
from cuelight._log import get_log
from cuelight._text import describe_error, safe_repr
from cuelight.actors import Actor, Message, Start, WasRestarted, on
from cuelight.errors import PoolClosed, StoreUnavailable, ends_the_program
from cuelight.mailbox import Waiter, current_backend
from cuelight.supervision import Backoff
from cuelight.tasks._codec import task_of
from cuelight.tasks._stores._protocol import Beat, Claim, Exchange, Finish, Lease, Store
from cuelight.tasks._stores._step_timeout import STEP_TIMEOUT
from cuelight.tasks._stores._support import acquire_store, release_store
from cuelight.tasks._task import Task
from cuelight.tasks._worker._lease_keeper import LeaseKeeper

if TYPE_CHECKING:
    from cuelight.actors import Exit, Ref
    from cuelight.tasks._stores._protocol import Snapshot
    from cuelight.tasks._worker._lease_keeper import Heartbeat


class TicketQueue:
    """A queue of waiters in which only the first one is active. Belongs to one event loop.

    The waiter with the lowest ticket is the first one, even if it joined after the others. When it leaves, normally or
    cancelled, the next one is woken.
    """

    def __init__(self, waiter: Callable[[], Waiter]) -> None:
        self._new_waiter = waiter
        self._tickets: list[int] = []
        self._places: dict[int, Waiter | None] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._places)

    def ticket(self) -> int:
        """A new ticket, for a caller that may have to wait later."""
        self._last += 1
        return self._last

    @contextmanager
    def joined(self, ticket: int) -> Generator[None]:
        """Be in the queue inside the block."""
        heapq.heappush(self._tickets, ticket)
        self._places[ticket] = None
        try:
            yield
        finally:
            del self._places[ticket]
            first = self._first()
            waiter = None if first is None else self._places[first]
            if waiter is not None:
                waiter.wake()

    async def until_first(self, ticket: int) -> None:
        """Wait until this ticket is the first one. A checkpoint only if it is not the first one yet."""
        while self._first() != ticket:
            waiter = self._places[ticket] = self._new_waiter()
            try:
                await waiter
            finally:
                self._places[ticket] = None

    def _first(self) -> int | None:
        while self._tickets and self._tickets[0] not in self._places:
            heapq.heappop(self._tickets)
        return self._tickets[0] if self._tickets else None


T = TypeVar("T")

log = get_log("cuelight.tasks")

BACKOFF = Backoff(minimum=0.02, maximum=1.0, jitter=0.5)
GRACE = 2.0
"""The maximum number of seconds for giving back tasks at the end of a handle. After that, their leases expire."""


class RecoverRequests(Message):
    """A caller no longer waits for the answer of the store."""


class LeaseEvents(Message):
    """A report of the keeper about leases."""

    beat: Beat


class RenewLeases(Message):
    """Renew leases. Only used if the loop does that."""


class DequeuedTask(msgspec.Struct):
    """A task that this handle has dequeued and not settled.

    Attributes:
        since: when it was claimed, by the clock of the store.
        settling: whether an `ack` or `nack` is in progress, so that the end of its lease is not a loss.
    """

    task: Task
    epoch: int
    since: float
    settling: bool = False


class QueueSession:
    """The state of one open handle. Belongs to the event loop of its actor."""

    def __init__(
        self,
        store: Store,
        name: str,
        *,
        lease: float,
        retry_timeout: float,
        on_lost: Callable[[Task], object] | None,
        on_cancel: Callable[[Task], object] | None,
        heartbeat: Heartbeat,
    ) -> None:
        self.store, self.name, self.lease, self.retry_timeout = store, name, lease, retry_timeout
        self.backend = current_backend()
        self.thread = get_ident()
        self.worker = f"{name}:{uuid4().hex}"
        self.dequeued: dict[str, DequeuedTask] = {}
        self.waiting_producers = TicketQueue(self.backend.waiter)  # producers that wait for room
        self.ref: Ref[RecoverRequests | LeaseEvents | RenewLeases] | None = None
        self._on_lost, self._on_cancel = on_lost, on_cancel
        self._unanswered: dict[int, Claim | Finish] = {}  # sent to the store and not answered yet
        self._orphaned: list[Claim | Finish] = []  # those of them whose callers no longer wait
        self._actor_notified = False
        self._lease_keeper: LeaseKeeper | None = None
        self._numbers = 0
        self.heartbeat = heartbeat
        self._clock = time.monotonic if heartbeat == "thread" else self.backend.time
        self._open = self._over = False
        self._error: Exception | None = None
        self._settled = anyio.Event()  # set when the store is open, or at the end
        self._waits: set[anyio.CancelScope] = set()

    # Opening and closing: called by the actor.

    async def open(self) -> None:
        """Open the store. If that fails, every call raises the exception."""
        if self._open:  # the actor was restarted, and messages to it may be lost
            self._actor_notified = False
            self._notify_actor()
            return
        try:
            await self.with_retries(lambda: acquire_store(self.store))
        except Exception as error:
            log.error("the queue %r cannot open its store: %s", self.name, describe_error(error))  # noqa: TRY400 - each call raises the exception
            self._error = error
            self.end()
        else:
            self._open = True
            self._settled.set()

    def end(self) -> None:
        """Make all calls raise from now on, including waiting ones. Not a checkpoint."""
        self._over = True
        self._settled.set()
        for scope in self._waits:
            scope.cancel()

    async def close(self) -> None:
        """Interrupt waiting calls, give back unsettled tasks, and release the store."""
        self.end()
        if not self._open:
            return
        self._open = False
        try:
            if self._lease_keeper is not None:
                await anyio.to_thread.run_sync(self._lease_keeper.close)
            with anyio.move_on_after(GRACE) as scope:
                await self._give_all_back()
            if scope.cancelled_caught:
                log.warning(
                    "the queue %r gave back its tasks, but its store did not answer within %g s", self.name, GRACE
                )
        finally:
            await release_store(self.store)

    async def _give_all_back(self) -> None:
        unanswered = list(self._unanswered.values())
        finishes = [finish for finish in unanswered if isinstance(finish, Finish)]
        settling = {finish.id for finish in finishes}
        finishes += [
            self.finish(held, "released") for held in self.dequeued.values() if held.task.task_id not in settling
        ]
        self.dequeued.clear()
        try:
            for claim in unanswered:
                if isinstance(claim, Claim):
                    finishes += await self._unclaimed(claim)
            if finishes:
                await self.store.exchange(finishes)
        except (StoreUnavailable, PoolClosed) as error:  # the store may have been closed directly
            log.warning("the queue %r could not give back its tasks, whose leases will expire: %r", self.name, error)

    async def ready(self) -> None:
        """Wait until the store is open. A checkpoint only until then.

        Raises:
            PoolClosed: the handle is closed.
            Exception: the reason why the store could not be opened.
        """
        if not self._open:
            await self._settled.wait()
            self.check()

    def check(self) -> None:
        """Raise an exception if the handle is not open any more.

        Raises:
            PoolClosed: the handle is closed.
            Exception: the reason why the store could not be opened.
        """
        if self._error is not None:
            raise self._error
        if self._over:
            raise PoolClosed(f"the queue {self.name!r} is closed: its block was left, or its system has ended")

    # Calls of the store.

    def new_nonce(self) -> str:
        """A unique string: it contains the name of the worker, which is unique."""
        self._numbers += 1
        return f"{self.worker}:{self._numbers}"

    async def with_retries(self, step: Callable[[], Awaitable[T]], *, waits: bool = False) -> T:
        """Call an idempotent step of the store, and repeat it while the store is unavailable.

        Args:
            step: the step.
            waits: whether the step may take any time without a failure; `retry_timeout` then counts from the first one.

        Raises:
            StoreUnavailable: the store was unavailable for longer than `retry_timeout`.
        """
        left, failures = self.retry_timeout, 0
        give_up = 0.0 if waits else self.backend.time() + left
        while True:
            token = STEP_TIMEOUT.set(left)
            try:
                return await step()
            except StoreUnavailable:
                delay = BACKOFF.delay(failures, random.random())  # noqa: S311 - no secret
                give_up = give_up or self.backend.time() + self.retry_timeout
                failures += 1
                left = give_up - self.backend.time() - delay
                if left < 0:
                    raise
            finally:
                STEP_TIMEOUT.reset(token)
            await anyio.sleep(delay)
            self.check()

    async def changed(self, since: int, timeout: float) -> None:
        """Call `Store.changed`. The end of this handle interrupts it.

        Raises:
            PoolClosed: the handle has ended.
        """
        self.check()
        with anyio.CancelScope() as scope:
            self._waits.add(scope)
            try:
                await self.with_retries(lambda: self.store.changed(since, timeout), waits=True)
            finally:
                self._waits.discard(scope)
        self.check()

    async def _exchange(self, request: Claim | Finish) -> Exchange:
        """Claim or settle. If the caller stops waiting for the answer, the actor completes the step."""
        finishes, claim = ((), request) if isinstance(request, Claim) else ((request,), None)
        self._unanswered[id(request)] = request
        try:
            answer = await self.with_retries(lambda: self.store.exchange(finishes, claim))
        except BaseException as error:
            if isinstance(error, StoreUnavailable) and claim is None:
                del self._unanswered[id(request)]  # the caller gets the exception, and may settle again
            else:
                self._orphaned.append(request)
                self._notify_actor()
            raise
        if claim is not None:
            self.check()  # if this raises, the end of the handle gives back the claimed task
        del self._unanswered[id(request)]
        return answer

    async def claim(self) -> tuple[Task | None, float]:
        """Claim one task, or return the seconds until there may be one. A checkpoint.

        If the call is cancelled, no task is claimed, or the claimed task is given back.
        """
        began, claim = self._clock(), Claim(self.worker, self.new_nonce(), 1, self.lease)
        answer = await self._exchange(claim)
        if not answer.leases:
            return None, answer.wake_at - self.store.now()
        lease = answer.leases[0]
        try:
            held = DequeuedTask(task_of(lease), lease.epoch, self.store.now())
        except ValueError as error:
            log.error("the task %s is given up: %s", lease.record.id, describe_error(error))  # noqa: TRY400
            await self._exchange(self._refusal(lease, "undecodable", str(error)))
            return None, 0.0
        except BaseException:  # out of memory or stack: give the task back
            self._orphaned.append(claim)
            self._notify_actor()
            raise
        self.dequeued[lease.record.id] = held
        self._start_renewing(lease, began)
        return held.task, 0.0

    async def settle(self, held: DequeuedTask, finish: Finish) -> str:
        """End the attempt of a task that this handle has. A checkpoint.

        Returns:
            The new state of the task; "" if the handle's lease was lost.

        Raises:
            StoreUnavailable: the store was unavailable for too long; the handle still has the task, and may settle it
                again.
        """
        held.settling = True
        answer = await self._exchange(finish)
        self._forget(finish)
        return answer.accepted[0]

    def finish(
        self,
        held: DequeuedTask,
        kind: str,
        *,
        delay: float = 0.0,
        error: str = "",
        traceback: str = "",
        pause_key: str | None = None,
    ) -> Finish:
        """The finish of an attempt that did not succeed."""
        now = self.store.now()
        attempt = Attempt(kind, self.worker, now, max(0.0, now - held.since), error, traceback)
        return Finish(held.task.task_id, held.epoch, kind, delay=delay, attempt=attempt, pause_key=pause_key)

    def _refusal(self, lease: Lease, kind: str = "released", error: str = "") -> Finish:
        attempt = Attempt(kind, self.worker, self.store.now(), error=error)
        return Finish(lease.record.id, lease.epoch, kind, attempt=attempt)

    def _forget(self, finish: Finish) -> None:
        held = self.dequeued.get(finish.id)
        if held is not None and held.epoch == finish.epoch:
            del self.dequeued[finish.id]
            if self._lease_keeper is not None:
                self._lease_keeper.drop(finish.id, finish.epoch)

    async def _unclaimed(self, claim: Claim) -> list[Finish]:
        """The finishes that give back the tasks of a claim, if the claim reached the store."""
        # with the same nonce, the store repeats its answer and claims nothing new
        again = msgspec.structs.replace(claim, most=0)
        return [self._refusal(lease) for lease in (await self.store.exchange((), again)).leases]

    # Steps whose callers no longer wait.

    def _notify_actor(self) -> None:
        if self._orphaned and self.ref is not None and not (self._over or self._actor_notified):
            self._actor_notified = True
            self.ref.tell_nowait(RecoverRequests())

    async def recover_requests(self) -> bool:
        """Complete the steps whose callers no longer wait. Return False if the store does not answer now."""
        self._actor_notified = False
        while self._orphaned:
            request = self._orphaned[0]
            try:
                if isinstance(request, Claim):
                    finishes = await self._unclaimed(request)
                    if finishes:
                        await self.store.exchange(finishes)
                else:
                    await self.store.exchange((request,))
                    self._forget(request)
            except (StoreUnavailable, PoolClosed):
                return False
            self._orphaned.remove(request)
            self._unanswered.pop(id(request), None)
        return True

    # Leases.

    def _start_renewing(self, lease: Lease, began: float) -> None:
        keeper = self._lease_keeper
        if keeper is None:
            keeper = LeaseKeeper(self.store, self.worker, lease=self.lease, notify=self._notify, clock=self._clock)
            self._lease_keeper = keeper
            if self.heartbeat == "thread":
                keeper.start()
            elif self.ref is not None:
                self.ref.tell_nowait(RenewLeases())
        keeper.hold(lease.record.id, lease.epoch, began)

    async def renew(self, held: DequeuedTask, lease: float) -> bool:
        """Renew one lease now. Return False if it is lost; then `on_lost` is called. A checkpoint."""
        beat: Callable[[], Beat] = partial(self.store.beat, self.worker, [(held.task.task_id, held.epoch)], lease)

        async def step() -> Beat:
            if self.heartbeat == "thread":
                return await anyio.to_thread.run_sync(beat)
            await self.backend.checkpoint()
            return beat()

        answer = await self.with_retries(step)
        self.handle_lease_events(answer)
        return not answer.lost

    def step(self) -> float:
        """Renew leases, if the loop does that. Return the seconds until the next call."""
        return GRACE if self._lease_keeper is None else self._lease_keeper.step()

    def _notify(self, beat: Beat) -> None:
        if self.ref is not None:
            self.ref.tell_threadsafe(LeaseEvents(beat))

    def handle_lease_events(self, beat: Beat) -> None:
        """Forget lost tasks and call `on_lost` for them; call `on_cancel` for cancelled ones."""
        for task_id, epoch in beat.lost:
            held = self.dequeued.get(task_id)
            if held is None or held.epoch != epoch or held.settling:
                continue
            del self.dequeued[task_id]
            log.warning("%s has lost its lease of %s (%s)", self.worker, task_id, held.task.task_type)
            self._call_consumer(self._on_lost, held.task)
        for task_id, epoch in beat.cancelled:
            held = self.dequeued.get(task_id)
            if held is not None and held.epoch == epoch:
                self._call_consumer(self._on_cancel, held.task)

    def _call_consumer(self, consumer: Callable[[Task], object] | None, task: Task) -> None:
        if consumer is None:
            return
        try:
            consumer(task)
        except BaseException as error:
            if ends_the_program(error):
                raise
            log.exception("%s failed on the task %s", safe_repr(consumer), task.task_id)


FOREVER = 86400.0
"""Seconds to wait for a change that must occur, such as the end of the handle."""
SOON = 0.001
"""Seconds to wait for a change that should have occurred already."""
SLICE = 256
"""The maximum number of tasks in one query. A larger query would block the event loop."""

Wanted = Callable[["Snapshot | None"], bool]


class _ResultWaiter(msgspec.Struct, eq=False):
    task_id: str
    wanted: Wanted
    waiter: Waiter | None = None
    answer: list[Snapshot | None] | None = None
    error: StoreUnavailable | None = None


class ResultWaiters:
    """The callers that wait for tasks of one queue. They share one query of the store.

    One of the waiters queries on behalf of all, after each possible change. When it ends, cancelled or answered,
    another one takes over. Each waiter gets the first snapshot that fulfils its condition. A new waiter causes one more
    query.
    """

    def __init__(self, session: QueueSession) -> None:
        self._session = session
        self._waiting: dict[_ResultWaiter, None] = {}
        self._leader: _ResultWaiter | None = None

    async def until(self, task_id: str, wanted: Wanted) -> Snapshot | None:
        """Wait until a task fulfils a condition. A checkpoint.

        Args:
            task_id: the identifier of the task.
            wanted: the condition: a function of a snapshot, or of None if the task does not exist.

        Raises:
            PoolClosed: the handle was closed.
            StoreUnavailable: the store was unavailable for too long.
        """
        session = self._session
        await session.ready()
        me = _ResultWaiter(task_id, wanted)
        self._waiting[me] = None
        try:
            if self._leader is not None:
                await self._query([me])  # the leader may be waiting for a change that occurred before this call
            while me.answer is None:
                if me.error is not None:
                    raise me.error
                if self._leader is None:
                    self._leader = me
                if self._leader is me:
                    await self._query_for_all(me)
                else:
                    me.waiter = session.backend.waiter()
                    await me.waiter
            return me.answer[0]
        finally:
            self._waiting.pop(me, None)
            if self._leader is me:
                self._leader = next(iter(self._waiting), None)
                if self._leader is not None:
                    self._wake(self._leader)

    async def _query_for_all(self, me: _ResultWaiter) -> None:
        """Query for all waiters until this one has an answer."""
        session = self._session
        try:
            while me.answer is None:
                version = session.store.version()
                began = session.backend.time()
                waiting = list(self._waiting)
                for start in range(0, len(waiting), SLICE):
                    await self._query([one for one in waiting[start : start + SLICE] if one in self._waiting])
                if me.answer is None:
                    took = session.backend.time() - began
                    if took > 0.001:  # many callers wait: leave most of the time to other work
                        await anyio.sleep(min(3 * took, 0.25))
                    await session.changed(version, FOREVER)
        except StoreUnavailable as error:
            for one in self._waiting:
                one.error = error
                self._wake(one)
            raise

    async def _query(self, waiters: list[_ResultWaiter]) -> None:
        snapshots = await self._session.with_retries(lambda: self._session.store.get([one.task_id for one in waiters]))
        for one, snapshot in zip(waiters, snapshots, strict=True):
            if one in self._waiting and one.wanted(snapshot):
                one.answer = [snapshot]
                del self._waiting[one]
                self._wake(one)

    def _wake(self, one: _ResultWaiter) -> None:
        waiter, one.waiter = one.waiter, None
        if waiter is not None:
            waiter.wake()


RECOVERY_INTERVAL = 1.0
"""Seconds after which unanswered steps are tried again."""


class QueueActor(Actor[RecoverRequests | LeaseEvents | RenewLeases]):
    """Opens and closes the store of one handle, renews its leases and resolves its abandoned steps."""

    def __init__(self, session: QueueSession) -> None:
        self._session = session

    async def started(self, why: Start) -> None:
        """Open the store."""
        await self._session.open()
        if isinstance(why, WasRestarted):
            self.step(RenewLeases())  # the previous incarnation's timers have ended

    @on(RecoverRequests)
    async def recover_requests(self, msg: RecoverRequests) -> None:
        """Complete the steps whose callers no longer wait."""
        if not await self._session.recover_requests():
            self.after(RECOVERY_INTERVAL, msg)

    @on(LeaseEvents)
    def handle_lease_events(self, msg: LeaseEvents) -> None:
        """Handle lost leases and cancellations."""
        self._session.handle_lease_events(msg.beat)

    @on(RenewLeases)
    def step(self, msg: RenewLeases) -> None:
        """Renew leases in the loop."""
        if self._session.heartbeat == "loop":
            self.after(self._session.step(), msg, key=RenewLeases)

    async def stopped(self, why: Exit) -> None:
        """Give back all tasks."""
        await self._session.close()
