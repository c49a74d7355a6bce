"""Commands from threads without an event loop: redis-py opens the connections, errors and time-outs are cuelight's."""

# redis-py's pools and sentinels are only partly typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import redis
from redis import exceptions as redis_errors

from cuelight._text import describe_error
from cuelight.redis._client._blocking_connection import BlockingConnection
from cuelight.redis._client._cluster import KeyTable, SlotMap, is_for_all_primaries, keys_of, redirection, slots_of
from cuelight.redis._client._connect import check_version, login_error, no_primary, primary_of, warn_of_eviction
from cuelight.redis._client._connection import pack_all
from cuelight.redis._client._settings import Address, Settings, format_address

_HOPS: Final = 5


class BlockingServer:
    """The servers behind `execute_blocking`. Connections are pooled, and each command uses one."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._pools: dict[Address, redis.ConnectionPool] = {}
        self._idle: dict[Address, deque[BlockingConnection]] = {}
        self._closed = False
        self._checked: set[Address] = set()
        self._primary: Address | None = None
        self._map: SlotMap | None = None
        self._keys: KeyTable | None = None

    def close(self) -> None:
        """Close all connections, including those in use: their commands fail."""
        self._closed = True
        for idle in list(self._idle.values()):
            while (connection := _taken_from(idle)) is not None:
                connection.close()
        with self._lock:
            pools = list(self._pools.values())
            self._pools.clear()
        for pool in pools:
            pool.disconnect()

    def call(self, command: Sequence[Any], timeout: float | None = None) -> Any:
        """Send one command once and return its reply; an error reply is returned as an exception.

        Args:
            command: its name and arguments.
            timeout: seconds for the call, connecting included; None for the time-outs of the settings at each step.

        Raises:
            redis.RedisError, OSError, StoreRefused: sending the command or receiving its reply failed.
        """
        if timeout is None:
            return self._call(command)
        _limit.deadline = time.monotonic() + timeout
        try:
            return self._call(command)
        finally:
            _limit.deadline = None

    def _call(self, command: Sequence[Any]) -> Any:
        if self._settings.kind == "cluster":
            return self._call_cluster(command)
        if self._settings.kind == "sentinel":
            return self._call_primary(command)
        return self._call_at(self._settings.addresses[0], command)

    def _pool(self, address: Address) -> redis.ConnectionPool:
        with self._lock:
            pool = self._pools.get(address)
            if pool is None:
                pool = self._pools[address] = self._make(address)
            return pool

    def _make(self, address: Address) -> redis.ConnectionPool:
        settings = self._settings
        options = {**settings.blocking(), "db": settings.db}
        if settings.kind == "sentinel" and address in settings.addresses:
            user, secret = settings.sentinel
            options |= {"db": 0, "username": user, "password": secret, "credential_provider": None}
        if isinstance(address, str):
            options |= {"connection_class": _CheckedUnixConnection, "path": address}
        else:
            kind = _CheckedConnection if settings.tls is None else _CheckedSSLConnection
            options |= {"connection_class": kind, "host": address[0], "port": address[1]}
        pool: redis.ConnectionPool = cast("Any", redis.ConnectionPool)(**options)
        return pool

    def _call_at(self, address: Address, *commands: Sequence[Any]) -> Any:
        """Send commands in one write and return the reply to the last."""
        packed = pack_all(commands)
        idle = self._idle.get(address) or self._idle.setdefault(address, deque())
        connection = _taken_from(idle)
        while connection is not None and not connection.is_usable:
            connection.close()
            connection = _taken_from(idle)
        connection = connection or self._open(address)
        try:
            reply = connection.call(packed, len(commands), _limit.deadline)
        except BaseException:
            connection.close()  # otherwise the next command would read the missing reply
            raise
        idle.append(connection)
        if self._closed:
            self.close()
        return reply

    def _open(self, address: Address) -> BlockingConnection:
        """Return a new connection, opened and logged in by redis-py."""
        pool = self._pool(address)
        try:
            made: Any = pool.get_connection()
        except redis_errors.ResponseError as error:
            raise login_error(error, format_address(address)) from error.__cause__
        try:
            if address not in self._checked:
                self._check(made, address)
            return BlockingConnection(made, pool, self._settings.timeout, self._settings.heartbeat)
        except BaseException:
            made.disconnect()
            pool.release(made)
            raise

    def _call_primary(self, command: Sequence[Any]) -> Any:
        address = self._primary or self._ask_sentinels()
        try:
            reply = self._call_at(address, command)
        except (OSError, redis_errors.RedisError):
            self._primary = None
            raise
        if isinstance(reply, redis_errors.ReadOnlyError):
            self._primary = None
            raise redis_errors.ConnectionError("this server is the primary no more")
        return reply

    def _ask_sentinels(self) -> Address:
        answers: list[str] = []
        for sentinel in self._settings.addresses:
            try:
                pool = self._pool(sentinel)
                connection: Any = pool.get_connection()
                try:
                    _set_time(connection)
                    connection.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._settings.service)
                    found = _read(connection)
                finally:
                    connection.disconnect()
                    pool.release(connection)
            except redis_errors.AuthenticationError:
                raise
            except (OSError, redis_errors.ConnectionError, redis_errors.TimeoutError) as error:
                answers.append(f"{format_address(sentinel)}: {error}")
                continue
            if isinstance(found, list):
                self._primary = address = primary_of(found, format_address(sentinel))
                return address
            answers.append(f"{format_address(sentinel)}: {found or f'does not know {self._settings.service!r}'}")
        raise no_primary(self._settings.service, answers)

    def _check(self, connection: Any, address: Address) -> None:
        _set_time(connection)
        connection.send_packed_command([pack_all([("HELLO",), ("INFO", "memory")])])
        check_version(_read(connection))
        warn_of_eviction(_read(connection), self._settings.name)
        self._checked.add(address)

    def _load_slots(self) -> tuple[SlotMap, KeyTable]:
        if self._map is None or self._keys is None:
            last: Exception = redis_errors.ConnectionError("no server of the cluster knows its slots")
            for address in self._settings.addresses:
                try:
                    slots = self._call_at(address, ("CLUSTER", "SLOTS"))
                    table = self._call_at(address, ("COMMAND",))
                except redis_errors.AuthenticationError:
                    raise
                except (OSError, redis_errors.ConnectionError, redis_errors.TimeoutError) as error:
                    last = error
                    continue
                if isinstance(slots, Exception) or isinstance(table, Exception):
                    raise slots if isinstance(slots, Exception) else table
                if slots:
                    self._map, self._keys = slots_of(slots, address), keys_of(table, address)
                    break
                last = redis_errors.ConnectionError(f"{format_address(address)}: it knows no slots yet")
            else:
                raise last
        return self._map, self._keys

    def _call_cluster(self, command: Sequence[Any]) -> Any:
        slots, table = self._load_slots()
        reply: Any = None
        if is_for_all_primaries(command):
            for each in slots.primaries:
                reply = self._call_member(each, command)
                if isinstance(reply, Exception):
                    break
            return reply
        slot = table.slot_of(command)
        address = slots.owner(slot)
        if address is None:
            self._map = None
            raise redis_errors.ClusterDownError(f"nobody has slot {slot}", status_code="CLUSTERDOWN")
        for _ in range(_HOPS):
            reply = self._call_member(address, command)
            if isinstance(reply, redis_errors.MovedError):
                address = redirection(reply, address)
                self._map = None  # other slots have moved too
            elif isinstance(reply, redis_errors.AskError):
                return self._call_at(redirection(reply, address), ("ASKING",), command)
            else:
                break
        return reply

    def _call_member(self, address: Address, command: Sequence[Any]) -> Any:
        try:
            return self._call_at(address, command)
        except (OSError, redis_errors.RedisError):
            self._map = None
            raise


def _taken_from(idle: deque[BlockingConnection]) -> BlockingConnection | None:
    """Pop the connection that was used last. Other threads pop from `idle` at the same time."""
    try:
        return idle.pop()
    except IndexError:
        return None


class _Deadline(threading.local):
    """The deadline of this thread's command on the monotonic clock; None if its caller set no time-out."""

    deadline: float | None = None


_limit: Final = _Deadline()

_LEAST: Final = 0.001


def _time_left() -> float | None:
    """Return the seconds left for this thread's command; None for no limit.

    Raises:
        redis.TimeoutError: no time is left.
    """
    if _limit.deadline is None:
        return None
    left = _limit.deadline - time.monotonic()
    if left < _LEAST:
        raise redis_errors.TimeoutError("there was no reply within the time that the caller had left")
    return left


def _set_time(connection: Any) -> None:
    """Limit the time-out of an open connection to the time that the caller has left."""
    left = _time_left()
    if left is not None:
        connection.update_current_socket_timeout(min(left, connection.socket_timeout))


class _CheckedReads:
    """Limits connecting and logging in to the time that the caller has left."""

    def read_response(self, *args: Any, **options: Any) -> Any:
        """Read a reply. redis-py raises arbitrary errors for malformed data; they become `InvalidResponse`."""
        make = cast("Any", super())
        try:
            return make.read_response(*args, **options)
        except redis_errors.RedisError:
            raise
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise redis_errors.InvalidResponse(f"what came is not RESP: {describe_error(error)}") from error

    def connect(self) -> None:
        left, connection, make = _time_left(), cast("Any", self), cast("Any", super())
        if left is None:
            make.connect()
            return
        kept = connection.socket_timeout, connection.socket_connect_timeout
        connection.socket_timeout, connection.socket_connect_timeout = (min(left, seconds) for seconds in kept)
        try:
            make.connect()
        finally:
            connection.socket_timeout, connection.socket_connect_timeout = kept


class _CheckedConnection(_CheckedReads, redis.Connection): ...


class _CheckedSSLConnection(_CheckedReads, redis.SSLConnection): ...


class _CheckedUnixConnection(_CheckedReads, redis.UnixDomainSocketConnection): ...


def _read(connection: Any) -> Any:
    read: Callable[..., Any] = connection.read_response
    try:
        return read()
    except redis_errors.ResponseError as error:
        return error
