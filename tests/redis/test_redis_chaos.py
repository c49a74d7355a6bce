"""The short form of `make chaos ARGS="--store redis"` and of `--what locks`: nothing is lost, and no lock is two."""

import pytest

from chaos import Event, Options, Trouble, judge, storm
from chaos._lock_run import judge_holders, lock_storm


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("backend", "fsync"), [("asyncio", "everysec"), ("trio", "always")])
def test_nothing_acknowledged_is_lost_but_what_the_server_forgot(backend: str, fsync: str) -> None:
    options = Options(
        tasks=300,
        workers=3,
        lease=1.5,
        work=(0.02, 0.2),
        faults=9,
        every=0.4,
        seed=11,
        timeout=120,
        backend=backend,
        store="redis",
        fsync=fsync,
        outage=1.0,
    )
    verdict = storm(options)
    assert verdict.given == 300
    assert verdict.lost == []
    assert verdict.accepted_twice == []
    assert verdict.exited == []
    assert verdict.deaf == []
    assert verdict.faults.total() == 9


@pytest.mark.timeout(180)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_no_two_hold_a_lock_at_once_whatever_happens_to_them_and_the_server(backend: str) -> None:
    options = Options(
        workers=3, concurrency=3, lease=1.5, faults=9, every=0.4, seed=5, timeout=120, backend=backend, outage=1.0
    )
    verdict = lock_storm(options)
    assert verdict.grants > 0
    assert verdict.fences_twice == []
    assert verdict.overlaps == []
    assert verdict.exited == []
    assert verdict.deaf == []
    assert verdict.faults.total() == 9


def test_the_verdict_tells_what_the_server_forgot_from_what_was_lost() -> None:
    events = [
        Event(1.0, 10, "given", "kept", 0),
        Event(1.0, 10, "given", "lost", 0),
        Event(4.5, 10, "given", "forgotten", 0),
        Event(4.6, 11, "accepted", "again", 1),
        Event(0.5, 10, "given", "again", 0),
        Event(7.0, 11, "accepted", "again", 2),
    ]
    trouble = Trouble(5.0, 6.0, "kill server", kept_until=4.0)
    verdict = judge(events, {"kept": "completed", "again": "completed"}, [], [trouble])
    assert verdict.lost == ["lost"]
    assert verdict.forgotten == ["again", "forgotten"]
    assert verdict.accepted_twice == []


def test_the_verdict_finds_two_holders_at_once_and_a_fence_of_two() -> None:
    events = [
        Event(1.0, 10, "got", "a", 5),
        Event(2.0, 10, "sure", "a", 5),
        Event(1.5, 11, "got", "b", 6),
        Event(1.6, 11, "sure", "b", 6),
        Event(3.0, 12, "got", "c", 7),
        Event(3.5, 12, "sure", "c", 7),
        Event(4.0, 13, "got", "d", 7),
    ]
    verdict = judge_holders(events)
    assert verdict.overlaps == [(5, 6)]
    assert verdict.fences_twice == [7]
    assert not verdict.passed
    forgiven = judge_holders(events[:4], [Trouble(1.2, 1.4, "promote replica", kept_until=0.9)])
    assert forgiven.overlaps == []
    assert forgiven.forgotten == [(5, 6)]
