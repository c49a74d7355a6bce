"""Combines the adds of one loop: adds that are requested while another one is under way are sent together after it.

Most of the cost of an add is the same for one task and for a hundred. Therefore many producers gain. A single producer
loses nothing, because its add is sent at once.

The invariants:

1. At most one add is under way. A caller that finds none leads: it sends its own add, and all waiting ones with the
   same bounds.
2. If a leader is cancelled, the adds that it sent for others go to the next leader, which sends them again. Each record
   carries a nonce, so the server recognises the same enqueue.
3. While a caller waits, there is a leader.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from cuelight.errors import StoreUnavailable
from cuelight.mailbox import Slot, new_slot

MOST: Final = 500
"""The greatest number of records that are sent together."""

_LEAD: Final = object()

Bounds = tuple[int, bool]
Send = Callable[[Bounds, list[Any], list[bytes]], Awaitable[Sequence[Any]]]
"""Sends cards and their blobs under a bound. The answer has two values for each card."""


class _Wish:
    __slots__ = ("blobs", "bounds", "cards", "slot")

    def __init__(self, bounds: Bounds, cards: list[Any], blobs: list[bytes]) -> None:
        self.bounds, self.cards, self.blobs = bounds, cards, blobs
        self.slot: Slot | None = None  # the slot on which its caller waits; None for the leader

    @property
    def deserted(self) -> bool:
        """Whether its caller no longer waits."""
        return self.slot is not None and self.slot.done()


class Together:
    """The adds of one store in one loop."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._waiting: deque[_Wish] = deque()
        self._is_led = False

    async def add(self, bounds: Bounds, cards: list[Any], blobs: list[bytes]) -> Sequence[Any]:
        """Send cards, alone or with others. Returns the answers to these cards. A checkpoint."""
        wish = _Wish(bounds, cards, blobs)
        if self._is_led:
            answer = await self._wait(wish)
            if answer is not _LEAD:
                if isinstance(answer, Exception):
                    raise answer
                found: Sequence[Any] = answer
                return found
        self._is_led = True
        return await self._lead(wish)

    async def _wait(self, wish: _Wish) -> Any:
        wish.slot = slot = new_slot()
        self._waiting.append(wish)
        try:
            return await slot
        except BaseException:
            if slot.done() and not slot.cancelled() and slot.result() is _LEAD:
                self._pass_on()  # cancelled just after it became the leader
            raise

    async def _lead(self, wish: _Wish) -> Sequence[Any]:
        wish.slot = None
        others = self._alike(wish)
        cards, blobs = list(wish.cards), list(wish.blobs)
        for other in others:
            cards += other.cards
            blobs += other.blobs
        try:
            answers = await self._send(wish.bounds, cards, blobs)
        except Exception as error:
            for other in others:
                _give(other, _again(error))
            raise
        except BaseException:
            self._waiting.extendleft(reversed(others))
            raise
        else:
            at = 2 * len(wish.cards)
            for other in others:
                _give(other, answers[at : at + 2 * len(other.cards)])
                at += 2 * len(other.cards)
            return answers[: 2 * len(wish.cards)]
        finally:
            self._pass_on()

    def _alike(self, wish: _Wish) -> list[_Wish]:
        """Take the waiting adds that can be sent with this one, in their order."""
        found: list[_Wish] = []
        room = MOST - len(wish.cards)
        while self._waiting:
            first = self._waiting[0]
            if not first.deserted:
                if first.bounds != wish.bounds or len(first.cards) > room:
                    break
                room -= len(first.cards)
                found.append(first)
            self._waiting.popleft()
        return found

    def _pass_on(self) -> None:
        """Make the next waiting caller the leader, if there is one."""
        while self._waiting:
            first = self._waiting.popleft()
            if not first.deserted:
                _give(first, _LEAD)
                return
        self._is_led = False


def _give(wish: _Wish, answer: Any) -> None:
    slot = wish.slot
    if slot is not None and not slot.done():
        slot.set_result(answer)


def _again(error: Exception) -> Exception:
    """Return an error of its own for another task, so that their tracebacks do not mix."""
    return type(error)(*error.args) if isinstance(error, StoreUnavailable) else error
