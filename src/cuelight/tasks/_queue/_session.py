"""The state of an open `TaskQueue`: its access to the store, and the leases of the tasks that it has dequeued.

The handle calls the store directly. An actor (`_session.py`) opens the store, receives reports of lost leases,
completes the steps whose callers no longer wait for the answer, and gives back all tasks at the end.

Invariants:

1. A lease of this handle is renewed until the task is settled, lost or given back. After `close`, the handle has no
   leases.
2. If the caller of a claim no longer waits for the answer, the claimed task is given back. Cancelling `dequeue`
   therefore neither loses a task nor costs it an attempt.
3. A cancelled `ack` or `nack` takes effect, or can be repeated.
4. After the end, every call raises `PoolClosed`, including calls that were waiting.

A queue of waiters in which only the first one is active.

Invariants:

1. The waiter with the lowest ticket is the first one, even if it joined after the others.
2. When the first waiter leaves, normally or cancelled, the next one is woken.

Waits for changes of tasks: many waiters share one query of the store.

Invariants:

1. A waiter gets a snapshot that fulfils its condition, and the first such snapshot that a query returns.
2. The store is only queried after it has reported a possible change, and once for each new waiter.
3. One of the waiters queries on behalf of all. When it ends, cancelled or answered, another one takes over.
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
from cuelight.tasks._stores._support import close_store, open_store
from cuelight.tasks._task import Task
from cuelight.tasks._worker._lease_keeper import Keeper

if TYPE_CHECKING:
    from cuelight.actors import Exit, Ref
    from cuelight.tasks._stores._protocol import Snapshot
    from cuelight.tasks._worker._lease_keeper import Heartbeat


class Line:
    """The waiters. Belongs to one event loop."""

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


class Resolve(Message):
    """A caller no longer waits for the answer of the store."""


class Told(Message):
    """A report of the keeper about leases."""

    beat: Beat


class Step(Message):
    """Renew leases. Only used if the loop does that."""


class Held(msgspec.Struct):
    """A task that this handle has dequeued and not settled.

    Attributes:
        since: when it was claimed, by the clock of the store.
        settling: whether an `ack` or `nack` is in progress, so that the end of its lease is not a loss.
    """

    task: Task
    epoch: int
    since: float
    settling: bool = False


class Life:
    """The state of one open handle. Belongs to the event loop of its actor."""

    def __init__(
        self,
        store: Store,
        name: str,
        *,
        lease: float,
        patience: float,
        on_lost: Callable[[Task], object] | None,
        on_cancel: Callable[[Task], object] | None,
        heartbeat: Heartbeat,
    ) -> None:
        self.store, self.name, self.lease, self.patience = store, name, lease, patience
        self.backend = current_backend()
        self.thread = get_ident()
        self.worker = f"{name}:{uuid4().hex}"
        self.held: dict[str, Held] = {}
        self.line = Line(self.backend.waiter)  # producers that wait for room
        self.ref: Ref[Resolve | Told | Step] | None = None
        self._on_lost, self._on_cancel = on_lost, on_cancel
        self._asked: dict[int, Claim | Finish] = {}  # sent to the store and not answered yet
        self._unheard: list[Claim | Finish] = []  # those of them whose callers no longer wait
        self._told_actor = False
        self._keeper: Keeper | None = None
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
            self._told_actor = False
            self._hear()
            return
        try:
            await self.patiently(lambda: open_store(self.store))
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
            if self._keeper is not None:
                await anyio.to_thread.run_sync(self._keeper.close)
            with anyio.move_on_after(GRACE) as scope:
                await self._give_all_back()
            if scope.cancelled_caught:
                log.warning(
                    "the queue %r gave back its tasks, but its store did not answer within %g s", self.name, GRACE
                )
        finally:
            await close_store(self.store)

    async def _give_all_back(self) -> None:
        asked = list(self._asked.values())
        finishes = [finish for finish in asked if isinstance(finish, Finish)]
        settling = {finish.id for finish in finishes}
        finishes += [self.finish(held, "released") for held in self.held.values() if held.task.task_id not in settling]
        self.held.clear()
        try:
            for claim in asked:
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

    async def patiently(self, step: Callable[[], Awaitable[T]], *, waits: bool = False) -> T:
        """Call an idempotent step of the store, and repeat it while the store is unavailable.

        Args:
            step: the step.
            waits: whether the step may take any time without a failure; `patience` then counts from its first failure.

        Raises:
            StoreUnavailable: the store was unavailable for longer than `patience`.
        """
        left, failures = self.patience, 0
        give_up = 0.0 if waits else self.backend.time() + left
        while True:
            token = STEP_TIMEOUT.set(left)
            try:
                return await step()
            except StoreUnavailable:
                delay = BACKOFF.delay(failures, random.random())  # noqa: S311 - no secret
                give_up = give_up or self.backend.time() + self.patience
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
                await self.patiently(lambda: self.store.changed(since, timeout), waits=True)
            finally:
                self._waits.discard(scope)
        self.check()

    async def _exchange(self, asked: Claim | Finish) -> Exchange:
        """Claim or settle. If the caller stops waiting for the answer, the actor completes the step."""
        finishes, claim = ((), asked) if isinstance(asked, Claim) else ((asked,), None)
        self._asked[id(asked)] = asked
        try:
            answer = await self.patiently(lambda: self.store.exchange(finishes, claim))
        except BaseException as error:
            if isinstance(error, StoreUnavailable) and claim is None:
                del self._asked[id(asked)]  # the caller gets the exception, and may settle again
            else:
                self._unheard.append(asked)
                self._hear()
            raise
        if claim is not None:
            self.check()  # if this raises, the end of the handle gives back the claimed task
        del self._asked[id(asked)]
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
            held = Held(task_of(lease), lease.epoch, self.store.now())
        except ValueError as error:
            log.error("the task %s is given up: %s", lease.record.id, describe_error(error))  # noqa: TRY400
            await self._exchange(self._refusal(lease, "undecodable", str(error)))
            return None, 0.0
        except BaseException:  # out of memory or stack: give the task back
            self._unheard.append(claim)
            self._hear()
            raise
        self.held[lease.record.id] = held
        self._keep(lease, began)
        return held.task, 0.0

    async def settle(self, held: Held, finish: Finish) -> str:
        """End the attempt of a task that this handle has. A checkpoint.

        Returns:
            The new state of the task; "" if the handle's lease was lost.

        Raises:
            StoreUnavailable: the store was unavailable for too long; the handle still has the task, and may settle it
                again.
        """
        held.settling = True
        answer = await self._exchange(finish)
        self._let_go(finish)
        return answer.accepted[0]

    def finish(
        self,
        held: Held,
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

    def _let_go(self, finish: Finish) -> None:
        held = self.held.get(finish.id)
        if held is not None and held.epoch == finish.epoch:
            del self.held[finish.id]
            if self._keeper is not None:
                self._keeper.drop(finish.id, finish.epoch)

    async def _unclaimed(self, claim: Claim) -> list[Finish]:
        """The finishes that give back the tasks of a claim, if the claim reached the store."""
        # with the same nonce, the store repeats its answer and claims nothing new
        again = msgspec.structs.replace(claim, most=0)
        return [self._refusal(lease) for lease in (await self.store.exchange((), again)).leases]

    # Steps whose callers no longer wait.

    def _hear(self) -> None:
        if self._unheard and self.ref is not None and not (self._over or self._told_actor):
            self._told_actor = True
            self.ref.tell_nowait(Resolve())

    async def resolve(self) -> bool:
        """Complete the steps whose callers no longer wait. Return False if the store does not answer now."""
        self._told_actor = False
        while self._unheard:
            asked = self._unheard[0]
            try:
                if isinstance(asked, Claim):
                    finishes = await self._unclaimed(asked)
                    if finishes:
                        await self.store.exchange(finishes)
                else:
                    await self.store.exchange((asked,))
                    self._let_go(asked)
            except (StoreUnavailable, PoolClosed):
                return False
            self._unheard.remove(asked)
            self._asked.pop(id(asked), None)
        return True

    # Leases.

    def _keep(self, lease: Lease, began: float) -> None:
        keeper = self._keeper
        if keeper is None:
            keeper = Keeper(self.store, self.worker, lease=self.lease, notify=self._notify, clock=self._clock)
            self._keeper = keeper
            if self.heartbeat == "thread":
                keeper.start()
            elif self.ref is not None:
                self.ref.tell_nowait(Step())
        keeper.hold(lease.record.id, lease.epoch, began)

    async def renew(self, held: Held, lease: float) -> bool:
        """Renew one lease now. Return False if it is lost; then `on_lost` is called. A checkpoint."""
        beat: Callable[[], Beat] = partial(self.store.beat, self.worker, [(held.task.task_id, held.epoch)], lease)

        async def step() -> Beat:
            if self.heartbeat == "thread":
                return await anyio.to_thread.run_sync(beat)
            await self.backend.checkpoint()
            return beat()

        answer = await self.patiently(step)
        self.told(answer)
        return not answer.lost

    def step(self) -> float:
        """Renew leases, if the loop does that. Return the seconds until the next call."""
        return GRACE if self._keeper is None else self._keeper.step()

    def _notify(self, beat: Beat) -> None:
        if self.ref is not None:
            self.ref.tell_threadsafe(Told(beat))

    def told(self, beat: Beat) -> None:
        """Forget lost tasks and call `on_lost` for them; call `on_cancel` for cancelled ones."""
        for task_id, epoch in beat.lost:
            held = self.held.get(task_id)
            if held is None or held.epoch != epoch or held.settling:
                continue
            del self.held[task_id]
            log.warning("%s has lost its lease of %s (%s)", self.worker, task_id, held.task.task_type)
            self._tell(self._on_lost, held.task)
        for task_id, epoch in beat.cancelled:
            held = self.held.get(task_id)
            if held is not None and held.epoch == epoch:
                self._tell(self._on_cancel, held.task)

    def _tell(self, consumer: Callable[[Task], object] | None, task: Task) -> None:
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


class _Watcher(msgspec.Struct, eq=False):
    task_id: str
    wanted: Wanted
    waiter: Waiter | None = None
    answer: list[Snapshot | None] | None = None
    error: StoreUnavailable | None = None


class Watch:
    """The callers that wait for tasks of one queue."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._watchers: dict[_Watcher, None] = {}
        self._leader: _Watcher | None = None

    async def until(self, task_id: str, wanted: Wanted) -> Snapshot | None:
        """Wait until a task fulfils a condition. A checkpoint.

        Args:
            task_id: the identifier of the task.
            wanted: the condition: a function of a snapshot, or of None if the task does not exist.

        Raises:
            PoolClosed: the handle was closed.
            StoreUnavailable: the store was unavailable for too long.
        """
        life = self._life
        await life.ready()
        me = _Watcher(task_id, wanted)
        self._watchers[me] = None
        try:
            if self._leader is not None:
                await self._look([me])  # the leader may be waiting for a change that occurred before this call
            while me.answer is None:
                if me.error is not None:
                    raise me.error
                if self._leader is None:
                    self._leader = me
                if self._leader is me:
                    await self._lead(me)
                else:
                    me.waiter = life.backend.waiter()
                    await me.waiter
            return me.answer[0]
        finally:
            self._watchers.pop(me, None)
            if self._leader is me:
                self._leader = next(iter(self._watchers), None)
                if self._leader is not None:
                    self._wake(self._leader)

    async def _lead(self, me: _Watcher) -> None:
        """Query for all waiters until this one has an answer."""
        life = self._life
        try:
            while me.answer is None:
                version = life.store.version()
                began = life.backend.time()
                watchers = list(self._watchers)
                for start in range(0, len(watchers), SLICE):
                    await self._look([one for one in watchers[start : start + SLICE] if one in self._watchers])
                if me.answer is None:
                    took = life.backend.time() - began
                    if took > 0.001:  # many callers wait: leave most of the time to other work
                        await anyio.sleep(min(3 * took, 0.25))
                    await life.changed(version, FOREVER)
        except StoreUnavailable as error:
            for one in self._watchers:
                one.error = error
                self._wake(one)
            raise

    async def _look(self, some: list[_Watcher]) -> None:
        snapshots = await self._life.patiently(lambda: self._life.store.get([one.task_id for one in some]))
        for one, snapshot in zip(some, snapshots, strict=True):
            if one in self._watchers and one.wanted(snapshot):
                one.answer = [snapshot]
                del self._watchers[one]
                self._wake(one)

    def _wake(self, one: _Watcher) -> None:
        waiter, one.waiter = one.waiter, None
        if waiter is not None:
            waiter.wake()


# The actor of a task queue.


AGAIN = 1.0
"""Seconds after which unanswered steps are tried again."""


class QueueActor(Actor[Resolve | Told | Step]):
    """Opens and closes the store of one handle, renews its leases and resolves its abandoned steps."""

    def __init__(self, life: Life) -> None:
        self._life = life

    async def started(self, why: Start) -> None:
        """Open the store."""
        await self._life.open()
        if isinstance(why, WasRestarted):
            self.step(Step())  # the previous incarnation's timers have ended

    @on(Resolve)
    async def resolve(self, msg: Resolve) -> None:
        """Complete the steps whose callers no longer wait."""
        if not await self._life.resolve():
            self.after(AGAIN, msg)

    @on(Told)
    def told(self, msg: Told) -> None:
        """Handle lost leases and cancellations."""
        self._life.told(msg.beat)

    @on(Step)
    def step(self, msg: Step) -> None:
        """Renew leases in the loop."""
        if self._life.heartbeat == "loop":
            self.after(self._life.step(), msg, key=Step)

    async def stopped(self, why: Exit) -> None:
        """Give back all tasks."""
        await self._life.close()
