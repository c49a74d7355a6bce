"""A limiter for each key (user, address, tenant), made at the first look-up and forgotten when it is idle.

Invariants:

1. A key never has more than one limiter, as long as a caller holds a reference to it.
2. A limiter is forgotten only when a new one would behave the same. If a caller still holds a forgotten limiter and
   uses it, it is remembered again before anything is charged.
3. The lock of a limiter is never waited for while the lock of this module is held; the reverse is allowed.
4. No key needs a task or a timer. Each look-up checks no more than four other keys.
5. Any number of keys may be used once and never again: the number of idle keys stays below twice the number of keys
   in use, plus 100.
6. An error raised by a key, a clock or a limiter fails the look-up of its own key only, and changes no limit.
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


class Evictable(Protocol):
    """The part of a limiter that this module needs; local and shared limiters have it."""

    def _try_evict(self, restore: Callable[[], None]) -> bool:
        """Agree to be forgotten, if idle. The limiter then calls `restore` before it is used again."""
        ...


K = TypeVar("K", bound=Hashable)
L = TypeVar("L", bound=Evictable)

CHECKS_PER_LOOKUP: Final = 4
"""The number of keys that each look-up checks for idleness."""

SHORTEST_PAUSE: Final = 64
"""Least number of look-ups between two rounds. With many keys it is 5/4 of the keys in use in the last round."""

log = get_log("cuelight")


class KeyedStatistics(NamedTuple):
    """Statistics of a `KeyedLimiter`.

    Attributes:
        keys: keys that are remembered now.
        made: limiters made so far.
        forgotten: limiters forgotten so far.
    """

    keys: int
    made: int
    forgotten: int


class KeyedLimiter(Generic[K, L]):
    """A limiter for each key: `users = KeyedLimiter(lambda user: AsyncTokenBucket(RateLimitConfig(10, 1)))`.

    Use it as `await users["alice"].acquire()`. Look-ups also forget other keys whose limiter is idle, and their
    statistics. A `KeyedLimiter` may be used from several event loops and threads at once.
    """

    __slots__ = (
        "_checked",
        "_evicted",
        "_forgotten",
        "_in_use",
        "_limiters",
        "_lock",
        "_made",
        "_make",
        "_pause",
        "_queue",
        "_unchecked",
    )

    def __init__(self, make: Callable[[K], L]) -> None:
        """Create a `KeyedLimiter` without keys.

        Args:
            make: makes the limiter for a key. It is cheap to give all of them the same `RateLimitConfig`.
        """
        self._make = make
        self._lock = RLock()  # re-entrant: a task that ends may use a limiter while it is being checked
        self._limiters: dict[K, L] = {}
        self._queue: deque[K] = deque()  # each remembered key once; those at the front are checked next
        self._evicted: WeakValueDictionary[K, L] = WeakValueDictionary()  # forgotten, but callers may still hold them
        self._checked: L | None = None  # being checked, and not used since the check began
        # Keys are checked in rounds, with a pause between rounds.
        self._unchecked = 0  # keys left to check in this round
        self._in_use = 0  # keys of this round that were not idle
        self._pause = 0  # look-ups until the next round
        self._made = self._forgotten = 0

    def __getitem__(self, key: K) -> L:
        """Return the limiter of this key: always the same one, as long as a caller holds it or it is not idle.

        Args:
            key: a hashable value.
        """
        made: L | None = None
        while True:
            with self._lock:
                limiter = self._limiters.get(key)
                if limiter is None:
                    limiter = self._register(key, made)
                if limiter is not None:
                    self._check_some(limiter)
                    return limiter
            made = self._make(key)  # without the lock, because this is user code

    def _register(self, key: K, made: L | None) -> L | None:
        """Register a limiter that is new, or that was forgotten while a caller held it."""
        limiter = self._evicted.get(key)
        if limiter is None:
            limiter = made
        if limiter is None:
            return None
        self._limiters[key] = limiter
        self._queue.append(key)
        if self._evicted.pop(key, None) is None:
            self._made += 1
        else:
            self._forgotten -= 1
        return limiter

    def _check_some(self, protected: L | None) -> None:
        """Check the next keys, if a round is due."""
        if not self._unchecked:
            self._pause -= 1
            if self._pause > 0:
                return
            self._unchecked, self._in_use = len(self._queue), 0
        queue = self._queue
        for _ in range(min(CHECKS_PER_LOOKUP, self._unchecked)):
            self._unchecked -= 1
            key = queue.popleft()
            try:
                self._checked = limiter = self._limiters.get(key)
                if limiter is None:  # a key whose comparison raised may be in the queue twice
                    continue
                # A weak reference, so that an unused limiter is freed at once and not by the cycle collector.
                if (
                    limiter is not protected
                    and limiter._try_evict(partial(self._restore, key, ref(limiter)))
                    and self._evict(key, limiter)
                ):
                    continue
            except BaseException as error:  # keys and clocks are user code
                if ends_the_program(error):
                    queue.append(key)
                    raise
                log.exception("whether the limiter of %s is idle is not known: it is kept", safe_repr(key))
            queue.append(key)
            self._in_use += 1
        self._checked = None
        if not self._unchecked:
            self._pause = max(SHORTEST_PAUSE, self._in_use + self._in_use // 4)

    def _evict(self, key: K, limiter: L) -> bool:
        """Forget a limiter that is idle. Returns False if it was used since the check began."""
        self._evicted[key] = limiter
        if self._checked is None:
            del self._evicted[key]
            return False
        del self._limiters[key]
        self._checked = None
        self._forgotten += 1
        return True

    def _restore(self, key: K, forgotten: ReferenceType[L]) -> None:
        """Remember a forgotten limiter that a caller held and now uses. The lock of the limiter is held."""
        with self._lock:
            limiter = forgotten()
            if limiter is None:
                return
            if limiter is self._checked:
                self._checked = None
            elif key in self._evicted:
                self._register(key, limiter)

    def forget_idle(self) -> int:
        """Check all keys now and forget the idle ones. This takes a few microseconds for each key.

        Returns:
            The number of keys that were forgotten.
        """
        with self._lock:
            before = self._forgotten
            self._unchecked, self._in_use = len(self._queue), 0
            while self._unchecked:
                self._check_some(None)
            return self._forgotten - before

    def __len__(self) -> int:
        return len(self._limiters)

    def __repr__(self) -> str:
        return f"<KeyedLimiter {len(self)} keys>"

    def statistics(self) -> KeyedStatistics:
        """Return the statistics so far."""
        return KeyedStatistics(len(self), self._made, self._forgotten)
