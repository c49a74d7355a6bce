"""Across processes and machines, over Redis or Valkey: the client, and what runs on it."""

from cuelight.redis._actors import NodeLost, NodeStatistics, RedisNode, RemoteError, Undecoded
from cuelight.redis._client import Argument, RedisClient, Script, Server, Subscription

__all__ = [
    "Argument",
    "NodeLost",
    "NodeStatistics",
    "RedisClient",
    "RedisNode",
    "RemoteError",
    "Script",
    "Server",
    "Subscription",
    "Undecoded",
]
