"""Steps of a store over Redis that cannot be sent, and rows that cannot be read."""

from __future__ import annotations

from math import inf
from typing import Any

import msgspec
import pytest
from redis.exceptions import DataError, ResponseError

from cuelight.errors import StoreRefused
from cuelight.redis._tasks import _scripts as steps
from cuelight.redis._tasks._encoding import CorruptTask, encode_task, schedule_of, snapshot_of_corrupt, snapshots_of
from cuelight.redis._tasks._server_steps import ServerSteps
from cuelight.tasks import Record


class FailingServer:
    name = "fake"

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def run(self, *_: object, **__: object) -> Any:
        raise self.error

    def run_blocking(self, *_: object, **__: object) -> Any:
        raise self.error


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (DataError("an object"), TypeError, "cannot be sent: an object"),
        (ResponseError("it is odd"), StoreRefused, "failed on the server: it is odd"),
    ],
)
async def test_a_step_that_the_server_cannot_run_is_told_by_its_name(
    error: Exception, kind: type[Exception], text: str
) -> None:
    server: Any = FailingServer(error)
    store, call = ServerSteps(server, "q", "p", None), steps.ScriptCall(steps.QUERY, ())
    expected = rf"RedisStore\('fake', queue='q'\): the step '{steps.QUERY.name}' {text}"
    with pytest.raises(kind, match=expected) as caught:
        await store._send(call)
    assert caught.value.__cause__ is error
    with pytest.raises(kind, match=expected):
        store._send_blocking(call)


def test_arguments_that_are_no_unicode_are_refused_before_they_are_sent() -> None:
    with pytest.raises(ValueError, match=r"the arguments of .* cannot be sent"):
        steps.arguments_of(steps.ScriptCall(steps.QUERY, ("\ud800",)), "", "channel", "PUBLISH")


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (Record(id="a", type="t", priority=2**53), r"Record\('a', priority=9007199254740992\): give a number below"),
        (Record(id="a", type="\ud800"), r"Record\('a'\) cannot be stored"),
    ],
)
def test_a_record_that_scripts_cannot_count_or_read_is_refused(record: Record, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        encode_task(record, "nonce")


@pytest.mark.parametrize("state", [99, -1, -7])
def test_a_row_in_no_state_is_unreadable_and_shown_as_a_dead_letter(state: int) -> None:
    card, blob = encode_task(Record(id="a", type="t"), "nonce")
    row = msgspec.msgpack.decode(card)
    row[2] = state
    raw = msgspec.msgpack.encode(row)
    (found,) = snapshots_of([raw, blob, b"", b"", b"", b""])
    assert isinstance(found, CorruptTask)
    assert found.part == "row"
    snapshot = snapshot_of_corrupt(found)
    assert (snapshot.state, snapshot.reason, snapshot.record.payload) == ("dead_letter", "undecodable", raw)


def test_a_schedule_that_cannot_be_read_is_never_due() -> None:
    schedule = schedule_of("s", "every 1.0", 1.0, b"\xc1", b"blob")
    assert (schedule.spec, schedule.due, schedule.record.payload) == ("undecodable", inf, b"blob")
