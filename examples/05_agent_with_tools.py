"""An agent: an actor that talks to a model, streams its tokens, and uses tools that are actors as well.

The model is a fake: a TCP server in this program with a line protocol.

    agent: ask <text>                      model: token <text>
    agent: result <text>                   model: call <tool> <argument>
                                           model: done

Run it with `python examples/05_agent_with_tools.py`, or with `--backend trio`.
"""

import logging
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import anyio
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

from cuelight import (
    Actor,
    ActorCrashed,
    ActorSystem,
    Budget,
    Interrupted,
    Message,
    NotStarted,
    Ref,
    ReplyError,
    ReplyPort,
    Request,
    StreamRequest,
    child,
    on,
    supervisor,
)
from cuelight.actors import Start

TOOL_TIMEOUT = 0.2
MODEL_TIMEOUT = 0.3
"""Both in seconds."""


# The line protocol, the same for both sides.


class Line:
    """A connection that transfers lines."""

    def __init__(self, stream: SocketStream) -> None:
        self._stream = stream
        self._reader = BufferedByteReceiveStream(stream)

    async def send(self, word: str, text: str = "") -> None:
        await self._stream.send(f"{word} {text}\n".encode())

    async def receive(self) -> tuple[str, str]:
        line = await self._reader.receive_until(b"\n", 10_000)
        word, _, text = line.decode().partition(" ")
        return word, text

    async def __aenter__(self) -> "Line":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stream.aclose()


# The tools. Each is an actor: it may be slow, refuse a request or crash without harm to the agent.


class Use(Request[str]):
    argument: str


class Multiply(Actor[Use]):
    @on(Use)
    def use(self, message: Use) -> str:
        left, _, right = message.argument.partition("*")
        if not (left.isdecimal() and right.isdecimal()):
            raise ReplyError(f"{message.argument} is not a product")  # a refused request does not end the tool
        return str(int(left) * int(right))


class Weather(Actor[Use]):
    @on(Use)
    async def use(self, message: Use) -> str:
        await anyio.sleep(60)
        return f"sunny in {message.argument}"


class Dice(Actor[Use]):
    @on(Use)
    def use(self, message: Use) -> str:
        raise RuntimeError(f"the dice rolled under the {message.argument}")  # the tool crashes and is restarted


# The agent.


class Turn(StreamRequest[str]):
    """Say something to the agent. The answer comes token by token."""

    text: str


class Research(Request[str]):
    """Ask the agent to look something up. It does so concurrently with its turns."""

    topic: str


class Researched(Message):
    text: str
    reply: ReplyPort


class ModelSilent(ReplyError):
    """The model sent nothing for too long."""


class Agent(Actor[Turn | Research | Researched]):
    def __init__(self, port: int) -> None:
        self.port = port
        self.tools: dict[str, Ref[Use]] = {}

    async def started(self, why: Start) -> None:
        self.tools = {  # its children: they end when it ends, and are restarted when they crash
            "multiply": await self.spawn(child(Multiply).with_options(name="multiply")),
            "weather": await self.spawn(child(Weather).with_options(name="weather")),
            "dice": await self.spawn(child(Dice).with_options(name="dice")),
        }

    @on(Turn)
    async def turn(self, message: Turn) -> AsyncIterator[str]:
        """Handle one turn. An interrupt, or a user who leaves, ends this handler and its connection, but not the
        agent.
        """
        async with aclosing(self.complete(message.text)) as tokens:
            async for token in tokens:
                yield token

    @on(Research)
    def research(self, message: Research) -> str:
        reply = self.defer_reply()
        self.pipe_to_self(self.look_up(message.topic), lambda text: Researched(text, reply))
        return ""  # not sent: the reply was deferred

    @on(Researched)
    def researched(self, message: Researched) -> None:
        message.reply.send(message.text)

    async def look_up(self, topic: str) -> str:
        return " ".join([token async for token in self.complete(f"research {topic}")])

    async def complete(self, prompt: str) -> AsyncGenerator[str, None]:
        """Yield the tokens of the model's answer, and call tools when the model asks for them."""
        async with Line(await anyio.connect_tcp("127.0.0.1", self.port)) as line:
            await line.send("ask", prompt)
            while True:
                word, text = await self.receive(line)
                if word == "done":
                    return
                if word == "call":
                    name, _, argument = text.partition(" ")
                    await line.send("result", await self.use(name, argument))
                else:
                    self.spend(tokens=1)  # charged to the budget of the session
                    yield text

    async def receive(self, line: Line) -> tuple[str, str]:
        try:
            with anyio.fail_after(MODEL_TIMEOUT):
                return await line.receive()
        except TimeoutError:
            raise ModelSilent(f"the model was silent for {MODEL_TIMEOUT} s") from None

    async def use(self, name: str, argument: str) -> str:
        """Call a tool. Each kind of failure becomes an answer for the model."""
        tool = self.tools.get(name)
        if tool is None:
            return f"there is no tool {name}"
        try:
            return await tool.ask(Use(argument), timeout=TOOL_TIMEOUT)
        except ReplyError as refusal:
            return f"an error: {refusal}"
        except TimeoutError:  # its handler has already been cancelled
            return "a time-out"
        except ActorCrashed as crash:  # its supervisor, the agent, is already restarting it
            return f"a crash: {crash.__cause__}"


# The fake model.

SCRIPT: dict[str, list[str]] = {
    "What is 6 times 7?": ["token The product is", "call multiply 6*7"],
    "And cat times dog?": ["token The product is", "call multiply cat*dog"],
    "How is the weather in Ghent?": ["token The forecast is", "call weather Ghent"],
    "Roll the dice.": ["token You have rolled", "call dice sofa"],
    "research cue lights": ["token red: stand by,", "token green: go"],
}


async def model(stream: SocketStream) -> None:
    """Serve one connection."""
    async with Line(stream) as line:
        try:
            _, prompt = await line.receive()
            if prompt == "Say nothing.":
                await anyio.sleep(60)
            number = 0
            while prompt == "Count.":
                number += 1
                await line.send("token", str(number))
                await anyio.sleep(0.002)
            for step in SCRIPT[prompt]:
                word, _, text = step.partition(" ")
                await line.send(word, text)
                if word == "call":
                    _, result = await line.receive()
                    await line.send("token", result)
            await line.send("done")
        except (anyio.BrokenResourceError, anyio.IncompleteRead, anyio.EndOfStream):
            pass  # the agent was interrupted and has closed the connection


# The user.


async def converse(agent: Ref[Turn | Research], text: str, leave_at: str = "", interrupt_at: str = "") -> None:
    """Send a text to the agent and print the answer."""
    print(f"user:  {text}\nagent:", end="")
    async with agent.stream(Turn(text)) as tokens:  # leaving the block early closes the stream
        async for token in tokens:
            print(f" {token}", end="")
            if token == leave_at:
                print(" ...", end="")
                break
            if token == interrupt_at:
                agent.interrupt("the user has heard enough")  # anyone with the ref may do this
                async for _ in tokens:  # yields the tokens sent before, then raises Interrupted
                    pass
    print()


async def session(agent: Ref[Turn | Research]) -> None:
    for text in list(SCRIPT)[:4]:
        await converse(agent, text)
    try:
        await converse(agent, "Say nothing.")
    except ModelSilent as error:
        print(f" [{error}]")

    print("-- research runs beside the turns")
    research = agent.ask(Research("cue lights"))  # sent at once; awaited below
    await converse(agent, "Count.", leave_at="3")
    print(f"agent: found out: {await research}")

    print("-- an interrupt ends the turn; the agent goes on with the next one")
    try:
        await converse(agent, "Count.", interrupt_at="3")
    except Interrupted:
        print(" [interrupted]")
    await converse(agent, "What is 6 times 7?")

    print("-- a budget ends the session")
    try:
        async for _ in agent.stream(Turn("Count.")):
            pass
    except Interrupted:
        print(f"agent: [{(await agent.ended()).describe()}]")
    try:
        await agent.ask(Research("cue lights"))
    except NotStarted:
        print("user:  The agent has ended, so my question has not been begun.")


async def main() -> None:
    logging.getLogger("cuelight").setLevel(logging.CRITICAL)  # hide the crash reports, which are logged as errors
    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as server,
    ):
        server.start_soon(listener.serve, model)
        port = listener.extra(SocketAttribute.local_port)
        async with ActorSystem("agents") as system:
            spec = child(Agent, port).with_options(name="agent")
            team = await system.spawn(supervisor(spec, budget=Budget(tokens=100)))
            agent: Ref[Turn | Research] = system.find("agent")
            await session(agent)
            print(f"-- its supervisor {(await team.ended()).describe()}")
        server.cancel_scope.cancel()


if __name__ == "__main__":
    anyio.run(main, backend="trio" if "trio" in sys.argv else "asyncio")
