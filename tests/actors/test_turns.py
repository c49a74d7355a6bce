"""What a turn has begun ends with it: requests, streams and the work behind deferred replies."""

# Replies and refs are Any here: no annotation could say more.
# pyright: reportUnknownMemberType=false, reportUnknownLambdaType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false

from __future__ import annotations

import gc
import warnings
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest

from cuelight import Actor, ActorSystem, Message, Ref, ReplyPort, Request, StreamRequest, child, on
from cuelight.errors import ActorCrashed, Interrupted, InterruptedTimeout, NotStarted
from cuelight.testing import VIRTUAL_BACKENDS, virtual_backend, wait_until_idle
from helpers import Backend
from helpers.players import Boom, outcome, settle


@pytest.fixture(params=VIRTUAL_BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    return virtual_backend(request.param)


class Work(Request[str]):
    pass


class Watch(StreamRequest[int]):
    pass


class Job(Request[Any]):
    how: str = ""


class Told(Message):
    how: str = ""


class Done(Message):
    value: Any = None


class Worker(Actor[Work | Watch | Job | Boom]):
    """Works for ever, and writes down how that ended."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    @on(Work)
    async def work(self, message: Work) -> str:
        self.log.append("begun")
        try:
            await anyio.sleep_forever()
        finally:
            self.log.append("cancelled")
        return ""

    @on(Job)
    def job(self, message: Job) -> Any:
        return "quick"

    @on(Watch)
    async def follow(self, message: Watch) -> AsyncIterator[int]:
        try:
            for number in range(1_000):
                yield number
        finally:
            self.log.append("closed")

    @on(Boom)
    async def boom(self, message: Boom) -> None:
        raise ValueError(message.why)


class Sender(Actor[Job | Told | Done]):
    """Asks workers in one of several ways, and is done, fails or waits for the first of them."""

    def __init__(self, workers: list[Ref[Any]], send: Callable[[Ref[Any]], Any]) -> None:
        self.workers, self.send = workers, send
        self.kept: list[Any] = []

    async def _turn(self, how: str) -> Any:
        self.kept = [self.send(worker) for worker in self.workers]
        await anyio.sleep(0.1)
        if how == "raise":
            raise ValueError(how)
        if how == "wait":
            await anyio.sleep_forever()
        return how

    @on(Job)
    async def job(self, message: Job) -> Any:
        return await self._turn(message.how)

    @on(Told)
    async def told(self, message: Told) -> None:
        await self._turn(message.how)

    @on(Done)
    def done(self, message: Done) -> None:
        self.kept.append(message.value)


class PlainSender(Actor[Job | Done]):
    def __init__(self, workers: list[Ref[Any]]) -> None:
        self.workers = workers
        self.kept: list[Any] = []

    @on(Job)
    def job(self, message: Job) -> Any:
        self.kept = [worker.ask(Work()) for worker in self.workers]
        if message.how == "raise":
            raise ValueError(message.how)

    @on(Done)
    def done(self, message: Done) -> None:
        pass


async def _workers(system: ActorSystem, count: int = 5) -> tuple[list[str], list[Ref[Any]]]:
    log: list[str] = []
    return log, [await system.spawn(Worker, log) for _ in range(count)]


def _asked(ref: Ref[Any]) -> Any:
    return ref.ask(Work(), timeout=1000)


ENDS: dict[str, Any] = {
    "cancelled": lambda _, reply: reply.cancel(),
    "interrupted": lambda ref, _: ref.interrupt(),
    "killed": lambda ref, _: ref._cell.kill("a test"),
    "raised": None,
    "returned": None,
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.filterwarnings("ignore:the answer to:RuntimeWarning")
async def test_a_turn_that_ends_withdraws_the_requests_that_it_has_sent(end: str) -> None:
    async with ActorSystem(ask_timeout=1000) as system:
        log, workers = await _workers(system)
        ref = await system.spawn(Sender, workers, _asked)
        reply = ref.ask(Job({"raised": "raise", "returned": "return"}.get(end, "wait")))
        await anyio.sleep(0.05)
        assert log == ["begun"] * 5
        if ENDS[end] is not None:
            await anyio.sleep(1)
            ENDS[end](ref, reply)
        await anyio.sleep(0.1)
        assert log == ["begun"] * 5 + ["cancelled"] * 5
        await outcome(reply)
        assert not any(worker._cell.running for worker in workers)
        actor: Any = ref._cell.actor
        if end == "returned":
            assert [type(await outcome(one)) for one in actor.kept] == [Interrupted] * 5
            actor.kept.clear()


@pytest.mark.parametrize("how", ["return", "raise"])
@pytest.mark.filterwarnings("ignore:the answer to:RuntimeWarning")
async def test_a_plain_turn_withdraws_them_too(how: str) -> None:
    async with ActorSystem(ask_timeout=1000) as system:
        log, workers = await _workers(system)
        ref = await system.spawn(PlainSender, workers)
        await outcome(ref.ask(Job(how)))
        await settle()
        assert log.count("cancelled") == log.count("begun")
        assert not any(worker._cell.running for worker in workers)


async def test_a_tree_of_requests_ends_from_its_top() -> None:
    """Each of 5 levels asks three below it and waits for the first of them only."""

    class Node(Actor[Job]):
        def __init__(self, depth: int) -> None:
            self.depth = depth

        @on(Job)
        async def job(self, message: Job) -> Any:
            if not self.depth:
                await anyio.sleep_forever()
            below = [await self.spawn(Node, self.depth - 1) for _ in range(3)]
            replies = [ref.ask(Job(), timeout=1000) for ref in below]
            return [await reply for reply in replies]

    def busy(system: ActorSystem) -> int:
        return len([cell for cell in system.busy_cells() if cell.running is not None])

    async with ActorSystem(ask_timeout=1000) as system:
        top = await system.spawn(Node, 4)
        with anyio.move_on_after(1):
            await top.ask(Job())
        await anyio.sleep(0.05)
        assert busy(system) == 0


async def test_a_request_that_was_awaited_or_has_ended_is_left_alone_when_the_turn_ends() -> None:
    class Asking(Actor[Job]):
        def __init__(self, workers: list[Ref[Any]]) -> None:
            self.workers = workers

        @on(Job)
        async def job(self, message: Job) -> Any:
            answers = [await worker.ask(Job()) for worker in self.workers]
            assert not self._cell.sent
            return answers

    async with ActorSystem() as system:
        _, workers = await _workers(system)
        ref = await system.spawn(Asking, workers)
        assert await ref.ask(Job()) == ["quick"] * 5


async def test_a_detached_request_outlives_the_turn_that_sent_it() -> None:
    async with ActorSystem(ask_timeout=1000) as system:
        log, workers = await _workers(system)
        ref = await system.spawn(Sender, workers, lambda worker: _asked(worker).detach())
        await ref.ask(Job("return"), timeout=1)
        await anyio.sleep(10)
        assert log == ["begun"] * 5
        actor: Any = ref._cell.actor
        for reply in actor.kept:
            reply.cancel()
        await settle()
        assert log == ["begun"] * 5 + ["cancelled"] * 5


async def test_a_reply_that_is_piped_to_self_ends_with_that_work() -> None:
    class Piping(Actor[Job | Done]):
        def __init__(self, workers: list[Ref[Any]]) -> None:
            self.workers = workers
            self.values: list[Any] = []
            self.pipes: list[Any] = []

        @on(Job)
        def job(self, message: Job) -> None:
            quick, slow = self.workers
            self.pipes = [self.pipe_to_self(reply, Done) for reply in (quick.ask(Job()), slow.ask(Work()))]

        @on(Done)
        def done(self, message: Done) -> None:
            self.values.append(message.value)

    async with ActorSystem(ask_timeout=1000) as system:
        log, workers = await _workers(system, 2)
        ref = await system.spawn(Piping, workers)
        await ref.ask(Job())
        await anyio.sleep(10)
        actor: Any = ref._cell.actor
        assert (actor.values, log) == (["quick"], ["begun"])
        actor.pipes[1].cancel()
        await settle()
        assert log == ["begun", "cancelled"]


async def test_background_work_that_ends_withdraws_what_it_has_asked() -> None:
    class Piping(Actor[Job | Done]):
        def __init__(self, workers: list[Ref[Any]]) -> None:
            self.workers = workers

        @on(Job)
        def job(self, message: Job) -> None:
            pipe = self.pipe_to_self(self._work(), Done)
            if message.how == "cancel":
                self.after(1, Done(pipe))

        async def _work(self) -> str:
            replies = [_asked(worker) for worker in self.workers]
            return await replies[0]  # type: ignore[no-any-return]

        @on(Done)
        def done(self, message: Done) -> None:
            message.value.cancel()

    async with ActorSystem(ask_timeout=1000) as system:
        for end in ("cancel", "kill"):
            log, workers = await _workers(system)
            ref = await system.spawn(Piping, workers)
            await ref.ask(Job(end))
            await anyio.sleep(2)
            if end == "kill":
                assert log == ["begun"] * 5
                await ref.kill()
            await settle()
            assert log == ["begun"] * 5 + ["cancelled"] * 5


@pytest.mark.parametrize("detached", [False, True])
async def test_a_stream_that_a_turn_has_opened_ends_with_it(detached: bool) -> None:
    def opened(worker: Ref[Any]) -> Any:
        stream = worker.stream(Watch())
        return stream.detach() if detached else stream

    async with ActorSystem() as system:
        log, workers = await _workers(system, 1)
        ref = await system.spawn(Sender, workers, opened)
        await ref.ask(Job("return"))
        await settle()
        assert log == ([] if detached else ["closed"])
        actor: Any = ref._cell.actor
        await actor.kept[0].aclose()
        await settle()
        assert log == ["closed"]


@pytest.mark.filterwarnings("ignore:the answer to:RuntimeWarning")
async def test_a_loop_of_its_own_keeps_its_requests_and_its_handlers_do_not() -> None:
    class Loop(Actor[Job | Told]):
        def __init__(self, workers: list[Ref[Any]]) -> None:
            self.workers = workers

        async def run(self) -> None:
            mine = _asked(self.workers[0])
            async for message in self.inbox:
                await self.handle(message)
            mine.cancel()

        @on(Job)
        async def job(self, message: Job) -> Any:
            self.kept = _asked(self.workers[1])
            await anyio.sleep(0.1)
            return "done"

        @on(Told)
        def told(self, message: Told) -> None:
            pass

    async with ActorSystem(ask_timeout=1000) as system:
        log, workers = await _workers(system, 2)
        ref = await system.spawn(Loop, workers)
        assert await ref.ask(Job()) == "done"
        await settle()
        assert log == ["begun", "begun", "cancelled"]
        await ref.kill()
        await settle()
        assert log == ["begun", "begun", "cancelled", "cancelled"]


async def test_tasks_that_a_handler_has_started_keep_what_they_ask() -> None:
    class Starting(Actor[Job]):
        def __init__(self, tasks: Any, worker: Ref[Any]) -> None:
            self.tasks, self.worker = tasks, worker

        @on(Job)
        async def job(self, message: Job) -> Any:
            self.tasks.start_soon(self._ask)

        async def _ask(self) -> None:
            await _asked(self.worker)

    async with ActorSystem(ask_timeout=1000) as system, anyio.create_task_group() as tasks:
        log, workers = await _workers(system, 1)
        ref = await system.spawn(Starting, tasks, workers[0])
        for _ in range(3):
            await ref.ask(Job())
            await anyio.sleep(1)
        assert log == ["begun"]
        tasks.cancel_scope.cancel()


# A forgotten await.


@pytest.mark.parametrize("inside", [False, True])
async def test_an_answer_that_nobody_awaits_is_a_warning(inside: bool) -> None:
    class Forgetting(Actor[Job]):
        def __init__(self, worker: Ref[Any]) -> None:
            self.worker = worker

        @on(Job)
        async def job(self, message: Job) -> Any:
            self.worker.ask(Job())  # type: ignore[unused-awaitable]
            await anyio.sleep(0.1)

    async with ActorSystem() as system:
        _, (worker,) = await _workers(system, 1)
        ref = await system.spawn(Forgetting, worker)
        with pytest.warns(RuntimeWarning, match=r"the answer to Job.* was never awaited"):
            await _forget(system, ref if inside else worker, inside)


async def _forget(system: ActorSystem, ref: Ref[Any], inside: bool) -> None:
    if inside:
        await ref.ask(Job())
    else:
        ref.ask(Job())  # type: ignore[unused-awaitable]
    await wait_until_idle(system)
    gc.collect()


async def test_answers_that_are_known_or_not_wanted_are_no_warning() -> None:
    async with ActorSystem() as system:
        _, (worker,) = await _workers(system, 1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for hear in ("done", "cancel", "detach"):
                reply: Any = worker.ask(Job())
                known = getattr(reply, hear)
                if hear != "done":
                    known()
                await wait_until_idle(system)
                del reply, known
            late = worker.ask(Job())
            await wait_until_idle(system)
            assert await late == "quick"
            del late
            gc.collect()


# Deferred replies.


class Deferring(Actor[Job | Told | Done]):
    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.parked: list[ReplyPort] = []

    @on(Job)
    def job(self, message: Job) -> Any:
        port = self.defer_reply()
        if message.how == "work":
            self.pipe_to_self(self._work(), lambda value: Done((port, value)))
        else:
            self.parked.append(port)

    async def _work(self) -> str:
        self.log.append("begun")
        try:
            await anyio.sleep(60)
        except BaseException:
            self.log.append("cancelled")
            raise
        return "done"

    @on(Done)
    def done(self, message: Done) -> None:
        port, value = message.value
        port.send(value)

    @on(Told)
    async def told(self, message: Told) -> None:
        if message.how == "raise":
            raise ValueError(message.how)
        for port in self.parked:
            port.send("late, but there")


@pytest.mark.parametrize("end", ["raise", "kill", "stop"])
async def test_an_actor_that_ends_fails_the_requests_whose_reply_it_has_deferred(end: str) -> None:
    async with ActorSystem(ask_timeout=1000) as system:
        ref = await system.spawn(child(Deferring, []).with_options(restart="transient"))
        replies = [ref.ask(Job(), timeout=timeout) for timeout in (None, float("inf"), 500)]
        await settle()
        kept: Any = ref._cell.actor  # its ports are not forgotten: nothing here waits for the collector
        if end == "raise":
            await ref.tell(Told("raise"))
        else:
            await getattr(ref, end)()
        with anyio.fail_after(1):
            errors = [await outcome(reply) for reply in replies]
        assert [type(error) for error in errors] == [ActorCrashed if end == "raise" else Interrupted] * 3
        assert "deferred" in str(errors[0])
        if end == "raise":
            assert isinstance(errors[0].__cause__, ValueError)
        late = system.late_replies
        kept.parked[0].send("too late")
        assert system.late_replies == late + 1


async def test_a_deferred_reply_that_does_not_come_in_time_says_so() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Deferring, [])
        with pytest.raises(InterruptedTimeout, match="deferred the reply and has not sent it"):
            await ref.ask(Job(), timeout=1)
        answer = ref.ask(Job(), timeout=5)
        await settle()
        await ref.tell(Told())
        assert await answer == "late, but there"


@pytest.mark.parametrize("leave", ["cancel", "timeout"])
async def test_work_that_serves_a_deferred_reply_ends_when_its_asker_leaves(leave: str) -> None:
    async with ActorSystem() as system:
        log: list[str] = []
        ref = await system.spawn(Deferring, log)
        reply = ref.ask(Job("work"), timeout=1)
        await settle()
        if leave == "cancel":
            reply.cancel()
        await outcome(reply)
        await settle()
        assert log == ["begun", "cancelled"]
        assert await ref.ask(Job("work"), timeout=100) == "done"  # and work whose asker waits is left alone


async def test_a_stream_handler_cannot_defer() -> None:
    class Streaming(Actor[Watch]):
        @on(Watch)
        async def follow(self, message: Watch) -> AsyncIterator[int]:
            self.defer_reply()
            yield 1

    async with ActorSystem() as system:
        ref = await system.spawn(child(Streaming).with_options(restart="temporary"))
        with pytest.raises(ActorCrashed, match="a stream handler yields its answers"):
            async for _ in ref.stream(Watch()):
                pass


async def test_what_was_asked_of_an_actor_that_is_full_is_withdrawn_too() -> None:
    async with ActorSystem(ask_timeout=1000) as system:
        log: list[str] = []
        worker = await system.spawn(child(Worker, log).with_options(capacity=1))
        ref = await system.spawn(Sender, [worker] * 4, _asked)
        reply = ref.ask(Job("wait"))
        await anyio.sleep(1)
        reply.cancel()
        actor: Any = ref._cell.actor
        await settle()
        assert [type(await outcome(one)) for one in actor.kept] == [Interrupted, *[NotStarted] * 3]
        assert await worker.ask(Job()) == "quick"
        assert log == ["begun", "cancelled"]
