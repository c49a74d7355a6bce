"""Two actors that send each other a ball, and end one after the other.

It shows that a message can contain a ref, and how an actor is notified of the end of another actor.

Run it with `python examples/02_ping_pong.py`, or with `--backend trio`.
"""

from __future__ import annotations

import sys

import anyio

from cuelight import Actor, ActorSystem, Exit, Message, Ref, Terminated, child, on


class Ball(Message):
    """A ball that may be hit `hits_left` more times."""

    hits_left: int
    sender: Ref[Ball]


class Player(Actor[Ball]):
    @on(Ball)
    def hit(self, ball: Ball) -> None:
        self.watch(ball.sender)  # Terminated arrives once, however often this is called
        if ball.hits_left == 0:
            print(f"{self.name}: I let it go, and stop")
            self.stop()
            return
        print(f"{self.name}: {ball.hits_left}")
        ball.sender.tell_nowait(Ball(ball.hits_left - 1, self.ref))

    @on(Terminated)
    def alone(self, message: Terminated) -> None:
        print(f"{self.name}: {message.ref.name} has {message.exit.describe()}, so I stop too")
        self.stop()

    def stopped(self, why: Exit) -> None:
        print(f"{self.name}: {why.describe()}")


async def main() -> None:
    async with ActorSystem("table") as system:
        ping = await system.spawn(child(Player).with_options(name="ping"))
        pong = await system.spawn(child(Player).with_options(name="pong"))
        await ping.tell(Ball(hits_left=4, sender=pong))
        await system.wait()  # until both have ended
    print("the system has ended")


if __name__ == "__main__":
    anyio.run(main, backend="trio" if "trio" in sys.argv else "asyncio")
