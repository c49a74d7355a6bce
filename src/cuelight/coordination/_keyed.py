"""A limiter for each key (user, address, tenant), made when it is first asked for and forgotten when it is idle.

Invariants:

1. There is never more than one limiter for a key, as long as anybody holds one.
2. A limiter is forgotten only when a new one would do the same. One that somebody still holds, and uses, is remembered
   again, before anything is charged.
3. The lock of a limiter is never waited for with the lock here held; the other way round it may be.
4. No key costs a task or a timer. Each look-up looks at no more than four keys besides its own.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from threading import RLock
from typing import Final, Generic, NamedTuple, Protocol, TypeVar
from weakref import ReferenceType, WeakValueDictionary, ref

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
"""Look-ups at least between two rounds."""


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

    __slots__ = ("_forgotten", "_kept", "_lock", "_made", "_make", "_new", "_old", "_rest")

    def __init__(self, make: Callable[[K], L]) -> None:
        """Make one that knows no keys.

        Args:
            make: makes the limiter for a key. It is cheap to give all of them the same `RateLimitConfig`.
        """
        self._make = make
        self._lock = RLock()  # a limiter may be used after all in the middle of a look at it, by a task that ends
        # Keys are looked at in rounds: those that were not looked at in this round, and those that were, or are new.
        self._old: dict[K, L] = {}
        self._new: dict[K, L] = {}
        self._kept: WeakValueDictionary[K, L] = WeakValueDictionary()  # forgotten, but somebody may still hold them
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
                limiter = self._find(key, made)
                if limiter is not None:
                    self._look(limiter)
                    return limiter
            made = self._make(key)  # without the lock: this is the user's code

    def _find(self, key: K, made: L | None) -> L | None:
        limiter = self._new.get(key)
        if limiter is not None:
            return limiter
        limiter = self._old.pop(key, None)
        if limiter is None:
            limiter = self._kept.pop(key, None)
            if limiter is not None:
                self._forgotten -= 1
            elif made is None:
                return None
            else:
                limiter = made
                self._made += 1
        self._new[key] = limiter
        return limiter

    def _look(self, spared: L | None) -> None:
        if not self._old:
            self._rest -= 1
            if self._rest > 0:
                return
            self._old, self._new = self._new, {}
            self._rest = max(_REST, len(self._old))
        for _ in range(min(_LOOKS, len(self._old))):
            key, limiter = self._old.popitem()
            # Weakly: a limiter that nobody holds is to go at once, not when circles are collected.
            if limiter is not spared and limiter._retire(partial(self._revive, key, ref(limiter))):
                self._kept[key] = limiter
                self._forgotten += 1
            else:
                self._new[key] = limiter

    def _revive(self, key: K, forgotten: ReferenceType[L]) -> None:
        """Somebody held a limiter that was forgotten, and uses it: the lock of the limiter is held."""
        with self._lock:
            limiter = forgotten()
            if limiter is not None and self._kept.pop(key, None) is not None:
                self._new[key] = limiter
                self._forgotten -= 1

    def forget_idle(self) -> int:
        """Look at all keys now and forget the idle ones; it takes some microseconds for each key.

        Returns:
            How many were forgotten.
        """
        with self._lock:
            before = self._forgotten
            self._new.update(self._old)
            self._old, self._new = self._new, {}
            while self._old:
                self._look(None)
            return self._forgotten - before

    def __len__(self) -> int:
        return len(self._old) + len(self._new)

    def __repr__(self) -> str:
        return f"<KeyedLimiter {len(self)} keys>"

    def statistics(self) -> KeyedStatistics:
        """What it has done so far."""
        return KeyedStatistics(len(self), self._made, self._forgotten)
