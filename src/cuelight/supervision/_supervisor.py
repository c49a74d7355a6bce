"""Supervisors: declared as a class or as a value, and dynamic ones that get their children while they run."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar

import msgspec

from cuelight._text import safe_repr, safe_str
from cuelight.actors import Actor, Cell, ChildSpec, Crashed, Ref, ReplyPort, Request, Start, child, on
from cuelight.errors import ActorNotFound, CuelightError, ReplyError, StartError
from cuelight.supervision._budget import Budget
from cuelight.supervision._children import AutoShutdown, SupervisionPolicy
from cuelight.supervision._policies import Backoff, RestartLimit, Strategy, one_for_one


class ChildInfo(msgspec.Struct, frozen=True):
    """One child of a supervisor.

    Attributes:
        name: its name.
        ref: its address.
        state: as in `Ref.statistics`.
        restarts: the number of restarts since it was last healthy.
    """

    name: str
    ref: Ref[Any]
    state: str
    restarts: int


class StartChild(Request[Ref[Any]]):
    """Ask a supervisor to start another child. The answer comes after the start; an error is a `Refused`."""

    spec: ChildSpec[Any]


class StopChild(Request[None]):
    """Ask a supervisor to stop a child, by name or ref. The answer comes after the child has ended."""

    child: str | Ref[Any]


class RestartChild(Request[None]):
    """Ask a supervisor to restart a child, by name or ref. Its incarnation ends after the running handler."""

    child: str | Ref[Any]


class WhichChildren(Request[list[ChildInfo]]):
    """Ask a supervisor for its children, in start order."""


SupervisorMessage = StartChild | StopChild | RestartChild | WhichChildren


class Refused(ReplyError):
    """A supervisor could not carry out a request; the reason is the cause."""


class Supervisor(Actor[SupervisorMessage]):
    """An actor that only supervises its children. Subclass it, set the class attributes and list the children.

    For example:

        class Session(Supervisor):
            strategy = rest_for_one

            def specs(self) -> list[ChildSpec[Any]]:
                return [child(Memory).with_options(name="memory"), child(Agent)]

    Attributes:
        strategy: chooses the children to restart when one crashes.
        max_restarts: the number of restarts allowed in the window; one more crashes the supervisor itself.
        within: the length of the sliding window, in seconds.
        backoff: the delays before restarts.
        auto_shutdown: whether the end of `significant` children ends the supervisor.
        budget: the resources that its subtree may use.
    """

    strategy: ClassVar[Strategy] = one_for_one
    max_restarts: ClassVar[int] = 3
    within: ClassVar[float] = 5.0
    backoff: ClassVar[Backoff] = Backoff()
    auto_shutdown: ClassVar[AutoShutdown] = "never"
    budget: ClassVar[Budget | None] = None

    def specs(self) -> Iterable[ChildSpec[Any]]:
        """Return the specs of the children, in start order. Called at each start of the supervisor."""
        return ()

    def supervision_policy(self) -> SupervisionPolicy:
        """Return the supervision options as a value."""
        return SupervisionPolicy(
            strategy=type(self).strategy,
            limit=RestartLimit(self.max_restarts, self.within),
            backoff=self.backoff,
            auto_shutdown=self.auto_shutdown,
            budget=self.budget,
        )

    async def started(self, why: Start) -> None:
        for spec in self.specs():
            given: Any = spec
            if not isinstance(given, ChildSpec):
                raise TypeError(
                    f"{type(self).__name__}.specs gave {safe_repr(given)}: give specs, as child(...) makes them"
                )
            if spec.options.significant and self.supervision_policy().auto_shutdown == "never":
                raise ValueError(f"{spec!r} is significant: set auto_shutdown of {type(self).__name__}")
            await self.spawn(spec)

    @on(StartChild)
    def start_child(self, message: StartChild) -> Ref[Any]:
        """Start a child. The answer waits for its start, the supervisor does not."""
        try:
            ref = self._adopt(message.spec)
        except (CuelightError, TypeError) as error:
            raise Refused(safe_str(error)) from error
        cell = ref._cell
        if not cell.incarnation:
            port = self.defer_reply()
            cell.ensure_extras().call_when_started(lambda: self._answer_start(cell, port))
        return ref

    def _adopt(self, spec: ChildSpec[Any]) -> Ref[Any]:
        given: Any = spec
        if not isinstance(given, ChildSpec):
            raise TypeError(f"StartChild({safe_repr(given)}): give a spec, as child(...) makes one")
        cell = self._cell.ensure_children().start_child(spec, awaited_start=True)
        if isinstance(cell.exit, Crashed):
            raise StartError(f"{cell.path} did not start: {cell.exit.describe()}") from cell.exit.error
        return Ref(cell)

    def _answer_start(self, cell: Cell, port: ReplyPort) -> None:
        if cell.incarnation:
            port.send(Ref(cell))
        else:
            error = Refused(f"{cell.path} did not start: {'' if cell.exit is None else cell.exit.describe()}")
            error.__cause__ = cell.exit.error if isinstance(cell.exit, Crashed) else None
            port.refuse(error)

    @on(StopChild)
    def stop_child(self, message: StopChild) -> None:
        """Stop a child. The answer waits for its end, the supervisor does not."""
        cell = self._child(message.child)
        cell.shut_down()
        if not cell.dead:
            port = self.defer_reply()
            cell.ensure_extras().call_when_ended(lambda _exit: port.send(None))

    @on(RestartChild)
    def restart_child(self, message: RestartChild) -> None:
        """Restart a child, without waiting for it."""
        self._cell.runtime.post(self._children().restart_child, self._child(message.child))

    @on(WhichChildren)
    def which_children(self, message: WhichChildren) -> list[ChildInfo]:
        """Return the children, in start order."""
        children = self._cell.children
        refs: list[Ref[Any]] = [] if children is None else [Ref(cell) for cell in children.cells()]
        return [ChildInfo(ref.name, ref, ref.statistics().state, ref.statistics().restarts) for ref in refs]

    def _children(self) -> Any:
        return self._cell.ensure_children()

    def _child(self, wanted: str | Ref[Any]) -> Cell:
        children = self._cell.children
        cells = () if children is None else tuple(children.cells())
        given: Any = wanted
        if isinstance(given, str | Ref):  # comparing any other object would run code of the caller
            for cell in cells:
                if given in (cell.name, Ref(cell)):
                    return cell
        known = ", ".join(cell.name for cell in cells) or "none"
        shown = safe_repr(wanted)
        raise Refused(f"{self.path} has no child {shown}; its children: {known}") from ActorNotFound(shown)


class _DeclaredSupervisor(Supervisor):
    def __init__(self, specs: tuple[ChildSpec[Any], ...], policy: SupervisionPolicy) -> None:
        self._specs, self._policy = specs, policy

    def specs(self) -> Iterable[ChildSpec[Any]]:
        return self._specs

    def supervision_policy(self) -> SupervisionPolicy:
        return self._policy


def supervisor(
    *children: ChildSpec[Any],
    strategy: Strategy = one_for_one,
    max_restarts: int = 3,
    within: float = 5.0,
    backoff: Backoff | None = None,
    auto_shutdown: AutoShutdown = "never",
    budget: Budget | None = None,
) -> ChildSpec[SupervisorMessage]:
    """Declare a supervisor as a value: a spec to spawn, or to nest in another supervisor.

    Args:
        *children: specs of its children, in start order.
        strategy: chooses the children to restart when one crashes.
        max_restarts: the number of restarts allowed in the window; one more crashes the supervisor itself.
        within: the length of the sliding window, in seconds.
        backoff: the delays before restarts; `Backoff()` by default.
        auto_shutdown: whether the end of `significant` children ends the supervisor.
        budget: the resources that its subtree may use.

    Raises:
        TypeError: a child is not a spec.
        ValueError: a value is invalid; the message names it.
    """
    if auto_shutdown not in ("never", "any_significant", "all_significant"):
        raise ValueError(f"auto_shutdown={auto_shutdown!r} is not 'never', 'any_significant' or 'all_significant'")
    for spec in children:
        given: Any = spec
        if not isinstance(given, ChildSpec):
            name = getattr(given, "__name__", "...")
            raise TypeError(f"supervisor({safe_repr(given)}): give child({name}), a spec that says how to start it")
    policy = SupervisionPolicy(
        strategy=strategy,
        limit=RestartLimit(max_restarts, within),
        backoff=backoff or Backoff(),
        auto_shutdown=auto_shutdown,
        budget=budget,
    )
    return child(_DeclaredSupervisor, children, policy).with_options(shutdown=math.inf)


class DynamicSupervisor(Supervisor):
    """A supervisor that starts without children and gets them while it runs, with `StartChild`.

    Its children do not depend on each other: they stop together, with one deadline.
    """

    def __init__(self, *, max_children: float = math.inf, max_restarts: int = 3, within: float = 5.0) -> None:
        """Set the limits.

        Args:
            max_children: the largest number of live children; `StartChild` is refused beyond it.
            max_restarts: the number of restarts allowed in the window.
            within: the length of the sliding window, in seconds.

        Raises:
            ValueError: `max_children` is less than 1.
        """
        if not max_children >= 1:
            raise ValueError(f"max_children={max_children!r}: give 1 or more")
        self._max_children = max_children
        self._limit = RestartLimit(max_restarts, within)

    def supervision_policy(self) -> SupervisionPolicy:
        return SupervisionPolicy(
            limit=self._limit,
            backoff=self.backoff,
            auto_shutdown=self.auto_shutdown,
            max_children=self._max_children,
            stop_together=True,
            budget=self.budget,
        )
