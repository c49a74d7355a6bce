"""Sliding windows: an exact log of the admitted requests, and two counters that approximate it.

There are no clocks and no tasks here. Times are whole nanoseconds.

Invariants of the log:

1. In any window, its beginning excluded, the admitted requests cost at most the limit. A request admitted at time t no
   longer counts at t + window.
2. The time at which a request is due is exact: it is admitted then, and not a nanosecond earlier.
3. After an amendment the log is as if the real cost had been charged at the start.

Invariants of the counters, whose windows begin at multiples of their length:

4. In each of these windows the admitted requests cost at most the limit, and in any other span of the same length at
   most twice the limit. The counters treat the requests of the last window as spread evenly over it.
5. The time at which a request is due is exact.
"""

from __future__ import annotations

from collections import deque

from cuelight.coordination._limit_meter import EVER, RateLimitConfig, Ticket


class WindowLog:
    """An exact log of the times and costs of admitted requests, up to `max_requests` entries. See `Meter`."""

    __slots__ = ("_entries", "_used", "_window", "most")

    def __init__(self, config: RateLimitConfig) -> None:
        self.most = config.max_requests
        self._window = config.window_nanoseconds
        self._entries: deque[list[int]] = deque()  # [time, cost], the oldest first
        self._used = 0

    def _expire(self, now: int) -> None:
        entries, began = self._entries, now - self._window
        while entries and entries[0][0] <= began:
            gone = entries.popleft()
            self._used -= gone[1]
            gone[0] = -EVER  # so that a late amendment sees that it has expired

    def take(self, now: int, cost: int) -> bool:
        """See `Meter`."""
        self._expire(now)
        if self._used + cost > self.most:
            return False
        if cost:
            self.book(now, now, cost)
        return True

    def due(self, now: int, cost: int, ahead: int = 0) -> int:
        """See `Meter`. A request that costs more than the limit waits until nothing counts."""
        self._expire(now)
        total = ahead + min(cost, self.most)
        # First the whole windows that the requests ahead fill, then the time until enough current entries expire.
        windows, rest = divmod(total - 1, self.most)
        lacking = rest + 1 - (self.most - self._used)
        if lacking <= 0:
            return now + windows * self._window
        for time, expiring in self._entries:
            lacking -= expiring
            if lacking <= 0:
                return time + (windows + 1) * self._window
        raise AssertionError("the log holds less than it says")  # pragma: no cover

    def book(self, now: int, slot: int, cost: int) -> Ticket:
        """See `Meter`."""
        entries = self._entries
        self._expire(now)
        if not entries or entries[-1][0] < now:
            entries.append([now, 0])
        entries[-1][1] += cost
        self._used += cost
        return entries[-1]

    def amend(self, ticket: Ticket, was: int, cost: int, now: int) -> Ticket:
        """See `Meter`. An entry that has left the window is not changed."""
        self._expire(now)
        if ticket[0] > now - self._window:
            ticket[1] += cost - was
            self._used += cost - was
        return ticket

    def left(self, now: int) -> int:
        """See `Meter`."""
        self._expire(now)
        return max(0, self.most - self._used)

    def unused_at(self, now: int) -> int:
        """See `Meter`."""
        self._expire(now)
        return self._entries[-1][0] + self._window if self._entries else now

    def update(self, config: RateLimitConfig, now: int) -> None:
        """See `Meter`. A longer window does not bring back entries that a shorter one has dropped."""
        self._expire(now)
        self.most = config.max_requests
        self._window = config.window_nanoseconds


class WindowCounter:
    """The admitted costs of this window and of the last one: two numbers, whatever the limit. See `Meter`."""

    __slots__ = ("_index", "_last", "_this", "_window", "most")

    def __init__(self, config: RateLimitConfig) -> None:
        self.most = config.max_requests
        self._window = config.window_nanoseconds
        self._index = self._last = self._this = 0

    def _roll(self, now: int) -> int:
        """Move on to the window of `now`; returns the time since its beginning."""
        index, into = divmod(now, self._window)
        if index != self._index:
            self._last = self._this if index == self._index + 1 else 0
            self._this = 0
            self._index = index
        return into

    def _used(self, now: int) -> int:
        into = self._roll(now)
        return self._this - (-self._last * (self._window - into) // self._window)

    def take(self, now: int, cost: int) -> bool:
        """See `Meter`."""
        if self._used(now) + cost > self.most:
            return False
        self._this += cost
        return True

    def due(self, now: int, cost: int, ahead: int = 0) -> int:
        """See `Meter`. A request that costs more than the limit waits until nothing counts."""
        into = self._roll(now)
        cost = min(cost, self.most)
        # Each window admits the limit at most, so the requests ahead delay it by whole windows.
        windows = (min(self._this, self.most) + ahead + cost - 1) // self.most if ahead else 0
        room = self.most - min(self.most, ahead + cost)
        window, this = self._window, self._this
        if this <= room:
            at = max(into, window - (room - this) * window // self._last) if self._last else into
        else:
            at = window + window - room * window // this
        return self._index * window + max(at, windows * window)

    def book(self, now: int, slot: int, cost: int) -> Ticket:
        """See `Meter`."""
        self._roll(now)
        self._this += cost
        return self._index

    def amend(self, ticket: Ticket, was: int, cost: int, now: int) -> Ticket:
        """See `Meter`. A booking that has left both windows is not changed."""
        self._roll(now)
        if ticket == self._index:
            self._this += cost - was
        elif ticket == self._index - 1:
            self._last += cost - was
        return ticket

    def left(self, now: int) -> int:
        """See `Meter`."""
        return max(0, self.most - self._used(now))

    def unused_at(self, now: int) -> int:
        """See `Meter`."""
        self._roll(now)
        windows = 2 if self._this else 1 if self._last else 0
        return (self._index + windows) * self._window if windows else now

    def update(self, config: RateLimitConfig, now: int) -> None:
        """See `Meter`. The cost that counts now counts as admitted in the new window."""
        used = self._used(now)
        self.most = config.max_requests
        self._window = config.window_nanoseconds
        self._index, self._last, self._this = now // self._window, 0, used
