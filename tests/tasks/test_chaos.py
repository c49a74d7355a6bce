"""The short form of `make chaos`: real processes that are killed and frozen, and nothing is lost."""

import pytest

from chaos import Event, Fault, Options, judge, storm


@pytest.mark.timeout(120)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_nothing_acknowledged_is_lost_when_processes_are_killed(backend: str) -> None:
    options = Options(
        tasks=300, workers=3, lease=1.0, work=(0.02, 0.2), faults=6, every=0.5, seed=7, timeout=60, backend=backend
    )
    verdict = storm(options)
    assert verdict.given == 300
    assert verdict.lost == []
    assert verdict.completed == 300
    assert verdict.accepted_twice == []
    assert verdict.faults.total() == 6


def test_the_verdict_finds_what_is_lost_and_what_counted_twice() -> None:
    events = [
        Event(1.0, 10, "given", "kept", 0),
        Event(1.0, 10, "given", "lost", 0),
        Event(1.0, 10, "given", "twice", 0),
        Event(2.0, 11, "begun", "kept", 1),
        Event(6.0, 12, "begun", "kept", 2),
        Event(7.0, 12, "accepted", "kept", 2),
        Event(7.5, 11, "refused", "kept", 1),
        Event(3.0, 12, "begun", "twice", 1),
        Event(4.0, 12, "accepted", "twice", 1),
        Event(5.0, 13, "accepted", "twice", 2),
    ]
    verdict = judge(events, {"kept": "completed", "twice": "completed"}, [Fault(3.0, 11, "kill worker")])
    assert (verdict.given, verdict.completed, verdict.dead) == (3, 2, 0)
    assert verdict.lost == ["lost"]
    assert verdict.accepted_twice == ["twice"]
    assert (verdict.executions, verdict.repeated, verdict.refused) == (3, 1, 1)
    assert verdict.recoveries == [3.0]
    assert not verdict.passed
