"""An actor with its own loop: it selects over its mailbox, a channel and a timer.

It collects lines and writes them in batches: when a batch is full, when the oldest line has waited long enough, when it
is asked to through a channel, and when the actor is stopped.

Run it with `python examples/03_select_with_timers.py`, or with `--backend trio`.
"""

import sys

import anyio

from cuelight import Actor, ActorSystem, Channel, ChannelClosed, Message, after, select

PATIENCE = 0.1
"""The longest time that a line waits, in seconds."""


class Line(Message):
    text: str


class Batcher(Actor[Line]):
    def __init__(self, size: int, flushes: Channel[str], written: Channel[str]) -> None:
        self.size, self.flushes, self.written = size, flushes, written
        self.batch: list[str] = []

    async def run(self) -> None:
        deadline = None  # a case of select that is None is never ready
        while True:
            try:
                case, item = await select(self.inbox, self.flushes, deadline)
            except ChannelClosed:  # the actor is being stopped, and its mailbox is empty
                break
            if isinstance(item, Line):
                self.batch.append(item.text)
                deadline = deadline or after(PATIENCE)
                if len(self.batch) < self.size:
                    continue
            why = ("full", "asked for", "waited long enough")[case]
            await self.write(why)
            deadline = None
        await self.write("the end")

    async def write(self, why: str) -> None:
        batch, self.batch = self.batch, []
        await self.written.send(f"{why}: {', '.join(batch) or 'nothing'}")


async def main() -> None:
    flushes: Channel[str] = Channel(1)
    written: Channel[str] = Channel(10)
    async with ActorSystem("batches") as system:
        batcher = await system.spawn(Batcher, 3, flushes, written)

        for text in ("one", "two", "three"):
            await batcher.tell(Line(text))
        print(await written.receive())

        await batcher.tell(Line("four"))
        print(await written.receive())  # a tenth of a second later

        await batcher.tell(Line("five"))
        await system.wait_until_idle()  # "five" has been taken from the mailbox
        await flushes.send("now, please")
        print(await written.receive())

        await batcher.tell(Line("six"))
        flushes.close()  # select ignores a closed channel
        await batcher.stop()  # a closed mailbox ends the loop
        print(await written.receive())


if __name__ == "__main__":
    anyio.run(main, backend="trio" if "trio" in sys.argv else "asyncio")
