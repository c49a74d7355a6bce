"""Select: wait for several things at once, and take exactly one. `_case.py` describes how it claims its case."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from itertools import cycle, permutations
from random import Random
from threading import get_ident
from typing import Any, Final, Generic, Self, TypeVar, overload

import anyio

from cuelight.errors import ChannelClosed
from cuelight.mailbox._backend import Slot, await_until, new_slot, postpone_cancellation, yield_now
from cuelight.mailbox._case import CLOSED, NOT_READY, Case, CaseWaiter
from cuelight.mailbox._channel import BUDGET, Channel, Receiver, SendCase
from cuelight.mailbox._timers import Ticker, Timer, TimerCase

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
E = TypeVar("E")
T = TypeVar("T")

_random: Final = Random()  # noqa: S311 - for fairness, not for secrets
# All orders of up to five cases, so that drawing an order is one look-up. The first ready case in a uniformly drawn
# order is uniformly distributed among the ready cases.
_ORDERS: Final = [tuple(permutations(range(count))) for count in range(6)]
_COUNTS: Final = [len(orders) for orders in _ORDERS]
_draw: Final = _random.random
_Plain: Final[Any] = Channel
_METHODS: Final = ("case_poll", "case_enroll", "case_withdraw", "case_put_back")
_known: Final[set[type]] = {Channel, Receiver, SendCase, Timer, Ticker, type(None)}
_turns: Final = cycle([False] * (BUDGET - 1) + [True])


def seed_select(seed: int | str | bytes | None) -> None:
    """Make the choices of all selects without an `rng` argument repeatable. A seed of None makes them random again."""
    _random.seed(seed)


@overload
async def select(a: Case[A] | None, /, *, priority: bool = False, rng: Random | None = None) -> tuple[int, A]: ...
@overload
async def select(
    a: Case[A] | None, b: Case[B] | None, /, *, priority: bool = False, rng: Random | None = None
) -> tuple[int, A | B]: ...
@overload
async def select(
    a: Case[A] | None,
    b: Case[B] | None,
    c: Case[C] | None,
    /,
    *,
    priority: bool = False,
    rng: Random | None = None,
) -> tuple[int, A | B | C]: ...
@overload
async def select(
    a: Case[A] | None,
    b: Case[B] | None,
    c: Case[C] | None,
    d: Case[D] | None,
    /,
    *,
    priority: bool = False,
    rng: Random | None = None,
) -> tuple[int, A | B | C | D]: ...
@overload
async def select(
    a: Case[A] | None,
    b: Case[B] | None,
    c: Case[C] | None,
    d: Case[D] | None,
    e: Case[E] | None,
    /,
    *,
    priority: bool = False,
    rng: Random | None = None,
) -> tuple[int, A | B | C | D | E]: ...
@overload
async def select(*cases: Case[T] | None, priority: bool = False, rng: Random | None = None) -> tuple[int, T]: ...
async def select(  # noqa: C901, PLR0912 - a call for each case costs as much as the case
    *cases: Case[Any] | None, priority: bool = False, rng: Random | None = None
) -> tuple[int, Any]:
    """Wait until one of `cases` is ready and take only that one. This is a cancellation point when it waits.

    A case is one of these:

    * a channel or a `Receiver`, to receive;
    * `channel.sending(item)`, to send;
    * `after(seconds)` or `every(seconds)`;
    * any other object that implements `Case`;
    * None, which is never ready.

    A channel that is closed and drained drops out, and so does a timer that is over. The select continues with the
    other cases. Every 64th select lets other tasks run first.

    Args:
        *cases: the cases to wait for.
        priority: take the first ready case in the order of the arguments. Otherwise all ready cases are equally likely.
        rng: the generator that chooses among the ready cases. The default is the generator that `seed_select` seeds.

    Returns:
        The position of the case that was taken, and its item: the received item, None for a send or `after`, or the
        number of ended periods for `every`.

    Raises:
        ChannelClosed: all cases have dropped out, or a case would send to a closed channel. Nothing was taken.
        TypeError: an argument is not a case.
        ValueError: all cases are None, so the select would never return.
    """
    case: Any
    taken: tuple[int, Any] | None
    if not _known.issuperset(map(type, cases)):
        _check(cases)
    others: list[int] | None = None
    if next(_turns):
        await yield_now()
    while True:
        count = len(cases)
        if priority or rng is not None or not 1 < count < 6:
            order = _order(count, priority, rng)
        else:
            order = _ORDERS[count][int(_draw() * _COUNTS[count])]
        for index in order:
            case = cases[index]
            if type(case) is _Plain:  # case_poll inlined, because this is the hot path
                if case._senders:
                    item = case._receive_beside_senders()
                elif case._buffer:
                    case._received += 1
                    return index, case._buffer.popleft()
                else:
                    continue
            elif case is None:
                continue
            else:
                item = case.case_poll()
                if item is NOT_READY:
                    others = [index] if others is None else [*others, index]
            if item is not NOT_READY and item is not CLOSED:
                return index, item
        waiting = [index for index in order if type(case := cases[index]) is _Plain and not case._closed]
        if others:
            waiting += others
            others = None
        if not waiting:
            raise _nothing_left(cases)
        slot, enrolled, deadline = _enroll(cases, waiting)
        try:
            taken = await slot if deadline == math.inf else await await_until(slot, deadline)
        except BaseException as error:
            taken = _lasting_effect(cases, slot)
            if taken is None or not postpone_cancellation(error):
                raise
        finally:
            for waiter in enrolled:
                cases[waiter.index].case_withdraw(waiter)  # type: ignore[union-attr] # pyright: ignore[reportOptionalMemberAccess]
        # Otherwise a case has closed or the time of a timer has come: poll again.
        if taken is not None and taken[1] is not CLOSED:
            return taken


@overload
def select_nowait(a: Case[A] | None, /, *, priority: bool = False, rng: Random | None = None) -> tuple[int, A]: ...
@overload
def select_nowait(
    a: Case[A] | None, b: Case[B] | None, /, *, priority: bool = False, rng: Random | None = None
) -> tuple[int, A | B]: ...
@overload
def select_nowait(
    a: Case[A] | None,
    b: Case[B] | None,
    c: Case[C] | None,
    /,
    *,
    priority: bool = False,
    rng: Random | None = None,
) -> tuple[int, A | B | C]: ...
@overload
def select_nowait(*cases: Case[T] | None, priority: bool = False, rng: Random | None = None) -> tuple[int, T]: ...
def select_nowait(*cases: Case[Any] | None, priority: bool = False, rng: Random | None = None) -> tuple[int, Any]:
    """Take one of `cases` that is ready now. The cases and arguments are those of `select`.

    Raises:
        anyio.WouldBlock: no case is ready.
        ChannelClosed: all cases have dropped out, or a case would send to a closed channel. Nothing was taken.
        TypeError: an argument is not a case.
        ValueError: all cases are None.
    """
    _check(cases)
    waiting: list[int] = []
    taken = _poll(cases, _order(len(cases), priority, rng), waiting)
    if taken is not None:
        return taken
    if not waiting:
        raise _nothing_left(cases)
    raise anyio.WouldBlock


def merge(*cases: Case[T]) -> AsyncIterator[T]:
    """Iterate over the items of several channels as they arrive, fairly, until all are closed and drained."""
    _check(cases)
    return _Merge(cases)


class _Merge(Generic[T]):
    # Not an asynchronous generator: that could be closed at a point where it has taken an item and not yet yielded it.
    def __init__(self, cases: Sequence[Case[T]]) -> None:
        self._cases = cases

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        try:
            _, item = await select(*self._cases)
        except ChannelClosed:
            raise StopAsyncIteration from None
        return item


def _check(cases: Sequence[object]) -> None:
    for case in cases:
        if type(case) not in _known:
            if not all(callable(getattr(type(case), method, None)) for method in _METHODS):
                message = (
                    f"argument {cases.index(case)} of select is {case!r}, which is no case: give the channel itself to "
                    "receive, channel.sending(item), after(seconds), every(seconds) or None"
                )
                raise TypeError(message)
            _known.add(type(case))


def _order(count: int, priority: bool, rng: Random | None) -> Sequence[int]:
    if priority or count == 1:
        return range(count)
    rng = rng or _random
    if count < len(_ORDERS):
        orders = _ORDERS[count]
        return orders[int(rng.random() * len(orders))]
    return rng.sample(range(count), count)


def _poll(cases: Sequence[Case[Any] | None], order: Sequence[int], waiting: list[int]) -> tuple[int, Any] | None:
    """Take the first ready case in `order`. If none is ready, add those that may become ready to `waiting`."""
    for index in order:
        case = cases[index]
        if case is not None:
            item = case.case_poll()
            if item is NOT_READY:
                waiting.append(index)
            elif item is not CLOSED:
                return index, item
    return None


def _enroll(cases: Sequence[Any], waiting: list[int]) -> tuple[Slot, list[CaseWaiter], float]:
    """Enroll a waiter with each case. Also return the earliest deadline of the timers among them."""
    first = cases[waiting[0]]
    slot = first.make_slot() if type(first) is Channel else new_slot()  # a channel's own factory is faster
    thread = get_ident()
    enrolled: list[CaseWaiter] = []
    deadline = math.inf
    try:
        for index in waiting:
            case = cases[index]
            waiter = CaseWaiter(slot, index)
            enrolled.append(waiter)
            if type(case) is Channel and case._thread == thread and not case._senders:
                case._receivers[waiter] = None  # case_enroll inlined, because this is the hot path
                continue
            case.case_enroll(waiter)
            if isinstance(case, TimerCase):
                deadline = min(deadline, case.deadline)
    except BaseException:
        for waiter in enrolled:
            cases[waiter.index].case_withdraw(waiter)
        raise
    return slot, enrolled, deadline


def _lasting_effect(cases: Sequence[Any], slot: Slot) -> tuple[int, Any] | None:
    """After a cancellation, undo the effect of the case that was taken. Return that case if it cannot be undone."""
    taken: tuple[int, Any] | None = slot.result() if slot.done() and not slot.cancelled() else None
    if taken is None or taken[1] is CLOSED or cases[taken[0]].case_put_back(taken[1]):
        return None
    return taken


def _nothing_left(cases: Sequence[object]) -> Exception:
    if all(case is None for case in cases):
        return ValueError("select has no case but None, so it would wait for ever")
    return ChannelClosed("every case of this select is closed")
