"""The command with which a script publishes to listeners of `Server.subscribe`."""

from __future__ import annotations

import re
from typing import Any

from cuelight.redis._client._server import Server


async def publishing_command(server: Server) -> str:
    """Return the command with which a script reaches listeners.

    It is SPUBLISH in a cluster whose servers support it, else PUBLISH. A checkpoint.

    Raises:
        StoreUnavailable: the server does not answer.
    """
    if not re.search(r"cluster_enabled:1", _text(await server.execute("INFO", "cluster"))):
        return "PUBLISH"
    version = re.search(r"redis_version:(\d+)", _text(await server.execute("INFO", "server")))
    return "SPUBLISH" if version is not None and int(version[1]) >= 7 else "PUBLISH"


def _text(reply: Any) -> str:
    return reply.decode("utf-8", "replace") if isinstance(reply, bytes) else str(reply)
