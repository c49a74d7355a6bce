"""Interrupt, stop and kill; what overtakes what; and what ends the whole system."""

import asyncio
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from cuelight import (
    Actor,
    ActorCrashed,
    ActorSystem,
    Crashed,
    Exit,
    Interrupted,
    Message,
    NotStarted,
    ReplyError,
    Stopped,
    Terminated,
    child,
    on,
)
from cuelight.actors import Inbox, Killed, Start
from cuelight.errors import StartError
from cuelight.testing import VIRTUAL_BACKENDS, assert_no_orphans, virtual_backend, wait_until_idle
from helpers import Backend, run_on
from helpers.players import Bang, Busy, Get, Hold, Loop, Plain, Put, Wait, WatchAll, Watcher, outcome, settle


@pytest.fixture(params=VIRTUAL_BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    return virtual_backend(request.param)


KINDS = [Plain, Busy, Loop]


async def test_interrupt_cancels_the_handler_and_not_the_actor() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Busy)
        assert not ref.interrupt()
        reply = ref.ask(Wait())
        await settle()
        assert ref.statistics().running == Wait()
        assert ref.interrupt("changed my mind")
        assert ref.interrupt("twice")
        with pytest.raises(Interrupted, match=r"was interrupted while it handled Wait.*: twice"):
            await reply
        assert not ref.interrupt()
        await ref.tell(Hold())
        await settle()
        assert ref.interrupt()
        assert await ref.ask(Get()) == ["cut", "cut"]
        assert [(one.message, one.reason) for one in system.dead_letters] == [(Hold(), "interrupted")]
        for kind in (Plain, Loop):
            other: Any = await system.spawn(kind)
            assert not other.interrupt()
        await ref.kill()
        assert not ref.interrupt()


class Handed(Actor[Wait | Hold | Put | Get]):
    """A run loop that gives its messages to handlers."""

    def __init__(self) -> None:
        self.items: list[Any] = []

    async def run(self) -> None:
        async for message in self.inbox:
            try:
                await self.handle(message)
            except OSError:
                self.items.append("caught")

    @on(Wait)
    async def wait(self, message: Wait) -> str:
        await anyio.sleep_forever()
        return ""

    @on(Hold)
    async def hold(self, message: Hold) -> None:
        await anyio.sleep_forever()

    @on(Put)
    async def put(self, message: Put) -> None:
        if message.item == "raise":
            raise OSError
        if message.item == "refuse":
            raise ReplyError
        if message.item == "other":
            await self.handle(Put("made up"))
        self.items.append(message.item)

    @on(Get)
    def get(self, message: Get) -> list[Any]:
        return self.items


async def test_a_handler_that_a_run_loop_calls_can_be_interrupted_too() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Handed)
        reply = ref.ask(Wait())
        await settle()
        assert ref.interrupt()
        assert isinstance(await outcome(reply), Interrupted)
        await ref.tell(Hold())
        await settle()
        assert ref.interrupt()
        await ref.tell(Put("raise"))
        await settle()
        assert not ref.interrupt()
        await ref.tell(Put("refuse"))
        await ref.tell(Put("other"))
        await ref.tell(Put(1))
        assert await ref.ask(Get()) == ["caught", "made up", "other", 1]
        assert system.dead_letters.counts == {"interrupted": 1, "refused": 1}
        gone = ref.ask(Wait())
        await settle()
        gone.cancel()
        assert isinstance(await outcome(gone), Interrupted)
        assert len(await ref.ask(Get(), timeout=1)) == 4


@pytest.mark.parametrize("kind", KINDS)
async def test_stop_finishes_the_queue(kind: Any) -> None:
    async with ActorSystem() as system:
        items: list[Any] = []
        ref = await system.spawn(kind, items)
        for number in range(300):
            await ref.tell(Put(number))
        last = ref.ask(Get())
        await ref.stop()
        await ref.stop()
        assert items == list(range(300))
        assert len(await last) == 300
        assert await ref.ended() == Stopped()
        await ref.tell(Put("late"))
        assert [(one.message, one.reason) for one in system.dead_letters] == [(Put("late"), "stopped")]
        assert ref.statistics().state == "ended"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_supervisor_that_stops_an_actor_lets_it_finish_its_queue(kind: Any) -> None:
    async with ActorSystem() as system:
        items: list[Any] = []
        ref = await system.spawn(kind, items)
        for number in range(10):
            ref.tell_nowait(Put(number))
        ref._cell.shut_down()
        await ref.ended()
        assert items == list(range(10))


@pytest.mark.parametrize("kind", KINDS)
async def test_kill_drops_the_queue(kind: Any) -> None:
    async with ActorSystem() as system:
        items: list[Any] = []
        ref = await system.spawn(kind, items)
        for number in range(3):
            ref.tell_nowait(Put(number))
        reply = ref.ask(Get())
        await ref.kill("x")
        await ref.kill("y")
        assert await ref.ended() == Killed("x")
        assert items == []
        assert isinstance(await outcome(reply), NotStarted)
        assert [one.message.item for one in system.dead_letters] == [0, 1, 2]


async def test_kill_cancels_what_runs() -> None:
    async with ActorSystem() as system:
        items: list[Any] = []
        for kind in (Busy, Handed):
            ref: Any = await system.spawn(kind)
            items = ref._cell.actor.items
            reply = ref.ask(Wait())
            await settle()
            await ref.kill("x")
            assert isinstance(await outcome(reply), Interrupted)
            assert kind is Handed or items == ["cut"]
            other: Any = await system.spawn(kind)
            await other.tell(Hold())
            await settle()
            await other.kill()
        assert [(one.message, one.reason) for one in system.dead_letters] == [(Hold(), "interrupted")] * 2


async def test_stop_with_a_timeout_kills_in_the_end() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Busy)
        await ref.tell(Hold())
        await settle()
        began = anyio.current_time()
        await ref.stop(timeout=3)
        assert anyio.current_time() - began == pytest.approx(3)
        assert await ref.ended() == Killed("no stop within 3 s")
        quick = await system.spawn(Busy)
        await quick.tell(Put(1))
        await quick.stop(timeout=3)
        assert await quick.ended() == Stopped()
        assert len(system.timers) <= 1  # of the idle task that is kept


async def test_a_kill_overtakes_a_stop_under_way() -> None:
    async with ActorSystem() as system, anyio.create_task_group() as tasks:
        items: list[Any] = []
        ref = await system.spawn(Busy, items)
        await ref.tell(Hold())
        await ref.tell(Put(1))
        tasks.start_soon(ref.stop)
        await settle()
        assert ref.statistics().state == "draining"
        await ref.kill()
        assert await ref.ended() == Killed("killed")
        assert items == ["cut"]


@pytest.mark.parametrize("kind", KINDS)
async def test_waiting_for_an_end_can_be_given_up(kind: Any) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(kind)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await ref.ended()
        assert ref.alive
        await ref.stop()


class Selfish(Actor[Put | Get]):
    """Ends itself, in every way."""

    def __init__(self, log: list[Any]) -> None:
        self.log = log

    @on(Put)
    async def put(self, message: Put) -> None:
        self.log.append(message.item)
        if message.item == "stop":
            self.stop()
        elif message.item == "ref.stop":
            await self.ref.stop()
        elif message.item == "ref.kill":
            await self.ref.kill("myself")
            self.log.append("before the next await")
            await anyio.lowlevel.checkpoint()
            self.log.append("never")

    @on(Get)
    async def get(self, message: Get) -> list[Any]:
        self.stop()
        return self.log


class PlainSelfish(Actor[Put | Get]):
    def __init__(self, log: list[Any]) -> None:
        self.log = log

    @on(Put)
    def put(self, message: Put) -> None:
        self.log.append(message.item)
        if message.item != 1:
            self.stop()

    @on(Get)
    def get(self, message: Get) -> list[Any]:
        self.stop()
        return self.log


async def test_an_actor_can_end_itself_and_does_not_wait_for_that() -> None:
    async with ActorSystem() as system:
        for how in ("stop", "ref.stop", "ref.kill"):
            log: list[Any] = []
            ref = await system.spawn(Selfish, log)
            ref.tell_nowait(Put(how))
            ref.tell_nowait(Put(1))
            await ref.ended()
            assert log == ([how, 1] if how != "ref.kill" else [how, "before the next await"])
        for kind in (Selfish, PlainSelfish):
            for first in (Put("stop"), Get()):
                log = []
                ref = await system.spawn(kind, log)
                if isinstance(first, Get):
                    assert await ref.ask(first) == []
                else:
                    ref.tell_nowait(first)
                assert await ref.ended() == Stopped()


class LastWish(PlainSelfish):
    """Its last hook ends it once more."""

    def __init__(self, how: str, log: list[Any]) -> None:
        super().__init__(log)
        self.how = how

    def stopped(self, why: Exit) -> None:
        self.log.append(why)
        if self.how == "stop":
            self.stop()
        elif self.how == "kill":
            self.ref._cell.kill("again")
        else:
            self.system.root.shut_down()  # so its parent gives it up, too


@pytest.mark.parametrize("how", ["stop", "kill", "parent"])
async def test_a_stopped_hook_that_ends_its_actor_changes_nothing(how: str) -> None:
    async with ActorSystem() as system:
        before, log = system.alive, list[Any]()
        ref = await system.spawn(LastWish, how, log)
        bystander = await system.spawn(Watcher, [])
        assert system.alive == before + 2
        await ref.stop()
        await settle()
        assert log == [Stopped()]
        assert await ref.ended() == Stopped()
        if how != "parent":
            assert system.alive == before + 1
            await bystander.stop()
            assert system.alive == before
    assert system.alive == 0


async def test_control_overtakes_mail_kill_then_stop_then_terminated() -> None:
    async with ActorSystem() as system:
        seen: list[Any] = []
        watcher = await system.spawn(Watcher, seen)
        ends = [await system.spawn(Plain) for _ in range(2)]
        await watcher.ask(WatchAll(ends))
        await watcher.tell(Hold())
        await settle()
        await watcher.tell(Put("mail"))
        for end in ends:
            await end.stop()
        watcher._cell.stop()
        watcher.interrupt()
        await watcher.ended()
        assert seen == [*ends, "mail"]
        assert await watcher.ended() == Stopped()

        seen.clear()
        killed = await system.spawn(Watcher, seen)
        end = await system.spawn(Plain)
        await killed.ask(WatchAll([end]))
        await killed.tell(Hold())
        await settle()
        await killed.tell(Put("mail"))
        await end.stop()
        killed._cell.stop()
        await killed.kill()
        assert seen == []
        assert system.dead_letters.counts == {"interrupted": 2, "stopped": 1}


@pytest.mark.parametrize("kind", KINDS)
async def test_an_idle_actor_has_no_task(kind: Any) -> None:
    async with ActorSystem("lazy") as system:
        ref = await system.spawn(kind)
        await ref.ask(Get())
        await wait_until_idle(system)
        await anyio.sleep(60)
        names = [task.name for task in anyio.get_running_tasks()]
        assert (ref.path in names) is (kind is Loop)
        await ref.tell(Put(1))
        assert await ref.ask(Get()) == [1]
        await anyio.sleep(60)
        await ref.stop()


async def test_an_idle_task_that_gets_mail_just_before_it_ends_handles_it() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Busy)
        await ref.ask(Get())
        await settle()
        cell: Any = ref._cell
        cell.end_idle_task()
        ref.tell_nowait(Put(1))
        assert await ref.ask(Get()) == [1]
        await settle()
        cell.end_idle_task()
        await settle()
        assert cell.coroutine is None
        cell.end_idle_task()
        assert await ref.ask(Get()) == [1]


class Deadly(Actor[Put | Get | Bang]):
    """Raises what ends a process."""

    def __init__(self, where: str, error: type[BaseException]) -> None:
        self.where, self.error = where, error
        if where == "init":
            raise error(where)

    @on(Put)
    def put(self, message: Put) -> None:
        if self.where == "tell":
            raise self.error(self.where)

    @on(Get)
    def get(self, message: Get) -> list[Any]:
        raise self.error(self.where)

    @on(Bang)
    def bang(self, message: Bang) -> None:
        raise ValueError


class DeadlyHooks(Deadly):
    def started(self, why: Start) -> Any:
        if self.where == "started":
            raise self.error(self.where)

    def stopped(self, why: Exit) -> Any:
        if self.where == "stopped":
            raise self.error(self.where)


class AsyncDeadly(Deadly):
    async def get(self, message: Get) -> list[Any]:
        await anyio.lowlevel.checkpoint()
        raise self.error(self.where)

    async def put(self, message: Put) -> None:
        await anyio.lowlevel.checkpoint()
        Deadly.put(self, message)


class AsyncDeadlyHooks(DeadlyHooks):
    async def started(self, why: Start) -> Any:
        await anyio.lowlevel.checkpoint()
        return DeadlyHooks.started(self, why)

    async def stopped(self, why: Exit) -> Any:
        await anyio.lowlevel.checkpoint()
        return DeadlyHooks.stopped(self, why)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize(
    ("kind", "where"),
    [
        *((kind, where) for kind in (Deadly, AsyncDeadly) for where in ("init", "tell", "ask", "queued")),
        *((kind, where) for kind in (DeadlyHooks, AsyncDeadlyHooks) for where in ("init", "started", "stopped")),
    ],
)
async def test_what_ends_a_process_ends_the_system_with_it(kind: Any, where: str, error: Any) -> None:
    system = ActorSystem()
    reply: Any = None
    bystander: Any = None
    with pytest.raises(error, match=where if where != "queued" else "ask|queued"):
        async with system:
            bystander = await system.spawn(Plain)
            ref = await system.spawn(kind, where, error)
            if where == "stopped":
                await ref.stop()
            elif where == "tell":
                await ref.tell(Put(1))
            else:
                await settle()
                if where == "queued":
                    ref.tell_nowait(Put(1))
                reply = ref.ask(Get())
            await anyio.sleep(1000)
    assert reply is None or isinstance(await outcome(reply), ActorCrashed)
    assert not bystander.alive
    assert_no_orphans(system)


async def test_a_group_with_a_keyboard_interrupt_in_it_ends_the_system_and_one_with_cancellations_does_not() -> None:
    class Group(Actor[Put | Get]):
        @on(Put)
        async def put(self, message: Put) -> None:
            raise BaseExceptionGroup("group", [OSError(), message.item])

        @on(Get)
        async def get(self, message: Get) -> list[Any]:
            return []

    with pytest.raises(BaseExceptionGroup):
        async with ActorSystem() as system:
            ref = await system.spawn(Group)
            await ref.tell(Put(KeyboardInterrupt()))
            await anyio.sleep(1000)
    async with ActorSystem() as system:
        ref = await system.spawn(Group)
        if system.backend.name == "asyncio":
            await ref.tell(Put(asyncio.CancelledError()))
            assert await ref.ask(Get()) == []
            assert system.dead_letters.counts == {"crashed": 1}


async def test_a_failure_while_a_handler_is_cancelled_is_a_crash_once() -> None:
    class Messy(Actor[Hold | Get]):
        @on(Hold)
        async def hold(self, message: Hold) -> None:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.fail_at_the_end)
                await anyio.sleep_forever()

        async def fail_at_the_end(self) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                raise OSError("clean up")

        @on(Get)
        async def get(self, message: Get) -> list[Any]:
            return []

    async with ActorSystem() as system:
        ref = await system.spawn(Messy)
        await ref.tell(Hold())
        await settle()
        assert ref.interrupt()
        assert await ref.ask(Get()) == []
        assert ref.statistics().restarts == 1
        assert system.dead_letters.counts == {"crashed": 1}


async def test_a_native_cancellation_of_every_task_ends_the_system(anyio_backend_name: str) -> None:
    if anyio_backend_name != "asyncio":
        return
    system = ActorSystem()
    refs: list[Any] = []

    async def main() -> None:
        async with system:
            refs.append(await system.spawn(Busy))
            await refs[0].tell(Hold())
            refs.append(await system.spawn(Plain))
            await anyio.sleep_forever()

    before = asyncio.all_tasks()
    task = asyncio.ensure_future(main())
    await settle()
    for one in asyncio.all_tasks() - before:
        one.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert_no_orphans(system)


async def test_an_internal_error_is_logged_and_the_dispatcher_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Plain)
        system.post(lambda: 1 / 0)
        ref.tell_nowait(Put(1))
        assert await ref.ask(Get()) == [1]
    assert "an internal error of Cuelight; please report it" in caplog.text


def test_a_dispatcher_ends_with_a_trio_that_ends_under_it() -> None:
    async def main() -> None:
        system = ActorSystem(slow_after=None)
        await system.__aenter__()
        assert system._scope is not None
        system._scope.__exit__(None, None, None)
        systems.append(system)

    systems: list[ActorSystem] = []
    run_on(("trio", {}), main)
    assert not systems[0]._dispatching


async def test_start_errors_keep_their_cause() -> None:
    async with ActorSystem() as system:

        class Group(Actor[Message]):
            async def run(self) -> None: ...

            async def started(self, why: Start) -> None:
                async with anyio.create_task_group():
                    raise OSError("in a group")

        with pytest.raises(StartError) as caught:
            await system.spawn(Group)
        assert isinstance(caught.value.__cause__, ExceptionGroup)


async def test_a_run_loop_that_returns_has_stopped_and_handled_its_last_message() -> None:
    async def once(inbox: Inbox[Put]) -> None:
        await inbox.receive()

    async with ActorSystem() as system:
        ref = await system.spawn(once)
        await ref.tell(Put(1))
        assert await ref.ended() == Stopped()
        assert not system.dead_letters.total


async def test_a_run_loop_that_fails_loses_the_message_in_hand_only() -> None:
    async with ActorSystem() as system:
        items: list[Any] = []
        ref = await system.spawn(Loop, items)
        for message in (Put(1), Bang(), Put(2)):
            ref.tell_nowait(message)
        assert await ref.ask(Get()) == [1, 2]
        assert [(one.message, one.reason) for one in system.dead_letters] == [(Bang(), "crashed")]


async def test_terminated_that_crashes_its_handler_is_no_dead_letter() -> None:
    class Weak(Watcher):
        async def terminated(self, message: Terminated) -> None:
            raise OSError

    async with ActorSystem() as system:
        ref, end = await system.spawn(Weak, []), await system.spawn(Plain)
        await ref.ask(WatchAll([end]))
        await end.stop()
        await wait_until_idle(system)
        assert ref.statistics().restarts == 1
        assert not system.dead_letters.total
        poison = await system.spawn(child(Plain).with_options(redeliver=2))
        await poison.tell(Bang())
        assert await poison.ask(Get()) == []
        assert system.dead_letters.counts == {"quarantined": 1}


@pytest.mark.parametrize("kind", KINDS)
async def test_what_comes_after_the_end_changes_nothing(kind: Any) -> None:
    async with ActorSystem() as system:
        ref: Any = await system.spawn(kind)
        await ref.stop()
        cell = ref._cell
        cell.fail_with(OSError())
        cell.end_for_restart()
        cell.put_control(Put(1))
        cell.stop()
        cell.shut_down()
        cell.kill("late")
        assert not ref.interrupt()
        await ref.kill("late")
        await ref.stop(timeout=1)
        await wait_until_idle(system)
        assert await ref.ended() == Stopped()
        assert ref.statistics().state == "ended"


async def test_a_second_reason_to_fail_does_not_replace_the_first() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(child(Busy).with_options(restart="temporary"))
        await ref.tell(Hold())
        await settle()
        ref._cell.fail_with(OSError("first"))
        ref._cell.fail_with(OSError("second"))
        exit_ = await ref.ended()
        assert isinstance(exit_, Crashed)
        assert str(exit_.error) == "first"
