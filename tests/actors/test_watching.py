"""Watching and linking other actors, and groups of them."""

import asyncio
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from cuelight import (
    Actor,
    ActorNotFound,
    ActorSystem,
    Crashed,
    Message,
    Ref,
    Request,
    Stopped,
    Terminated,
    child,
    drop_newest,
    drop_oldest,
    on,
    select,
)
from cuelight.actors import Killed, LinkedExit
from cuelight.testing import Probe, wait_until_idle
from helpers.players import (
    Bang,
    Boom,
    Busy,
    Get,
    Hold,
    Loop,
    Plain,
    Put,
    UnwatchAll,
    WatchAll,
    Watcher,
    outcome,
    settle,
)


async def test_watch_fires_once_at_the_end_with_the_exit() -> None:
    async with ActorSystem() as system:
        probe = await Probe.start(system)
        stopped, killed = await system.spawn(Plain), await system.spawn(Busy)
        crashed = await system.spawn(child(Plain).with_options(restart="temporary"))
        for ref in (stopped, killed, crashed):
            await probe.watch(ref)
            await probe.watch(ref)
        await wait_until_idle(system)
        await stopped.stop()
        assert (await probe.expect_terminated(stopped)).exit == Stopped()
        await killed.kill("x")
        assert (await probe.expect_terminated(killed)).exit == Killed("x")
        await crashed.tell(Bang())
        assert isinstance((await probe.expect_terminated(crashed)).exit, Crashed)
        await wait_until_idle(system)
        await probe.expect_none(0.01)


async def test_watch_fires_for_the_already_dead() -> None:
    async with ActorSystem() as system:
        seen: list[Any] = []
        watcher = await system.spawn(Watcher, seen)
        ref = await system.spawn(Plain)
        await ref.stop()
        await watcher.ask(WatchAll([ref]))
        await wait_until_idle(system)
        assert seen == [ref]


async def test_watch_does_not_fire_on_a_restart() -> None:
    async with ActorSystem() as system:
        seen: list[Any] = []
        watcher = await system.spawn(Watcher, seen)
        ref = await system.spawn(Plain)
        await watcher.ask(WatchAll([ref]))
        await ref.tell(Bang())
        assert await ref.ask(Get()) == []
        await wait_until_idle(system)
        assert seen == []
        await ref.stop()
        await wait_until_idle(system)
        assert seen == [ref]


async def test_unwatch_takes_back_what_is_under_way() -> None:
    async with ActorSystem() as system:
        seen: list[Any] = []
        watcher = await system.spawn(Watcher, seen)
        refs = [await system.spawn(Plain) for _ in range(3)]
        await watcher.ask(WatchAll(refs))
        await watcher.ask(UnwatchAll(refs[:1]))
        await watcher.ask(UnwatchAll(refs[:1]))
        await refs[0].stop()
        asked = watcher.ask(UnwatchAll(refs[1:2]))  # handled before the control lane is looked at again
        await asked
        await watcher.tell(Hold())
        await settle()
        for ref in refs[1:]:
            await ref.stop()
        watcher._cell.control = watcher._cell.control and type(watcher._cell.control)(watcher._cell.control)
        actor: Any = watcher._cell.actor
        actor.unwatch(refs[2])
        watcher.interrupt()
        await wait_until_idle(system)
        assert seen == []


async def test_watches_end_with_the_incarnation_that_set_them() -> None:
    async with ActorSystem() as system:
        seen: list[Any] = []

        class Once(Actor[WatchAll | Bang | Hold]):
            @on(WatchAll)
            def watch_all(self, message: WatchAll) -> None:
                for ref in message.refs:
                    self.watch(ref)

            @on(Bang)
            def bang(self, message: Bang) -> None:
                raise ValueError

            @on(Hold)
            async def hold(self, message: Hold) -> None:
                await anyio.sleep_forever()

            @on(Terminated)
            def terminated(self, message: Terminated) -> None:
                seen.append(message.ref)

        watcher = await system.spawn(Once)
        early, late = await system.spawn(Plain), await system.spawn(Plain)
        await watcher.ask(WatchAll([early, late]))
        await watcher.tell(Hold())
        await settle()
        await early.stop()  # its Terminated waits behind the handler that crashes
        actor: Any = watcher._cell.actor
        actor._cell.fail_with(ValueError("x"))
        await wait_until_idle(system)
        await late.stop()
        await wait_until_idle(system)
        assert seen == []
        assert late._cell.extras is None


async def test_watching_needs_a_handler() -> None:
    async with ActorSystem() as system:
        ref, other = await system.spawn(Plain), await system.spawn(Plain)
        actor: Any = ref._cell.actor
        with pytest.raises(TypeError, match=r"has no @on\(Terminated\) handler: add one"):
            actor.watch(other)
        loop: Any = (await system.spawn(Loop))._cell.actor
        loop.watch(other)
        loop.unwatch(other)


async def test_a_watcher_that_ended_is_told_nothing() -> None:
    async with ActorSystem() as system:
        seen: list[Any] = []
        watcher, ref = await system.spawn(Watcher, seen), await system.spawn(Plain)
        await watcher.ask(WatchAll([ref]))
        await watcher.stop()
        await ref.stop()
        await wait_until_idle(system)
        assert seen == []
        assert not system.dead_letters.total


async def test_ended_and_exits_tell_who_is_no_actor() -> None:
    async with ActorSystem() as system, anyio.create_task_group() as tasks:
        ref, other = await system.spawn(Plain), await system.spawn(Plain)
        results: list[Any] = []

        async def wait() -> None:
            results.append(await ref.ended())

        async def pick() -> None:
            results.append(await select(ref.exits, other.exits))

        with anyio.move_on_after(0.01):
            await ref.ended()
        with anyio.move_on_after(0.01):
            await select(ref.exits, other.exits)
        assert ref._cell.extras is not None
        assert not ref._cell.extras.when_ended
        tasks.start_soon(wait)
        tasks.start_soon(pick)
        await settle()
        await ref.stop()
        await settle()
        assert sorted(results, key=str) == [(0, Stopped()), Stopped()]
        assert await select(other.exits, ref.exits, priority=True) == (1, Stopped())
        assert await ref.ended() == Stopped()


async def test_native_cancel_of_those_who_wait_for_an_end(anyio_backend_name: str) -> None:
    if anyio_backend_name != "asyncio":
        return
    async with ActorSystem() as system:
        ref = await system.spawn(Plain)
        tasks: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(ref.ended()),
            asyncio.ensure_future(select(ref.exits, ref.exits)),
        ]
        await settle()
        await ref.stop()
        for task in tasks:
            task.cancel()
        assert [type(one) for one in await asyncio.gather(*tasks, return_exceptions=True)] == [
            asyncio.CancelledError
        ] * 2


class Tie(Request[None]):
    do: Callable[[Any], Any]


class Linked(Actor[Tie | Bang | Boom | Hold | Get]):
    @on(Tie)
    def tie(self, message: Tie) -> None:
        message.do(self)

    @on(Bang)
    def bang(self, message: Bang) -> None:
        raise ValueError(message.why)

    @on(Boom)
    def boom(self, message: Boom) -> None:
        raise ValueError(message.why)

    @on(Hold)
    async def hold(self, message: Hold) -> None:
        await anyio.sleep_forever()

    @on(Get)
    def get(self, message: Get) -> list[Any]:
        return []


TEMPORARY = child(Linked).with_options(restart="temporary")


@pytest.mark.parametrize("first", [0, 1])
async def test_a_link_ends_both_when_one_ends_abnormally(first: int) -> None:
    async with ActorSystem() as system:
        pair = [await system.spawn(TEMPORARY), await system.spawn(TEMPORARY)]
        await pair[0].ask(Tie(lambda me: me.link(pair[1])))
        await pair[1 - first].tell(Hold())
        await settle()
        await pair[first].tell(Bang())
        exit_ = await pair[1 - first].ended()
        assert isinstance(exit_, Crashed)
        assert isinstance(exit_.error, LinkedExit)
        assert isinstance(exit_.error.__cause__, ValueError)
        assert f"{pair[first].path}, to which it is linked, crashed: ValueError" in str(exit_.error)


async def test_a_link_does_nothing_when_one_ends_normally_or_is_restarted() -> None:
    async with ActorSystem() as system:
        first, second, third = [await system.spawn(Linked) for _ in range(3)]
        await first.ask(Tie(lambda me: (me.link(second), me.link(third), me.link(third))))
        await second.tell(Bang())
        await second.ask(Get())
        await second.stop()
        await third.kill()
        await wait_until_idle(system)
        assert first.alive
        assert first.statistics().restarts == 0


async def test_linking_to_a_crashed_actor_crashes_with_linked_exit() -> None:
    async with ActorSystem() as system:
        dead, stopped, ref = [await system.spawn(TEMPORARY) for _ in range(3)]
        await dead.tell(Bang())
        await dead.ended()
        await stopped.stop()
        await ref.ask(Tie(lambda me: me.link(stopped)))
        await ref.ask(Tie(lambda me: me.link(dead)))
        exit_ = await ref.ended()
        assert isinstance(exit_, Crashed)
        assert isinstance(exit_.error, LinkedExit)


async def test_unlink_undoes_link_from_either_end() -> None:
    async with ActorSystem() as system:
        first, second = await system.spawn(TEMPORARY), await system.spawn(TEMPORARY)
        await first.ask(Tie(lambda me: me.link(second)))
        await second.ask(Tie(lambda me: me.unlink(first)))
        await second.ask(Tie(lambda me: me.unlink(first)))
        third = await system.spawn(TEMPORARY)
        await third.ask(Tie(lambda me: me.unlink(first)))
        await first.tell(Bang())
        await first.ended()
        await wait_until_idle(system)
        assert second.alive


async def test_two_linked_actors_that_fail_at_once_end_once() -> None:
    async with ActorSystem() as system:
        first, second = await system.spawn(TEMPORARY), await system.spawn(TEMPORARY)
        await first.ask(Tie(lambda me: me.link(second)))
        first.tell_nowait(Bang())
        second.tell_nowait(Bang())
        assert isinstance(await first.ended(), Crashed)
        assert isinstance(await second.ended(), Crashed)


class Join(Message):
    group: Any


class Member(Actor[Join | Put]):
    def __init__(self, got: list[Any], name: str) -> None:
        self.got, self.label = got, name

    @on(Join)
    def join_it(self, message: Join) -> None:
        self.join(message.group)

    @on(Put)
    def put(self, message: Put) -> None:
        self.got.append((self.label, message.item))


async def test_groups_broadcast_pick_in_turn_and_lose_members_that_end() -> None:
    async with ActorSystem() as system:
        got: list[Any] = []
        group = system.group("g")
        with pytest.raises(ActorNotFound, match=r"the group 'g' is empty: join\(\) an actor first"):
            group.pick()
        a, b = await system.spawn(Member, got, "a"), await system.spawn(Member, got, "b")
        await a.tell(Join("g"))
        await b.tell(Join(group))
        await wait_until_idle(system)
        assert [*group] == [a, b]
        group.join(a)
        assert len(group) == 2
        assert a in group
        assert "a" not in group
        assert group.broadcast(Put(1)) == 2
        await wait_until_idle(system)
        assert sorted(got) == [("a", 1), ("b", 1)]
        assert [group.pick() for _ in range(3)] == [a, b, a]
        await a.stop()
        assert [*group] == [b]
        group.join(a)
        assert [*group] == [b]
        group.leave(a)
        group.leave(b)
        group.leave(b)
        assert len(group) == 0
        assert system.group("g") is group
        assert group.broadcast(Put(2)) == 0


async def test_a_broadcast_counts_who_has_the_message() -> None:
    async with ActorSystem() as system:
        group = system.group("g")
        refs: list[Ref[Any]] = []
        for policy in (drop_oldest, drop_newest):
            ref = await system.spawn(child(Busy).with_options(capacity=1, overflow=policy))
            await ref.tell(Hold())
            await settle()
            await ref.tell(Put(0))
            refs.append(ref)
            group.join(ref)
        assert group.broadcast(Put(1)) == 1  # one dropped an older message for it
        assert system.dead_letters.counts == {"drop_oldest": 1, "drop_newest": 1}
        closing = refs[1]._cell
        closing.close()
        group.leave(refs[0])
        assert group.broadcast(Put(2)) == 0
        for ref in refs:
            ref.interrupt()
        assert isinstance(await outcome(refs[0].ask(Get())), list)
