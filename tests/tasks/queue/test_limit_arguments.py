"""What a `Limit` refuses: each argument that could never be kept is named where it is given."""

from __future__ import annotations

from math import nan
from typing import Any

import pytest

from cuelight.coordination import RateLimitConfig
from cuelight.tasks import Limit


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"key": 7}, r"Limit\(key=7\): give a string, such as 'openai' or 'user:7'"),
        ({"key": "k", "max_concurrent": 1.5}, r"Limit\('k', max_concurrent=1\.5\): give a whole number, or None"),
        ({"key": "k", "rate": "5"}, r"Limit\('k', rate='5'\): give a number"),
        ({"key": "k", "per": "1"}, r"Limit\('k', per='1'\): give a number"),
        ({"key": "k", "burst": []}, r"Limit\('k', burst=\[\]\): give a number"),
        ({"key": "k", "cost": "1"}, r"Limit\('k', cost='1'\): give a number"),
    ],
)
def test_a_limit_refuses_arguments_of_other_types(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(TypeError, match=f"^{text}$"):
        Limit(**arguments)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"key": ""}, r"Limit\(key=''\): give the limit a key, such as 'openai' or 'user:7'"),
        ({"key": "k", "max_concurrent": 0}, r"Limit\('k', max_concurrent=0\): give 1 or more, or None"),
        ({"key": "k", "rate": 0}, r"Limit\('k', rate=0\): give more than 0"),
        ({"key": "k", "per": nan}, r"Limit\('k', per=nan\): give more than 0"),
        ({"key": "k", "burst": -1}, r"Limit\('k', burst=-1\): give more than 0"),
        ({"key": "k", "rate": 5, "cost": 6}, r"Limit\('k', cost=6\): give 0 to 5, or it would wait forever"),
        ({"key": "k", "rate": 5, "burst": 2, "cost": 3}, r"Limit\('k', cost=3\): give 0 to 2, or it would .*"),
        ({"key": "k", "cost": -1}, r"Limit\('k', cost=-1\): give 0 to inf, or it would wait forever"),
        ({"key": "k", "cost": nan}, r"Limit\('k', cost=nan\): give 0 to inf, or it would wait forever"),
    ],
)
def test_a_limit_refuses_amounts_that_let_nothing_through(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=f"^{text}$"):
        Limit(**arguments)


def test_a_limit_of_a_bucket_has_its_amounts() -> None:
    config: Any = RateLimitConfig(100, window_seconds=60, burst_size=20)
    assert Limit.from_config("k", config, max_concurrent=3, cost=2.0) == Limit("k", 3, 100, 60, 20, 2.0)
    config = {"max_requests": 100}
    with pytest.raises(
        TypeError, match=r"^\{'max_requests': 100\}: give a RateLimitConfig, such as .*window_seconds=60"
    ):
        Limit.from_config("k", config)
