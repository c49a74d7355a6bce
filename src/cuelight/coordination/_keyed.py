"""A limiter for each key (user, address, tenant), made when it is first asked for and forgotten when it is idle.

Invariants:

1. There is never more than one limiter for a key, as long as anybody holds one.
2. A limiter is forgotten only when a new one would do the same. One that somebody still holds, and uses, is remembered
   again, before anything is charged.
3. The lock of a limiter is never waited for with the lock here held; the other way round it may be.
4. No key costs a task or a timer. Each look-up looks at no more than four keys besides its own.
5. However many keys come once and never again, idle keys are few: twice as many as those that are not, and 100 more.
6. Keys, clocks and limiters that raise cost the look-up of their own key, and nobody's limit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from functools import partial
from threading import RLock
from typing import Final, Generic, NamedTuple, Protocol, TypeVar
from weakref import ReferenceType, WeakValueDictionary, ref

from cuelight._log import get_log
from cuelight._text import safe_repr
from cuelight.errors import ends_the_program

__all__ = ["KeyedLimiter", "KeyedStatistics"]


class Forgettable(Protocol):
    """A limiter, as far as it matters here: of this process, or of all."""

    def _retire(self, revive: Callable[[], None]) -> bool:
        """Be forgotten, if idle: `revive` is to be called before it is used after all."""
        ...


K = TypeVar("K", bound=Hashable)
L = TypeVar("L", bound=Forgettable)

_LOOKS: Final = 4
"""Keys that each look-up looks at, to see whether they are idle."""

_REST: Final = 64
"""Look-ups at least between two rounds. Else they are 5/4 of the keys that were not idle in the last one."""

log = get_log("cuelight")


class KeyedStatistics(NamedTuple):
    """What a `KeyedLimiter` has done.

    Attributes:
        keys: that it remembers.
        made: limiters that it made so far.
        forgotten: those of them that it forgot.
    """

    keys: int
    made: int
    forgotten: int


class KeyedLimiter(Generic[K, L]):
    """A limiter for each key: `users = KeyedLimiter(lambda user: AsyncTokenBucket(RateLimitConfig(10, 1)))`.

    `await users["alice"].acquire()`. Keys whose limiter is as unused are forgotten as others are looked up, statistics
    included. It may be used from several event loops and threads at once.
    """

    __slots__ = (
        "_ahead",
        "_forgotten",
        "_in_use",
        "_kept",
        "_limiters",
        "_lock",
        "_made",
        "_make",
        "_queue",
        "_rest",
        "_retiring",
    )

    def __init__(self, make: Callable[[K], L]) -> None:
        """Make one that knows no keys.

        Args:
            make: makes the limiter for a key. It is cheap to give all of them the same `RateLimitConfig`.
        """
        self._make = make
        self._lock = RLock()  # a limiter may be used after all in the middle of a look at it, by a task that ends
        self._limiters: dict[K, L] = {}
        self._queue: deque[K] = deque()  # each key that is remembered, once; those at its front are looked at next
        self._kept: WeakValueDictionary[K, L] = WeakValueDictionary()  # forgotten, but somebody may still hold them
        self._retiring: L | None = None  # it is being looked at, and has not been used meanwhile
        # Keys are looked at in rounds, between which nothing is.
        self._ahead = 0  # keys that are still to be looked at in this round
        self._in_use = 0  # keys of this round that were not idle
        self._rest = 0  # look-ups until the next round
        self._made = self._forgotten = 0

    def __getitem__(self, key: K) -> L:
        """The limiter of this key: always the same one, as long as anybody holds it or it is not idle.

        Args:
            key: hashable.
        """
        made: L | None = None
        while True:
            with self._lock:
                limiter = self._limiters.get(key)
                if limiter is None:
                    limiter = self._remembered(key, made)
                if limiter is not None:
                    self._look(limiter)
                    return limiter
            made = self._make(key)  # without the lock: this is the user's code

    def _remembered(self, key: K, made: L | None) -> L | None:
        """A limiter that is new, or that was forgotten while somebody held it."""
        limiter = self._kept.get(key)
        if limiter is None:
            limiter = made
        if limiter is None:
            return None
        self._limiters[key] = limiter
        self._queue.append(key)
        if self._kept.pop(key, None) is None:
            self._made += 1
        else:
            self._forgotten -= 1
        return limiter

    def _look(self, spared: L | None) -> None:
        """Look at the next keys, if a round is due."""
        if not self._ahead:
            self._rest -= 1
            if self._rest > 0:
                return
            self._ahead, self._in_use = len(self._queue), 0
        queue = self._queue
        for _ in range(min(_LOOKS, self._ahead)):
            self._ahead -= 1
            key = queue.popleft()
            try:
                self._retiring = limiter = self._limiters.get(key)
                if limiter is None:  # a key whose comparison raised may be in the queue twice
                    continue
                # Weakly: a limiter that nobody holds is to go at once, not when circles are collected.
                if (
                    limiter is not spared
                    and limiter._retire(partial(self._revive, key, ref(limiter)))
                    and self._forget(key, limiter)
                ):
                    continue
            except BaseException as error:  # keys and clocks are code of users
                if ends_the_program(error):
                    queue.append(key)
                    raise
                log.exception("whether the limiter of %s is idle is not known: it is kept", safe_repr(key))
            queue.append(key)
            self._in_use += 1
        self._retiring = None
        if not self._ahead:
            self._rest = max(_REST, self._in_use + self._in_use // 4)

    def _forget(self, key: K, limiter: L) -> bool:
        """Forget a limiter that is idle; False if it was used meanwhile."""
        self._kept[key] = limiter
        if self._retiring is None:
            del self._kept[key]
            return False
        del self._limiters[key]
        self._retiring = None
        self._forgotten += 1
        return True

    def _revive(self, key: K, forgotten: ReferenceType[L]) -> None:
        """Somebody held a limiter that was forgotten, and uses it: the lock of the limiter is held."""
        with self._lock:
            limiter = forgotten()
            if limiter is None:
                return
            if limiter is self._retiring:
                self._retiring = None
            elif key in self._kept:
                self._remembered(key, limiter)

    def forget_idle(self) -> int:
        """Look at all keys now and forget the idle ones; it takes some microseconds for each key.

        Returns:
            How many were forgotten.
        """
        with self._lock:
            before = self._forgotten
            self._ahead, self._in_use = len(self._queue), 0
            while self._ahead:
                self._look(None)
            return self._forgotten - before

    def __len__(self) -> int:
        return len(self._limiters)

    def __repr__(self) -> str:
        return f"<KeyedLimiter {len(self)} keys>"

    def statistics(self) -> KeyedStatistics:
        """What it has done so far."""
        return KeyedStatistics(len(self), self._made, self._forgotten)
