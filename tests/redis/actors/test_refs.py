"""A ref to an actor of another node behaves as one to an actor of the own system."""

from __future__ import annotations

import math
from typing import Any

import anyio
import pytest

from cuelight import (
    Actor,
    ActorCrashed,
    ActorSystem,
    Crashed,
    Exit,
    Interrupted,
    NotStarted,
    Ref,
    ReplyError,
    Request,
    Stopped,
    Unknown,
    child,
    on,
)
from cuelight.actors import Killed, LinkedExit
from cuelight.errors import InterruptedTimeout, NotStartedTimeout
from helpers.nodes import (
    Add,
    Boom,
    Count,
    Echo,
    Forward,
    Log,
    Names,
    NoCoins,
    Odd,
    Plain,
    Player,
    Refuse,
    Ring,
    Seen,
    Send,
    Slow,
    Total,
    Watcher,
    cluster_name,
    inside,
    node,
    pair,
    until,
)


async def remote(here: ActorSystem, there: ActorSystem, kind: Any = Player, *args: Any) -> tuple[Ref[Any], Ref[Any]]:
    """An actor there: its ref as it is seen from here, and its own."""
    own = await there.spawn(kind, *args)
    await there.expose(own, "actor")
    return await here.resolve("actor"), own


@pytest.mark.parametrize("kind", [Plain, Player])
async def test_a_remote_actor_is_told_and_asked_in_order(kind: Any) -> None:
    async with pair() as (here, there):
        ref, own = await remote(here, there, kind)
        for amount in range(1, 101):
            await ref.tell(Add(amount))
        ref.tell_nowait(Add(1000))
        assert await ref.ask(Total()) == 5050 + 1000
        if kind is Plain:
            assert inside(own).amounts == [*range(1, 101), 1000]


async def test_answers_come_back_as_the_types_that_were_declared() -> None:
    async with pair() as (here, there):
        ref, _ = await remote(here, there)
        assert await ref.ask(Echo({"a": [1, 2], "b": []})) == {"a": [1, 2], "b": []}


async def test_many_asks_at_once_each_get_their_own_answer() -> None:
    async with pair() as (here, there):
        ref, _ = await remote(here, there)
        answers: dict[int, Any] = {}

        async def one(number: int) -> None:
            answers[number] = await ref.ask(Echo({"n": [number]}))

        async with anyio.create_task_group() as group:
            for number in range(300):
                group.start_soon(one, number)
        assert answers == {number: {"n": [number]} for number in range(300)}


async def test_a_remote_handler_refuses_or_crashes_as_a_local_one_does() -> None:
    async with pair() as (here, there):
        ref, own = await remote(here, there)
        with pytest.raises(NoCoins, match=r"^no coins$") as refusal:  # registered: it comes back as itself
            await ref.ask(Refuse("no coins"))
        assert refusal.value.wanted == 7
        with pytest.raises(ActorCrashed, match="bang") as crash:
            await ref.ask(Boom())
        assert isinstance(crash.value.__cause__, RuntimeError)
        assert crash.value.__cause__.args == ("bang",)
        assert await ref.ask(Total()) == 0  # restarted; the ref is still good
        assert own.alive


async def test_an_unregistered_refusal_comes_back_as_a_plain_one() -> None:
    async with pair() as (here, there):
        ref, _ = await remote(here, there, Plain)
        with pytest.raises(ReplyError, match="not today") as refusal:
            await ref.ask(Refuse("not today"))
        assert type(refusal.value) is ReplyError


async def test_cancelling_a_remote_ask_drops_it_or_cancels_its_handler() -> None:
    log = Log()
    async with pair() as (here, there):
        ref, _ = await remote(here, there, Player, log)
        async with anyio.create_task_group() as group:
            group.start_soon(_await, ref.ask(Slow(60, "a")))
            group.start_soon(_await, ref.ask(Slow(60, "b")))  # queued behind it
            await until(lambda: log.lines == ["begin a"])
            group.cancel_scope.cancel()
        assert await ref.ask(Total()) == 0
        assert [line.split(",")[0] for line in log.lines] == ["begin a", "cancelled a"]


async def _await(reply: Any) -> None:
    await reply


class FanOut(Request[list[str]]):
    refs: list[Any]
    detach: bool = False


class Orchestrator(Actor[FanOut]):
    """Asks several actors at once, and awaits their answers in turn."""

    @on(FanOut)
    async def ask_all(self, message: FanOut) -> list[str]:
        replies = [ref.ask(Slow(60, str(number))) for number, ref in enumerate(message.refs)]
        if message.detach:
            replies = [reply.detach() for reply in replies]
        return [await reply for reply in replies]


async def test_a_handler_that_ends_withdraws_what_it_has_asked_of_other_nodes() -> None:
    logs = [Log() for _ in range(3)]
    async with pair() as (here, there):
        refs: list[Ref[Any]] = []
        for number, log in enumerate(logs):
            own = await there.spawn(Player, log)
            await there.expose(own, f"player {number}")
            refs.append(await here.resolve(f"player {number}"))
        orchestrator = await here.spawn(Orchestrator)
        reply = orchestrator.ask(FanOut(refs))
        await until(lambda: all(len(log.lines) == 1 for log in logs))
        reply.cancel()
        await until(lambda: all(log.lines[-1].startswith("cancelled") for log in logs))
        for ref in refs:
            assert await ref.ask(Total()) == 0
        detached = orchestrator.ask(FanOut(refs, detach=True))
        await until(lambda: all(len(log.lines) == 3 for log in logs))
        detached.cancel()  # it awaits the first, so that one goes with it
        await until(lambda: logs[0].lines[-1].startswith("cancelled"))
        assert await orchestrator.ask(FanOut([])) == []
        assert [log.lines[-1] for log in logs[1:]] == ["begin 1", "begin 2"]
        for ref in refs:
            ref.interrupt()


async def test_a_remote_ask_that_is_given_up_is_unknown_and_its_handler_is_cancelled() -> None:
    log = Log()
    async with pair() as (here, there):
        ref, _ = await remote(here, there, Player, log)
        reply = ref.ask(Slow(60, "a"))
        await until(lambda: log.lines == ["begin a"])
        reply.cancel()
        with pytest.raises(Unknown, match="was cancelled"):
            await reply
        await until(lambda: log.lines[-1].startswith("cancelled a"))
        assert await ref.ask(Total()) == 0


async def test_remote_time_outs_say_whether_the_handler_had_begun() -> None:
    log = Log()
    async with pair() as (here, there):
        ref, _ = await remote(here, there, Player, log)
        with pytest.raises(InterruptedTimeout, match="was running"):
            await ref.ask(Slow(60, "a"), timeout=0.2)
        assert log.lines[0] == "begin a"
        await until(lambda: log.lines[-1].startswith("cancelled a"))
        first = ref.ask(Slow(60, "b"))
        with pytest.raises(NotStartedTimeout, match="had not begun"):
            await ref.ask(Total(), timeout=0.2)
        first.cancel()


async def test_the_remaining_time_travels_and_nested_asks_inherit_it() -> None:
    log = Log()
    async with pair() as (here, there):
        ref, _ = await remote(here, there)
        other = await here.spawn(Player, log)
        with pytest.raises(InterruptedTimeout):  # here asks there, which asks here again
            await ref.ask(Forward(other, slow=60), timeout=0.3)
        await until(lambda: log.lines[-1:] == ["cancelled nested, 0 s left"])


async def test_cancelling_reaches_through_nodes() -> None:
    log = Log()
    async with pair() as (here, there):
        ref, _ = await remote(here, there)
        other = await here.spawn(Player, log)
        async with anyio.create_task_group() as group:
            group.start_soon(_await, ref.ask(Forward(other, slow=60), timeout=math.inf))
            await until(lambda: log.lines == ["begin nested"])
            group.cancel_scope.cancel()
        await until(lambda: log.lines[-1].startswith("cancelled nested"))


async def test_a_remote_stream_gives_its_chunks_in_order() -> None:
    async with pair() as (here, there):
        ref, _ = await remote(here, there)
        assert [number async for number in ref.stream(Count(100))] == list(range(100))


async def test_a_remote_stream_runs_no_more_than_a_window_ahead_of_its_reader() -> None:
    log = Log()
    async with pair() as (here, there):
        ref, _ = await remote(here, there, Player, log)
        async with ref.stream(Count(100)) as stream:
            await until(lambda: len(log.lines) == 15)
            assert await anext(stream) == 0
            await anyio.sleep(0.05)
            assert len(log.lines) == 15  # "sent" is said after room was made, so the sixteenth waits to be said
            assert [await anext(stream) for _ in range(50)] == list(range(1, 51))
            await until(lambda: len(log.lines) >= 51 + 8)
            assert len(log.lines) <= 51 + 16
        await until(lambda: log.lines[-1] == "closed")


async def test_leaving_a_remote_stream_early_cancels_its_handler() -> None:
    log = Log()
    async with pair() as (here, there):
        ref, _ = await remote(here, there, Player, log)
        async with ref.stream(Count(10**9)) as stream:
            async for number in stream:
                if number == 40:
                    break
        await until(lambda: log.lines[-1] == "closed")
        assert await ref.ask(Total()) == 0


async def test_a_remote_stream_that_fails_midway_gives_the_chunks_then_the_error() -> None:
    async with pair() as (here, there):
        ref, _ = await remote(here, there)
        numbers: list[int] = []
        with pytest.raises(NoCoins, match="out of numbers"):
            async for number in ref.stream(Count(10, fail_at=5)):
                numbers += [number]
        assert numbers == [0, 1, 2, 3, 4]


async def test_an_answer_that_cannot_travel_says_that_the_handler_ran() -> None:
    async with pair() as (here, there):
        ref, _ = await remote(here, there)
        with pytest.raises(Interrupted, match=r"its answer was lost: builtins\.object cannot travel"):
            await ref.ask(Odd())
        assert await ref.ask(Total()) == 0  # the actor is none the worse for it


async def test_refs_travel_and_lead_back_to_the_same_actors() -> None:
    async with pair() as (here, there):
        friend = await here.spawn(Plain)
        ref, own = await remote(here, there, Player, None, [])
        inside(own).friends.append(own)
        await ref.tell(Send(friend, 17))  # an actor without a name is reached by its ref
        await until(lambda: inside(friend).total == 17)
        assert await ref.ask(Names()) == [ref, ref]  # a ref that comes back is the one that is here
        assert await ref.ask(Forward(ref.__class__(friend._cell))) == 17
        assert hash((await ref.ask(Names()))[0]) == hash(ref)


async def test_a_third_node_is_reached_by_a_ref_that_was_handed_on() -> None:
    cluster = cluster_name()
    async with (
        ActorSystem("one", node=node(cluster)) as one,
        ActorSystem("two", node=node(cluster)) as two,
        ActorSystem("three", node=node(cluster)) as three,
    ):
        counter = await three.spawn(Plain)
        await three.expose(counter, "counter")
        player = await two.spawn(Player)
        await two.expose(player, "player")
        far = await one.resolve("counter")
        await (await one.resolve("player")).tell(Send(far, 5))
        await until(lambda: inside(counter).total == 5)


async def test_asking_a_remote_actor_that_has_ended_fails_as_not_started() -> None:
    async with pair() as (here, there):
        ref, own = await remote(here, there)
        await own.stop()
        with pytest.raises(NotStarted, match="has ended"):
            await ref.ask(Total())
        await ref.tell(Add(1))
        await until(lambda: there.dead_letters.counts["stopped"] == 1)  # where the actor was, as with a local one


@pytest.mark.parametrize(("how", "expected"), [("stop", Stopped()), ("kill", Killed("enough"))])
async def test_watching_a_remote_actor_tells_how_it_ended(how: str, expected: Exit) -> None:
    async with pair() as (here, there):
        ref, own = await remote(here, there)
        watcher = await here.spawn(Watcher, ref)
        await watcher.ask(Seen())
        await (own.stop() if how == "stop" else own.kill("enough"))
        await until(lambda: inside(watcher).exits)
        assert inside(watcher).exits == [expected]
        assert await ref.ended() == expected
        assert not ref.alive
        late = await here.spawn(Watcher, ref)  # it tells also of those that had ended before
        assert await late.ask(Seen()) == [expected.describe()]


async def test_watching_a_remote_actor_that_ended_unseen_tells_at_once() -> None:
    async with pair() as (here, there):
        ref, own = await remote(here, there)
        await own.kill("long ago")
        watcher = await here.spawn(Watcher, ref)
        await until(lambda: inside(watcher).exits)
        assert await watcher.ask(Seen()) == ["killed (long ago)"]


async def test_a_remote_crash_reaches_watchers_without_its_objects() -> None:
    async with pair() as (here, there):
        ref, _ = await remote(here, there, child(Plain).with_options(restart="temporary"))
        watcher = await here.spawn(Watcher, ref)
        await watcher.ask(Seen())
        with pytest.raises(ActorCrashed):
            await ref.ask(Boom())
        exit_ = await ref.ended()
        assert isinstance(exit_, Crashed)
        assert exit_.describe() == "crashed: RuntimeError: bang"
        assert await watcher.ask(Seen()) == [exit_.describe()]


async def test_links_hold_across_nodes_in_both_directions() -> None:
    async with pair() as (here, there):
        ref, own = await remote(here, there, child(Plain).with_options(restart="temporary"))
        linked = await here.spawn(child(Watcher, ref, link=True).with_options(restart="temporary"))
        with pytest.raises(ActorCrashed):
            await ref.ask(Boom())
        exit_ = await linked.ended()
        assert isinstance(exit_, Crashed)
        assert isinstance(exit_.error, LinkedExit)

        ref, own = await remote(here, there, child(Plain).with_options(restart="temporary"))
        linked = await here.spawn(child(Watcher, ref, link=True).with_options(restart="temporary"))
        await until(lambda: own._cell.extras is not None and own._cell.extras.links)
        linked._cell.fail_with(RuntimeError("own end"))
        exit_ = await own.ended()
        assert isinstance(exit_, Crashed)
        assert isinstance(exit_.error, LinkedExit)


async def test_unlinking_undoes_it_across_nodes() -> None:
    async with pair() as (here, there):
        ref, own = await remote(here, there, child(Plain).with_options(restart="temporary"))
        linked = await here.spawn(child(Watcher, ref, link=True).with_options(restart="temporary"))
        await until(lambda: own._cell.extras is not None and own._cell.extras.links)
        inside(linked).unlink(ref)
        await until(lambda: own._cell.extras is not None and not own._cell.extras.links)
        linked._cell.fail_with(RuntimeError("own end"))
        assert isinstance(await linked.ended(), Crashed)
        assert await ref.ask(Total()) == 0


async def test_remote_actors_are_stopped_killed_and_interrupted() -> None:
    log = Log()
    async with pair() as (here, there):
        ref, own = await remote(here, there, Player, log)
        reply = ref.ask(Slow(60, "a"))
        await until(lambda: log.lines == ["begin a"])
        assert ref.interrupt("enough")
        with pytest.raises(Interrupted, match="enough"):
            await reply
        await ref.stop()
        assert (own.alive, ref.alive) == (False, False)
        assert not ref.interrupt()
        ref, own = await remote(here, there)
        await ref.kill("not needed")
        assert await ref.ended() == Killed("not needed")


async def test_stopping_a_permanent_remote_actor_returns_once_its_successor_is_up() -> None:
    async with pair() as (here, there):
        ref, own = await remote(here, there, child(Plain).with_options(restart="permanent"))
        await ref.tell(Add(5))
        await ref.stop()
        assert ref.alive
        assert own._cell.incarnation == 2
        assert await ref.ask(Total()) == 0


async def test_a_remote_ref_works_in_groups_timers_and_threads() -> None:
    async with pair() as (here, there):
        ref, own = await remote(here, there, Plain)
        group = here.group("all")
        group.join(ref)
        assert group.broadcast(Add(1)) == 1
        await anyio.to_thread.run_sync(ref.tell_threadsafe, Add(2))
        await until(lambda: inside(own).total == 3)
        await own.stop()
        await until(lambda: len(group) == 0)


async def test_asks_in_a_circle_through_nodes_end_with_their_time() -> None:
    async with pair() as (here, there):
        ref, _ = await remote(here, there)
        own = await here.spawn(Player)
        with pytest.raises(InterruptedTimeout):  # own asks there, which asks own again
            await own.ask(Ring(ref), timeout=0.3)
        assert await own.ask(Total()) == 0


async def test_a_remote_ref_says_where_it_leads() -> None:
    async with pair() as (here, there):
        ref, own = await remote(here, there)
        assert ref.path.startswith(f"{own.path}@there-")
        assert ref.name == own.name
        assert repr(ref) == f"<ref {ref.path}>"
        assert ref.alive
        assert ref.statistics().state == "running"
        assert ref == await here.resolve("actor")
        assert ref != own
