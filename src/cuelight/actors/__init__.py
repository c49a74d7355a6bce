"""Actors: typed messages, the `Actor` class, refs, and the runtime that runs actors."""

from cuelight.actors._actor import Actor, ActorRuntime, ClusterNode, child
from cuelight.actors._background import ActorTimer, Background
from cuelight.actors._cell import Cell, ChildSupervisor, LinkedExit
from cuelight.actors._dead_letters import DeadLetter, DeadLetters, Reason
from cuelight.actors._handlers import on
from cuelight.actors._messages import (
    Answerable,
    Answers,
    Crashed,
    Exit,
    Killed,
    Message,
    ReplyType,
    Request,
    ShutDown,
    Spawned,
    Start,
    Stopped,
    StreamRequest,
    Streams,
    WasRestarted,
)
from cuelight.actors._ref import ActorStatistics, Group, Ref, Terminated
from cuelight.actors._reply import Reply, ReplyPort, Stream, current_cell
from cuelight.actors._spec import BackoffPolicy, ChildSpec, Options, Restart
from cuelight.actors._task_cell import Inbox
from cuelight.actors._wait_graph import find_cycle, format_cycle, held_by, name_of, wait_code, waits_by_node

__all__ = [
    "Actor",
    "ActorRuntime",
    "ActorStatistics",
    "ActorTimer",
    "Answerable",
    "Answers",
    "Background",
    "BackoffPolicy",
    "Cell",
    "ChildSpec",
    "ChildSupervisor",
    "ClusterNode",
    "Crashed",
    "DeadLetter",
    "DeadLetters",
    "Exit",
    "Group",
    "Inbox",
    "Killed",
    "LinkedExit",
    "Message",
    "Options",
    "Reason",
    "Ref",
    "Reply",
    "ReplyPort",
    "ReplyType",
    "Request",
    "Restart",
    "ShutDown",
    "Spawned",
    "Start",
    "Stopped",
    "Stream",
    "StreamRequest",
    "Streams",
    "Terminated",
    "WasRestarted",
    "child",
    "current_cell",
    "find_cycle",
    "format_cycle",
    "held_by",
    "name_of",
    "on",
    "wait_code",
    "waits_by_node",
]
