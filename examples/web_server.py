"""A web server: an actor serves each websocket, and a signal ends all of them in order.

The application is plain ASGI, run by uvicorn. `cuelight.run` handles the signals. It stops the actors in reverse start
order: first each session notifies its client and closes the connection, and then the server ends.

    /web
      supervisor     rest_for_one: there is no connection without the server
        server       runs uvicorn until it is told to stop
        sessions     one child for each websocket

The program is its own client, in a thread. One session crashes. Two sessions are open when the program sends the signal
to itself.

Run it with `python examples/web_server.py`, or with `--signal SIGINT`. It needs uvicorn and websockets. uvicorn runs on
asyncio only, and so does this program.
"""

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Any

import anyio
import uvicorn
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from cuelight import (
    Actor,
    AskError,
    Crashed,
    DynamicSupervisor,
    Exit,
    Message,
    Ref,
    ReplyError,
    StartChild,
    Stopped,
    child,
    on,
    rest_for_one,
    run,
    supervisor,
)
from cuelight.actors import Start

INTERNAL_ERROR = 1011
SERVICE_RESTART = 1012
"""Close codes of a websocket. 1001, going away, is for a server that will not come back."""

Event = dict[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]


# A connection.


class Received(Message):
    text: str


class Session(Actor[Received]):
    """Talks to one client. The client is notified of the session's end, whatever the reason."""

    def __init__(self, client: str, send: Send) -> None:
        self.client, self.send = client, send
        self.count = 0

    async def started(self, why: Start) -> None:
        print(f"{self.client}: connected")
        await self.send({"type": "websocket.accept"})
        await self.say(f"hello, {self.client}")

    @on(Received)
    async def received(self, message: Received) -> None:
        if message.text == "crash":
            raise RuntimeError("this is a fault of the program")
        self.count += 1
        await self.say(f"message {self.count} was: {message.text}")

    async def stopped(self, why: Exit) -> None:
        print(f"{self.client}: ended after {self.count} messages: {why.describe()}")
        if isinstance(why, Stopped):
            return  # its client has left
        code, reason = (INTERNAL_ERROR, "an error") if isinstance(why, Crashed) else (SERVICE_RESTART, "a restart")
        try:
            await self.say("goodbye")
            await self.send({"type": "websocket.close", "code": code, "reason": reason})
        except OSError:
            pass  # the client has just left

    async def say(self, text: str) -> None:
        await self.send({"type": "websocket.send", "text": text})


# The server.


class Server(uvicorn.Server):
    """A server that leaves signal handling to `cuelight.run`."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


class Web(Actor[Message]):
    """Runs the server. It starts before the sessions, so it stops after they have ended."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener

    async def run(self) -> None:
        config = uvicorn.Config(
            self.serve,
            interface="asgi3",
            log_level="warning",
            lifespan="off",
            ws="websockets-sansio",
            timeout_graceful_shutdown=3,  # seconds for clients that do not close; less than `shutdown` of an actor, 5
        )
        server = Server(config)
        async with anyio.create_task_group() as tasks:
            # A copy, because the server closes it, and this actor may be restarted.
            tasks.start_soon(server.serve, [self.listener.dup()])
            async for _ in self.inbox:
                pass  # there are no messages: the loop waits until the actor is told to stop
            server.should_exit = True
        print("server: ended")

    async def serve(self, scope: Event, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        if scope["type"] == "websocket":
            await self.serve_websocket(scope["path"].strip("/"), receive, send)
        else:
            await send({"type": "http.response.start", "status": 404, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"here are websockets only\n"})

    async def serve_websocket(self, client: str, receive: Receive, send: Send) -> None:
        sessions: Ref[StartChild] = self.system.find("sessions")
        await receive()  # websocket.connect
        try:
            session: Ref[Received] = await sessions.ask(
                StartChild(child(Session, client, send).with_options(restart="temporary"))
            )
        except (AskError, ReplyError):  # the system is shutting down, or the session could not start
            await send({"type": "websocket.close"})
            return
        # `tell` waits while the mailbox is full, so a client cannot send more than its session can handle.
        while (event := await receive())["type"] == "websocket.receive":
            await session.tell(Received(event.get("text") or ""))
        await session.stop()  # the client has left, or the session has closed the connection


# The client, in a thread of this program.


class Client:
    """Records the messages that it receives."""

    def __init__(self, seen: list[str], name: str, connection: ClientConnection) -> None:
        self.seen, self.name, self.connection = seen, name, connection
        self.hear()

    def hear(self) -> None:
        self.seen.append(f"{self.name} hears: {self.connection.recv(decode=True)}")

    def say(self, text: str) -> None:
        self.connection.send(text)
        self.hear()

    def hear_the_end(self) -> None:
        try:
            while True:
                self.hear()
        except ConnectionClosed as closed:
            if closed.rcvd is not None:
                self.seen.append(f"{self.name} sees the end: {closed.rcvd.code}, {closed.rcvd.reason}")


def converse(port: int, ending: signal.Signals, seen: list[str]) -> None:
    url = f"ws://127.0.0.1:{port}"
    try:
        with connect(f"{url}/Ben") as connection:
            ben = Client(seen, "Ben", connection)
            ben.say("stand by")
            ben.connection.send("crash")
            ben.hear_the_end()
        with connect(f"{url}/Ann") as of_ann, connect(f"{url}/Eve") as of_eve:
            ann, eve = Client(seen, "Ann", of_ann), Client(seen, "Eve", of_eve)
            for text in ("stand by", "go"):
                ann.say(text)
            eve.say("stand by")
            os.kill(os.getpid(), ending)
            ann.hear_the_end()
            eve.hear_the_end()
    except BaseException:
        os.kill(os.getpid(), ending)
        raise


def main() -> None:
    logging.getLogger("cuelight").setLevel(logging.CRITICAL)  # hide the crash reports, which are logged as errors
    ending = signal.SIGINT if "SIGINT" in sys.argv else signal.SIGTERM
    seen: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = threading.Thread(target=converse, args=(listener.getsockname()[1], ending, seen))
        client.start()
        run(
            supervisor(
                child(Web, listener).with_options(name="server"),
                child(DynamicSupervisor).with_options(name="sessions"),
                strategy=rest_for_one,
            ),
            name="web",
        )
        print("the system has ended. What the clients saw:")
        client.join()
    print(*seen, sep="\n")


if __name__ == "__main__":
    main()
