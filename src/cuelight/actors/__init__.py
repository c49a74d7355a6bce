"""Actors: typed messages, the `Actor` class, refs, and the runtime that runs actors."""

from cuelight.actors._actor import Actor
from cuelight.actors._cell import Cell, Family
from cuelight.actors._cell_extras import Background, LinkedExit
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
    Terminated,
    WasRestarted,
)
from cuelight.actors._ref import ActorStatistics, Group, Ref
from cuelight.actors._reply import Reply, ReplyPort, Stream, handling
from cuelight.actors._spawner import Node, Runtime
from cuelight.actors._spec import BackoffPolicy, ChildSpec, Options, Restart, child
from cuelight.actors._task_cell import Inbox
from cuelight.actors._timers import ActorTimer
from cuelight.actors._wait_graph import blocked, code_of_waits, find_circle, holdings, name_of, show_circle

__all__ = [
    "Actor",
    "ActorStatistics",
    "ActorTimer",
    "Answerable",
    "Answers",
    "Background",
    "BackoffPolicy",
    "Cell",
    "ChildSpec",
    "Crashed",
    "DeadLetter",
    "DeadLetters",
    "Exit",
    "Family",
    "Group",
    "Inbox",
    "Killed",
    "LinkedExit",
    "Message",
    "Node",
    "Options",
    "Reason",
    "Ref",
    "Reply",
    "ReplyPort",
    "ReplyType",
    "Request",
    "Restart",
    "Runtime",
    "ShutDown",
    "Spawned",
    "Start",
    "Stopped",
    "Stream",
    "StreamRequest",
    "Streams",
    "Terminated",
    "WasRestarted",
    "blocked",
    "child",
    "code_of_waits",
    "find_circle",
    "handling",
    "holdings",
    "name_of",
    "on",
    "show_circle",
]
