"""Asks sentinels for the current primary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
from redis import exceptions as redis_errors

from cuelight.redis._client._connect import open_wire
from cuelight.redis._client._faults import read_reply
from cuelight.redis._client._settings import Address, Settings, place
from cuelight.redis._client._wire import pack


async def find_primary(settings: Settings) -> Address:
    """Ask the sentinels, one after the other, for the address of the primary. A checkpoint.

    Raises:
        redis.ConnectionError: no sentinel knows it; the message contains the answer of each.
    """
    said: list[str] = []
    for sentinel in settings.addresses:
        try:
            with anyio.fail_after(settings.timeout):
                found = await _ask(settings, sentinel)
        except redis_errors.AuthenticationError:
            raise
        except (redis_errors.RedisError, TimeoutError) as error:
            said.append(str(error) or f"{place(sentinel)}: no answer within {settings.timeout:g} s")
            continue
        if isinstance(found, Exception):
            said.append(f"{place(sentinel)}: {found}")
        elif found is None:
            said.append(f"{place(sentinel)}: does not know {settings.service!r}")
        else:
            return primary_of(found, place(sentinel))
    raise no_primary(settings.service, said)


def no_primary(service: str, said: Sequence[str]) -> redis_errors.ConnectionError:
    """Return the error for the case that no sentinel knows the primary.

    Args:
        service: the name of the service.
        said: the answer of each sentinel.
    """
    return redis_errors.ConnectionError(f"no sentinel knows the primary of {service!r}: {'; '.join(said)}")


def primary_of(reply: Any, sentinel: str) -> Address:
    """Return the address in a sentinel's reply.

    Args:
        reply: the reply as it was received.
        sentinel: the address of the sentinel, for the message.

    Raises:
        StoreRefused: the reply contains no address.
    """
    return read_reply(sentinel, "SENTINEL GET-MASTER-ADDR-BY-NAME", lambda it: (it[0].decode(), int(it[1])), reply)


async def _ask(settings: Settings, sentinel: Address) -> Any:
    wire = (await open_wire(settings, sentinel, login=False)).wire
    try:
        return await wire.call(pack(("SENTINEL", "GET-MASTER-ADDR-BY-NAME", settings.service)))
    finally:
        wire.end(redis_errors.ConnectionError("the sentinel was asked"))
