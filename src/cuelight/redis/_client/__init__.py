"""The client: one connection in each loop for all that is short, others for what blocks and for what is pushed."""

from cuelight.redis._client._client import RedisClient
from cuelight.redis._client._commands import Pipeline
from cuelight.redis._client._dedicated import Dedicated
from cuelight.redis._client._plugged import PluggedServer, use_coredis, use_redis_py
from cuelight.redis._client._publishing import publishing_command
from cuelight.redis._client._script import Script
from cuelight.redis._client._server import ROUND_TRIP, Argument, Server, Subscription
from cuelight.redis._client._shared import DEFAULT_URL, server_for

__all__ = [
    "Argument",
    "DEFAULT_URL",
    "Dedicated",
    "Pipeline",
    "PluggedServer",
    "ROUND_TRIP",
    "RedisClient",
    "Script",
    "Server",
    "Subscription",
    "publishing_command",
    "server_for",
    "use_coredis",
    "use_redis_py",
]
