"""The short form of `make soak`, and what its balances find."""

import pytest

from soak import Balance, Excess, Options, excesses, soak


@pytest.mark.timeout(120)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_mixed_run_leaves_nothing_behind(backend: str) -> None:
    verdict = soak(Options(rounds=12, backend=backend))
    assert verdict.errors == {}
    assert verdict.excesses == []
    assert len(verdict.rounds) == 10
    assert set(verdict.rounds.values()) == {12}


BEFORE = Balance(memory=100, objects=100_000, files=10, threads=5, tasks=20)


def test_what_does_not_come_out_is_found() -> None:
    leaking = Balance(memory=200, objects=200_000, files=20, threads=10, tasks=40, keys=3, kept={"letters": 7})
    assert [one.what for one in excesses(BEFORE, leaking, {"letters": 5}, long=True)] == [
        "memory",
        "objects",
        "files",
        "threads",
        "tasks",
        "keys without a time to live",
        "letters",
    ]
    assert excesses(BEFORE, leaking, {}, long=False)[0] == Excess("files", 10, 20, 14)
    assert excesses(BEFORE, BEFORE, {"letters": 5}, long=True) == []
