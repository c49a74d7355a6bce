"""What the types of channels and select promise. Not run: both type checkers must reject just the marked lines."""

import math
from random import Random
from typing import assert_type

from cuelight.mailbox import (
    Channel,
    Overflow,
    Permit,
    Receiver,
    Sender,
    after,
    coalesce,
    drop_oldest,
    every,
    merge,
    select,
    select_nowait,
)


class Animal: ...


class Dog(Animal): ...


async def items(numbers: Channel[int], words: Channel[str]) -> None:
    await numbers.send(1)
    await numbers.send("one")  # rejected
    numbers.send_nowait("one")  # rejected
    assert_type(await numbers.receive(), int)
    assert_type(numbers.receive_nowait(), int)
    async for word in words:
        assert_type(word, str)
    numbers.send(1)  # rejected
    permit = await numbers.reserve()
    assert_type(permit, Permit[int])
    permit.send("one")  # rejected


async def selects(numbers: Channel[int], words: Channel[str], dogs: Receiver[Dog]) -> None:
    assert_type(await select(numbers), tuple[int, int])
    assert_type(await select(numbers, words), tuple[int, int | str])
    assert_type(await select(numbers, words, dogs), tuple[int, int | str | Dog])
    assert_type(await select(numbers, after(1)), tuple[int, int | None])
    assert_type(await select(words, every(1), priority=True), tuple[int, str | int])
    assert_type(await select(words, numbers.sending(1), rng=Random(1)), tuple[int, str | None])
    assert_type(select_nowait(numbers, words), tuple[int, int | str])
    maybe = words if numbers.closed else None
    assert_type(await select(maybe, numbers), tuple[int, str | int])
    many = [numbers] * 9
    assert_type(await select(*many), tuple[int, int])
    async for item in merge(numbers, numbers):
        assert_type(item, int)
    await select(numbers.receive())  # rejected
    await select("numbers")  # rejected
    numbers.sending("one")  # rejected


async def ends(dogs: Channel[Dog], animals: Channel[Animal]) -> None:
    assert_type(dogs.sender(), Sender[Dog])
    assert_type(dogs.receiver(), Receiver[Dog])
    reads: Receiver[Animal] = dogs.receiver()
    writes: Sender[Dog] = animals.sender()
    wrong: Receiver[Dog] = animals.receiver()  # rejected
    harmful: Sender[Animal] = dogs.sender()  # rejected
    reads.send(Dog())  # rejected
    await writes.receive()  # rejected
    await writes.send(Dog())
    dogs.from_thread().send(Dog(), timeout=1)
    dogs.from_thread().send(Animal())  # rejected
    assert_type(dogs.from_thread().receive(), Dog)
    print(wrong, harmful)


def overflow() -> None:
    Channel[int](10, overflow=drop_oldest)
    Channel[str](math.inf, overflow=coalesce(len))
    Channel[int](10, overflow=coalesce(len))  # rejected
    Channel[int](10, overflow=print)
    Channel[int](10, on_dropped=lambda item, why: print(item + 1, why.upper()))
    policy: Overflow[int] = drop_oldest
    print(policy)
    Channel[int]("10")  # rejected
