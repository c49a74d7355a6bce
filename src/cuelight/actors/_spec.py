"""Specs: the data that a supervisor needs to start a child, and to start it again."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, Generic, Literal, Protocol, Self, TypeVar
from weakref import WeakKeyDictionary

import msgspec

from cuelight._text import safe_repr
from cuelight.mailbox import Overflow, checked_overflow, wait

M = TypeVar("M")

Restart = Literal["permanent", "transient", "temporary"]
"""When a child is restarted: always, only after a crash, or never."""

RESTARTS = ("permanent", "transient", "temporary")


class BackoffPolicy(Protocol):
    """Defines how long to wait before a restart. `Backoff` implements it."""

    @property
    def healthy_after(self) -> float:
        """Seconds of life after which the count of restarts begins again at 0."""
        ...

    def delay(self, restarts: int, jitter: float) -> float:
        """Return the seconds to wait before restart number `restarts` (from 0), with a random `jitter` in [0, 1)."""
        ...


class RestartLimitPolicy(Protocol):
    """Defines how many restarts are allowed. `RestartLimit` implements it."""

    @property
    def max_restarts(self) -> int:
        """The number of allowed restarts, for reports."""
        ...

    @property
    def within(self) -> float:
        """The window in seconds, for reports."""
        ...

    def count(self, history: tuple[float, ...], now: float) -> tuple[tuple[float, ...], bool]:
        """Count one more restart. Return the new history, and whether the restart is allowed."""
        ...


class Options(msgspec.Struct, frozen=True):
    """How a child is supervised. All children that are spawned without options share one instance.

    Attributes:
        restart: `permanent`, `transient` (the default: restarted after a crash) or `temporary`.
        shutdown: seconds that it may take to stop before it is cancelled.
        capacity: the number of messages that its mailbox holds.
        overflow: the overflow policy for a full mailbox.
        backoff: the delays before restarts; None takes the supervisor's.
        redeliver: how many incarnations one message may crash before it is quarantined. With 0 and 1 no message is run
            again.
        significant: whether its end may end its supervisor (see `auto_shutdown`).
        restart_limit: the allowed restarts, as a `RestartLimit`. One restart more, and the child stays ended, while its
            supervisor and its siblings continue. None counts the child's restarts towards the limit of the supervisor,
            which ends when that is exceeded.
    """

    restart: Restart = "transient"
    shutdown: float = 5.0
    capacity: int = 1000
    overflow: Overflow[Any] = wait
    backoff: BackoffPolicy | None = None
    redeliver: int = 0
    significant: bool = False
    restart_limit: RestartLimitPolicy | None = None

    def __post_init__(self) -> None:
        if self.restart not in RESTARTS:
            raise ValueError(f"restart={self.restart!r} is not one of {', '.join(map(repr, RESTARTS))}")
        if not self.shutdown >= 0:
            raise ValueError(f"shutdown={self.shutdown!r}: give seconds, 0 or more (math.inf waits for ever)")
        capacity: Any = self.capacity
        if capacity != math.inf and (isinstance(capacity, bool) or not isinstance(capacity, int) or capacity < 1):
            raise ValueError(
                f"capacity={capacity!r}: a mailbox holds 1 message or more; give a whole number (default 1000)"
            )
        checked_overflow(self.overflow)
        if self.restart_limit is not None and not callable(getattr(self.restart_limit, "count", None)):
            raise TypeError(f"restart_limit={safe_repr(self.restart_limit)}: give a RestartLimit, or None")
        if self.redeliver < 0:
            raise ValueError(f"redeliver={self.redeliver!r}: give the number of incarnations, 0 or more")
        if self.significant and self.restart == "permanent":
            raise ValueError("significant=True needs restart='transient' or 'temporary': a permanent child never ends")


DEFAULTS = Options()


class ChildSpec(Generic[M]):
    """The description of an actor that can be started and restarted: factory, arguments and options.

    Made by `child`. It is immutable: `with_options` returns a changed copy.
    """

    __slots__ = ("args", "factory", "kwargs", "name", "options")

    def __init__(
        self,
        factory: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        name: str | None = None,
        options: Options = DEFAULTS,
    ) -> None:
        self.factory, self.args, self.kwargs, self.name, self.options = factory, args, kwargs, name, options

    def with_options(self, *, name: str | None = None, **options: Any) -> Self:
        """Return a copy with another name or with some of the fields of `Options` changed.

        Args:
            name: a name, unique in the system.
            **options: fields of `Options`.

        Raises:
            TypeError: there is no such option, or the overflow policy is not a function.
            ValueError: a value is not valid. The message says which.
        """
        if not options:
            changed = self.options
        else:
            unknown = options.keys() - set(Options.__struct_fields__)
            if unknown:
                raise TypeError(
                    f"no such option: {', '.join(sorted(unknown))}; there are {', '.join(Options.__struct_fields__)}"
                )
            changed = msgspec.structs.replace(self.options, **options)
            changed.__post_init__()
        return type(self)(self.factory, self.args, self.kwargs, name=name or self.name, options=changed)

    def __repr__(self) -> str:
        shown = getattr(self.factory, "__name__", repr(self.factory))
        return f"<child {shown}{f' named {self.name!r}' if self.name else ''}>"


def check_function(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Check that an async function can be an actor: that it takes an inbox, followed by these arguments.

    Raises:
        TypeError: it cannot be called like that.
    """
    try:
        signature = _signatures.get(function)
        if signature is None:
            signature = _signatures[function] = inspect.signature(function)
    except (TypeError, ValueError):  # a callable without a signature, or one that cannot be weakly referenced
        return
    try:
        signature.bind(None, *args, **kwargs)
    except TypeError as error:
        name = getattr(function, "__qualname__", "the function")
        raise TypeError(
            f"cannot start {name}{signature} as an actor: it is called with its inbox and then with the arguments "
            f"that were given for it, but {error}. Write `async def {name}(inbox, ...)`"
        ) from None


_signatures: WeakKeyDictionary[Callable[..., Any], inspect.Signature] = WeakKeyDictionary()
