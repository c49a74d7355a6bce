"""Supervision: strategies, limits and budgets as pure values, and the supervisors that apply them."""

from cuelight.supervision._blocking_system import BlockingRef
from cuelight.supervision._budget import Budget
from cuelight.supervision._children import AutoShutdown
from cuelight.supervision._policies import Backoff, RestartLimit, Strategy, one_for_all, one_for_one, rest_for_one
from cuelight.supervision._run import run
from cuelight.supervision._supervisor import (
    ChildInfo,
    DynamicSupervisor,
    RestartChild,
    StartChild,
    StopChild,
    Supervisor,
    SupervisorMessage,
    WhichChildren,
    supervisor,
)
from cuelight.supervision._system import ActorSystem, BlockingSystem

__all__ = [
    "ActorSystem",
    "AutoShutdown",
    "Backoff",
    "BlockingRef",
    "BlockingSystem",
    "Budget",
    "ChildInfo",
    "DynamicSupervisor",
    "RestartChild",
    "RestartLimit",
    "StartChild",
    "StopChild",
    "Strategy",
    "Supervisor",
    "SupervisorMessage",
    "WhichChildren",
    "one_for_all",
    "one_for_one",
    "rest_for_one",
    "run",
    "supervisor",
]
