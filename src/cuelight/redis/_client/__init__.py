"""The client: one connection in each loop for short commands, and others for blocking commands and push messages."""

from cuelight.redis._client._client import DEFAULT_URL, RedisClient, server_for
from cuelight.redis._client._commands import Dedicated, Pipeline
from cuelight.redis._client._errors import read_reply
from cuelight.redis._client._retry import answer_time
from cuelight.redis._client._server import Argument, Script, Server, Subscription, publishing_command

__all__ = [
    "Argument",
    "DEFAULT_URL",
    "Dedicated",
    "Pipeline",
    "RedisClient",
    "Script",
    "Server",
    "Subscription",
    "answer_time",
    "publishing_command",
    "read_reply",
    "server_for",
]
