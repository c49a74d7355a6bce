"""Actors: typed messages, the `Actor` class, refs, and the runtime that runs actors."""

from cuelight.actors._actor import Actor
from cuelight.actors._background import Background
from cuelight.actors._bonds import LinkedExit
from cuelight.actors._cell import Cell
from cuelight.actors._dead_letters import DeadLetter, DeadLetters, Reason
from cuelight.actors._exits import (
    Crashed,
    Exit,
    Killed,
    ShutDown,
    Spawned,
    Start,
    Stopped,
    Terminated,
    WasRestarted,
)
from cuelight.actors._family import Family
from cuelight.actors._groups import Group
from cuelight.actors._handlers import on
from cuelight.actors._inbox import Inbox
from cuelight.actors._messages import Answerable, Answers, Message, ReplyType, Request, StreamRequest, Streams
from cuelight.actors._node import Node
from cuelight.actors._port import ReplyPort
from cuelight.actors._ref import ActorStatistics, Ref
from cuelight.actors._reply import Reply, handling
from cuelight.actors._runtime import Runtime
from cuelight.actors._spec import BackoffPolicy, ChildSpec, Options, Restart, child
from cuelight.actors._stream import Stream
from cuelight.actors._timers import ActorTimer
from cuelight.actors._waits import blocked, code_of_waits, find_circle, holdings, name_of, show_circle

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
