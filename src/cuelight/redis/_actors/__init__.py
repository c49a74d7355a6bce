"""Actors across processes and machines: a node joins a cluster, exposes its actors and resolves names to refs."""

from cuelight.redis._actors._errors import RemoteError
from cuelight.redis._actors._membership import Undecoded
from cuelight.redis._actors._node import NodeStatistics, RedisNode
from cuelight.redis._actors._outcomes import NodeLost
from cuelight.redis._actors._peer import PeerStatistics
from cuelight.redis._actors._transport import TcpTransport

__all__ = ["NodeLost", "NodeStatistics", "PeerStatistics", "RedisNode", "RemoteError", "TcpTransport", "Undecoded"]
