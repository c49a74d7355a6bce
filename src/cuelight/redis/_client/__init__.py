"""The client: one connection in each loop for short commands, and others for blocking commands and push messages."""

from cuelight.redis._client._client import RedisClient
from cuelight.redis._client._commands import Pipeline
from cuelight.redis._client._dedicated import Dedicated
from cuelight.redis._client._faults import read_reply
from cuelight.redis._client._patience import answer_time
from cuelight.redis._client._plugged import PluggedServer, use_coredis, use_redis_py
from cuelight.redis._client._publishing import publishing_command
from cuelight.redis._client._script import Script
from cuelight.redis._client._server import Argument, Server, Subscription
from cuelight.redis._client._shared import DEFAULT_URL, server_for

__all__ = [
    "Argument",
    "DEFAULT_URL",
    "Dedicated",
    "Pipeline",
    "PluggedServer",
    "RedisClient",
    "Script",
    "Server",
    "Subscription",
    "answer_time",
    "publishing_command",
    "read_reply",
    "server_for",
    "use_coredis",
    "use_redis_py",
]
