"""The state of an open `TaskQueue`: its access to the store, and the leases of the tasks that it has dequeued.

The handle calls the store directly. An actor (`_queue_actor.py`) opens the store, receives reports of lost leases,
completes the steps whose callers no longer wait for the answer, and gives back all tasks at the end.

Invariants:

1. A lease of this handle is renewed until the task is settled, lost or given back. After `close`, the handle has no
   leases.
2. If the caller of a claim no longer waits for the answer, the claimed task is given back. Cancelling `dequeue`
   therefore neither loses a task nor costs it an attempt.
3. A cancelled `ack` or `nack` takes effect, or can be repeated.
4. After the end, every call raises `PoolClosed`, including calls that were waiting.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

import anyio
import anyio.to_thread
import msgspec

from cuelight._log import get_log
from cuelight._text import describe_error, safe_repr
from cuelight.actors import Message
from cuelight.errors import PoolClosed, StoreUnavailable, ends_the_program
from cuelight.mailbox import current_backend
from cuelight.supervision import Backoff
from cuelight.tasks._codec import task_of
from cuelight.tasks._keeper import Keeper
from cuelight.tasks._line import Line
from cuelight.tasks._opened import close_store, open_store
from cuelight.tasks._step_timeout import STEP_TIMEOUT
from cuelight.tasks._store import Beat, Claim, Exchange, Finish, Lease, Store
from cuelight.tasks._task import Attempt, Task

if TYPE_CHECKING:
    from cuelight.actors import Ref
    from cuelight.tasks._options import Heartbeat

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
