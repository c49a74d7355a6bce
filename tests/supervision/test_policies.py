"""The pure half of supervision: delays, windows, strategies, budgets, as laws."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuelight import Backoff, Budget, one_for_all, one_for_one, rest_for_one
from cuelight.errors import BudgetExceeded
from cuelight.supervision import RestartLimit
from cuelight.supervision._budget import BudgetCounter, resident_memory

seconds = st.floats(0, 1e6, allow_nan=False)


@given(minimum=seconds, more=seconds, jitter=st.floats(0, 10), n=st.integers(0, 10_000), u=st.floats(0, 0.999))
def test_backoff_doubles_up_to_its_maximum_before_the_jitter(
    minimum: float, more: float, jitter: float, n: int, u: float
) -> None:
    backoff = Backoff(minimum, minimum + more, jitter)
    delay = backoff.delay(n, u)
    assert delay <= (minimum + more) * (1 + jitter)
    assert delay == min(minimum + more, minimum * 2.0 ** min(n, 1000)) * (1 + u * jitter)
    assert backoff.delay(n + 1, u) >= delay
    assert backoff.healthy_after == (minimum + (minimum + more)) / 2


def test_backoff_of_nothing_restarts_at_once() -> None:
    assert Backoff(0, 0).delay(5000, 0.5) == 0


@pytest.mark.parametrize("bad", [{"minimum": -1}, {"minimum": 5, "maximum": 1}, {"maximum": math.inf}, {"jitter": -1}])
def test_bad_backoff_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="Backoff"):
        Backoff(**bad)


@given(
    steps=st.lists(st.floats(0, 3, allow_nan=False), min_size=10, max_size=60),
    limit=st.integers(0, 5),
    within=st.floats(0.1, 5),
)
def test_restart_limit_is_a_sliding_window(steps: list[float], limit: int, within: float) -> None:
    history: tuple[float, ...] = ()
    now, times = 0.0, list[float]()
    for step in steps:
        now += step
        times.append(now)
        history, allowed = RestartLimit(limit, within).count(history, now)
        assert allowed == (sum(1 for time in times if time >= now - within) <= limit)


@pytest.mark.parametrize("bad", [{"max_restarts": -1}, {"within": 0}, {"within": math.nan}])
def test_bad_restart_limit_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="give"):
        RestartLimit(**bad)  # type: ignore[arg-type]


def test_strategies_say_who_restarts() -> None:
    children = ["a", "b", "c"]
    assert one_for_one(children, "b") == ["b"]
    assert one_for_all(children, "b") == ["a", "b", "c"]
    assert rest_for_one(children, "b") == ["b", "c"]


def test_a_budget_is_exceeded_by_more_than_its_limit() -> None:
    counter = BudgetCounter(Budget(tokens=10, usd=1))
    assert counter.charge({"tokens": 10, "steps": 99}, 0) is None
    assert counter.charge({"usd": 1}, 1) is None
    error = counter.charge({"tokens": 1}, 2)
    assert isinstance(error, BudgetExceeded)
    assert "11 of at most 10 tokens" in str(error)


def test_a_budget_with_a_window_forgets() -> None:
    counter = BudgetCounter(Budget(tokens=10, within=60))
    assert counter.charge({"tokens": 10}, 0) is None
    assert counter.charge({"tokens": 10}, 61) is None
    assert "within 60" in str(counter.charge({"tokens": 1}, 62))


def test_bad_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="tokens=-1"):
        Budget(tokens=-1)
    assert repr(Budget(tokens=1, wall=2)) == "Budget(tokens=1, wall=2)"


def test_resident_memory_is_that_of_this_process() -> None:
    before = resident_memory()
    ballast = b"x" * 50_000_000
    assert before + 30_000_000 < resident_memory() < before + 500_000_000
    del ballast


def test_without_proc_the_peak_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise OSError

    monkeypatch.setattr("builtins.open", refuse)
    assert resident_memory() > 1_000_000
