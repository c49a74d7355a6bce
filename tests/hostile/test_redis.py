"""Whatever code of users does that runs for a node, a lock, a limiter or a client, the others go on.

Each place tries all cases against one server, one after the other.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, timedelta, tzinfo
from typing import Any

import anyio
import msgspec
import pytest

from cuelight import (
    Actor,
    ActorSystem,
    AskError,
    Message,
    RateLimitConfig,
    Ref,
    ReplyError,
    Request,
    StreamRequest,
    child,
    on,
)
from cuelight._text import format_traceback
from cuelight.errors import MessageRefused
from cuelight.redis import (
    RedisClient,
    RedisLock,
    RedisRateLimiter,
    RedisReadWriteLock,
    RedisSemaphore,
    RedisTokenBucket,
)
from helpers import BACKENDS, Backend
from helpers.lockable import over_redis, until_server
from helpers.nodes import node_of, pair, until
from helpers.redis_servers import shared_server
from hostile.cases import AWAITED, CALLED, CASES, Case, Odd, catch_a_stray_cancellation, comes_out, covers, is_of

Place = Callable[[list[Case]], Awaitable[None]]

PLACES: list[Any] = []

CONTAINED = [case for case in CALLED if not case.ends_the_program]
CONTAINED_AWAITED = [case for case in AWAITED if not case.ends_the_program]


def place(*names: str, cases: list[Case]) -> Callable[[Place], Place]:
    """Enter a place, to be tried with these cases."""

    def enter(function: Place) -> Place:
        covers(*names)(function)
        PLACES.append(pytest.param(function, cases, id=function.__name__))
        return function

    return enter


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Backend:
    return BACKENDS[request.param]


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("function", "cases"), PLACES)
async def test_nodes_locks_and_limiters_go_on_whatever_code_of_users_does(function: Place, cases: list[Case]) -> None:
    with anyio.CancelScope():
        await catch_a_stray_cancellation()
    raised: BaseException | None = None
    try:
        await function(cases)
    except BaseException as error:
        raised = error
    if raised is not None:  # as text, because the runner of the tests is no match for some of these errors
        pytest.fail(format_traceback(raised), pytrace=False)


async def body(case: Case) -> None:
    """A block that does what the case does, and is cancelled if it does not end."""
    with anyio.move_on_after(0.2):
        await case.act_async()


# Remote actors.


class Do(Request[Any]):
    case: str


class Tell(Message):
    case: str


class Chunks(StreamRequest[int]):
    case: str


class Ping(Request[str]):
    pass


class Plainly(Actor[Do | Tell | Ping]):
    @on(Do)
    def do(self, message: Do) -> None:
        CASES[message.case].act()

    @on(Tell)
    def tell(self, message: Tell) -> None:
        CASES[message.case].act()

    @on(Ping)
    def ping(self, message: Ping) -> str:
        return "pong"


class Awaiting(Actor[Do | Tell | Chunks]):
    @on(Do)
    async def do(self, message: Do) -> None:
        await CASES[message.case].act_async()

    @on(Tell)
    async def tell(self, message: Tell) -> None:
        await CASES[message.case].act_async()

    @on(Chunks)
    async def chunks(self, message: Chunks) -> AsyncIterator[int]:
        yield 1
        await CASES[message.case].act_async()


class Decoded(Request[int]):
    """Its own check may do anything when it is made of what came."""

    case: str

    def __post_init__(self) -> None:
        if self.case != "sent":
            CASES[self.case].act()


class Shown(Request[int]):
    """Cannot be shown, compared or hashed."""

    case: str = ""
    fill: str = ""

    def __repr__(self) -> str:
        CASES[self.case].act()
        return "shown"

    def __eq__(self, other: object) -> bool:
        CASES[self.case].act()
        return False

    def __hash__(self) -> int:
        CASES[self.case].act()
        return 7


class Told(Message):
    """The same, told."""

    case: str = ""

    def __repr__(self) -> str:
        CASES[self.case].act()
        return "told"

    def __eq__(self, other: object) -> bool:
        CASES[self.case].act()
        return False

    __hash__ = None  # type: ignore[assignment]


class Zoned(Message):
    """Carries a time in a zone that is code of a user."""

    at: datetime


class Taking(Actor[Decoded | Shown | Told | Zoned | Ping]):
    @on(Decoded)
    def decoded(self, message: Decoded) -> int:
        return 1

    @on(Shown)
    async def shown(self, message: Shown) -> int:
        if message.fill == "wait":
            await anyio.sleep_forever()
        if message.fill == "crash":
            raise ValueError(message)
        return 1

    @on(Told)
    def told(self, message: Told) -> None:
        raise ValueError("crash")

    @on(Zoned)
    def zoned(self, message: Zoned) -> None:
        """Nothing."""

    @on(Ping)
    def ping(self, message: Ping) -> str:
        return "pong"


MESSAGES = [Do, Tell, Chunks, Ping, Decoded, Shown, Told, Zoned]


class Nodes:
    """Two nodes and an actor on each that has nothing to do with any of it."""

    def __init__(self, here: ActorSystem, there: ActorSystem, bystander: Ref[Any]) -> None:
        self.here, self.there, self.bystander = here, there, bystander
        self.identities = node_of(here).identity, node_of(there).identity
        self._number = 0

    async def remote(self, factory: Any, **options: Any) -> Ref[Any]:
        """An actor of the other node that is not restarted."""
        self._number += 1
        made = child(factory).with_options(restart="temporary", **options)
        await self.there.expose(await self.there.spawn(made), f"actor {self._number}")
        return await self.here.resolve(f"actor {self._number}")

    async def go_on(self, case: Case) -> None:
        """Bystanders are asked as before, and nobody was declared lost."""
        assert await self.bystander.ask(Ping(), timeout=20) == "pong", case
        assert (node_of(self.here).identity, node_of(self.there).identity) == self.identities, case


async def with_nodes(cases: list[Case], use: Callable[[Nodes, Case], Awaitable[None]], **options: Any) -> None:
    async with pair(messages=MESSAGES, **options) as (here, there):
        await there.expose(await there.spawn(Plainly), "bystander")
        nodes = Nodes(here, there, await here.resolve("bystander"))
        for case in cases:
            with anyio.fail_after(30):
                await use(nodes, case)
                await nodes.go_on(case)


async def told(reply: Awaitable[Any]) -> Any:
    """The answer, or the error of which the asker is told; it is told in any case."""
    try:
        return await reply
    except (AskError, ReplyError) as error:
        return error


@place("remote on(def)", cases=CONTAINED)
async def a_plain_remote_handler(cases: list[Case]) -> None:
    async def use(nodes: Nodes, case: Case) -> None:
        answer = await told((await nodes.remote(Plainly)).ask(Do(case.name), timeout=10))
        assert isinstance(answer, AskError) is case.raises, (case, answer)
        ref = await nodes.remote(Plainly)
        await ref.tell(Tell(case.name))
        if case.raises:
            assert "crashed" in (await ref.ended()).describe()

    await with_nodes(cases, use)


@place("remote on(async def)", cases=CONTAINED_AWAITED)
async def an_async_remote_handler(cases: list[Case]) -> None:
    async def use(nodes: Nodes, case: Case) -> None:
        asked = await nodes.remote(Awaiting)
        answer = await told(asked.ask(Do(case.name), timeout=0.3 if case.suspends else 10))
        assert isinstance(answer, AskError) is (case.raises or case.suspends), (case, answer)
        watched = await nodes.remote(Awaiting)
        await watched.tell(Tell(case.name))
        if case.raises:
            await watched.ended()
        for ref in (asked, watched):
            for _ in range(4):
                ref.interrupt("it may be at it")

    await with_nodes(cases, use)


@place("remote on(async generator)", cases=CONTAINED_AWAITED)
async def a_remote_stream_handler(cases: list[Case]) -> None:
    async def use(nodes: Nodes, case: Case) -> None:
        ref = await nodes.remote(Awaiting)
        got: list[int] = []
        error: BaseException | None = None
        try:
            async for chunk in ref.stream(Chunks(case.name), timeout=0.3 if case.suspends else 10):
                got += [chunk]
        except AskError as raised:
            error = raised
        assert got == [1]
        assert (error is not None) is (case.raises or case.suspends), case
        for _ in range(4):
            ref.interrupt("it may be at it")

    await with_nodes(cases, use)


@place("messages=[...], __post_init__", cases=CONTAINED)
async def the_check_of_a_message_that_comes(cases: list[Case]) -> None:
    async def use(nodes: Nodes, case: Case) -> None:
        ref = await nodes.remote(Taking)
        coder = node_of(nodes.here)._membership.coder
        message = Decoded("sent")
        name, body = coder.message(message)
        assert coder.read(name, body).case == "sent"
        other = msgspec.msgpack.encode({"type": "Decoded", "case": case.name})
        with_body = Decoded("sent")
        real = coder.message

        def swapped(given: Any) -> tuple[str, bytes]:
            return (name, other) if given is with_body else real(given)

        coder.message = swapped
        try:
            answer = await told(ref.ask(with_body, timeout=10))
        finally:
            del coder.message
        assert isinstance(answer, AskError) is case.raises, (case, answer)

    await with_nodes(cases, use)


@place("__repr__ of a remote message", cases=CONTAINED)
async def a_remote_message_that_cannot_be_shown(cases: list[Case]) -> None:
    async def use(nodes: Nodes, case: Case) -> None:
        for fill in ("", "crash", "wait"):
            ref = await nodes.remote(Taking)
            answer = await told(ref.ask(Shown(case.name, fill), timeout=0.2 if fill == "wait" else 10))
            assert isinstance(answer, AskError) is (fill != ""), (case, answer)
        ref = await nodes.remote(Taking)
        with anyio.move_on_after(0.05):
            await ref.ask(Shown(case.name, "wait"))
        await ref.tell(Told(case.name))
        assert "crashed" in (await ref.ended()).describe()
        await ref.tell(Told(case.name))  # a dead letter, which keeps it

    await with_nodes(cases, use)


class Zone(tzinfo):
    def __init__(self, case: Case) -> None:
        self.case = case

    def utcoffset(self, _: datetime | None) -> timedelta:
        self.case.act()
        return timedelta(0)

    def dst(self, _: datetime | None) -> None:
        return None

    def tzname(self, _: datetime | None) -> str:
        return "odd"


@place("the fields of a remote message", cases=CONTAINED)
async def a_field_of_a_message_that_is_sent(cases: list[Case]) -> None:
    async def use(nodes: Nodes, case: Case) -> None:
        ref = await nodes.remote(Taking)
        refused = False
        try:
            await ref.tell(Zoned(datetime(2026, 1, 1, tzinfo=Zone(case))))
        except MessageRefused:
            refused = True
        assert refused is case.raises, case
        assert await ref.ask(Ping()) == "pong"

    await with_nodes(cases, use)


@place("overflow of a remote actor", cases=CONTAINED)
async def the_overflow_policy_of_a_remote_actor(cases: list[Case]) -> None:
    async def use(nodes: Nodes, case: Case) -> None:
        def overflow(*_: Any) -> Any:
            case.act()

        ref = await nodes.remote(Awaiting, capacity=1, overflow=overflow)
        before = nodes.there.dead_letters.counts["mailbox_full"]
        await ref.tell(Tell("never returns"))
        for _ in range(4):
            await ref.tell(Tell("blocks"))
        if case.raises:
            await until(lambda: nodes.there.dead_letters.counts["mailbox_full"] > before)
        for _ in range(4):
            ref.interrupt("it may be at it")

    await with_nodes(cases, use)


class Raising(logging.Handler):
    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case

    def emit(self, record: logging.LogRecord) -> None:
        self.case.act()


@place("logging, of a node", cases=CONTAINED)
async def the_log_handler_while_a_node_is_lost(cases: list[Case]) -> None:
    logger = logging.getLogger("cuelight")
    async with pair(messages=MESSAGES, lease=1) as (here, there):
        own = await there.spawn(Plainly)
        await there.expose(own, "actor")
        for case in cases:
            handler = Raising(case)
            logger.addHandler(handler)
            try:
                with anyio.fail_after(30):
                    identity = node_of(there).identity
                    directory = node_of(there)._membership.directory
                    await directory.leave()  # as if its lease had run out
                    await until(lambda: node_of(there).identity != identity)  # noqa: B023 - awaited here
                    ref = await here.resolve("actor", timeout=20)
                    assert await ref.ask(Ping(), timeout=20) == "pong", case
            finally:
                logger.removeHandler(handler)


# Locks.


@place("async with RedisLock", cases=AWAITED)
async def the_block_of_a_lock_over_redis(cases: list[Case]) -> None:
    where = over_redis()
    locks: list[Any] = [
        RedisLock("lock", **where),
        RedisSemaphore("semaphore", 1, **where),
        RedisReadWriteLock("write", **where).write(),
    ]
    for case in cases:
        for lock in locks:
            with comes_out(case):
                async with lock:
                    await body(case)
            with anyio.fail_after(10):
                async with lock:
                    pass


@place("RedisLock(on_loss)", cases=CONTAINED)
async def a_function_that_is_told_of_a_loss(cases: list[Case]) -> None:
    where = over_redis()
    for case in cases:
        calls: list[Any] = []

        def lost(lease: Any, case: Case = case, calls: list[Any] = calls) -> None:
            calls.append(lease)
            case.act()

        first, second = (RedisLock(name, **where, lease=0.4, on_loss=lost) for name in ("a", "b"))
        kept = RedisLock("kept", **where, lease=0.4, on_loss="flag")
        async with kept.hold() as lease:
            await first.acquire()
            await second.acquire()
            leases = [first.lease, second.lease]
            async with RedisClient(where["redis_url"]) as client:
                for lock in (first, second):
                    await client.execute("DEL", *lock._state.names.keys)
            await until(lambda: len(calls) == 2)  # noqa: B023 - awaited here
            assert all(one.lost for one in leases)
            await anyio.sleep(0.5)  # longer than its lease
            lease.check()
        for lock in (first, second):
            with pytest.raises(Exception, match="is over"):
                lock.release()


# Limiters and the client.


@place("RedisRateLimiter.request", cases=AWAITED)
async def the_block_of_a_request_over_redis(cases: list[Case]) -> None:
    where = over_redis()
    async with RedisClient(where["redis_url"]) as client:
        limits = {"requests": RateLimitConfig(10_000, window_seconds=100), "concurrency": 1}
        limiter = RedisRateLimiter("it", server=client, prefix=where["prefix"], **limits)  # type: ignore[arg-type]
        bucket = RedisTokenBucket(
            "other", RateLimitConfig(10_000, window_seconds=100), server=client, prefix=where["prefix"]
        )
        for case in cases:
            for refund in (False, True):
                with comes_out(case):
                    async with limiter.request(refund_on_failure=refund):
                        await body(case)
                with anyio.fail_after(10):
                    async with limiter.request():
                        pass
            with comes_out(case):
                await bucket.limited()(body)(case)
            assert (await bucket.try_acquire()).allowed
        await limiter.aclose()
        await bucket.aclose()


@place("Server.subscribe(on_message)", cases=CONTAINED)
async def a_listener_of_a_channel(cases: list[Case]) -> None:
    async with RedisClient(shared_server().url) as client:
        for case in cases:
            channel = f"{over_redis()['prefix']}:channel"
            heard: list[bytes] = []
            ready: list[bytes] = []

            def listen(message: bytes, case: Case = case, heard: list[bytes] = heard) -> None:
                heard.append(message)
                case.act()

            first = await client.subscribe(channel, listen, lambda: None)
            second = await client.subscribe(channel, ready.append, lambda: None)
            for number in range(3):
                await client.publish(channel, b"%d" % number)
            await until(lambda: len(heard) == len(ready) == 3)  # noqa: B023 - awaited here
            assert await client.execute("PING") in {b"PONG", "PONG", True}
            first.close()
            second.close()


class Credentials:
    """A credential provider, as redis-py has them."""

    case: Case | None = None

    def get_credentials(self) -> tuple[str, str]:
        if self.case is not None:
            self.case.act()
        return "default", ""

    async def get_credentials_async(self) -> tuple[str, str]:
        if self.case is not None:
            await self.case.act_async()
        return "default", ""


@place("RedisClient(credential_provider)", cases=CONTAINED)
async def a_provider_of_credentials(cases: list[Case]) -> None:
    for case in cases:
        provider: Any = Credentials()
        provider.case = case
        async with RedisClient(shared_server().url, credential_provider=provider, timeout=0.5) as client:
            error: BaseException | None = None
            with anyio.fail_after(10):
                try:
                    await client.execute("GET", "nothing")
                except BaseException as raised:
                    if not isinstance(raised, Exception) and not is_of(case, raised):
                        raise
                    error = raised
                assert (error is not None) or not case.raises, case
                provider.case = None
                await until_server(lambda: answers(client))


async def answers(client: RedisClient) -> bool:
    try:
        await client.execute("GET", "nothing")
    except (Exception, GeneratorExit, Odd):  # the last attempt may still be under way
        return False
    return True
