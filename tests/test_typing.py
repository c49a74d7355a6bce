"""What the types promise, tried on both checkers: tests/typing/*.py: right lines, and wrong ones marked."""

from pathlib import Path

import pytest

from helpers import misjudged

FILES = sorted((Path(__file__).parent / "typing").glob("*.py"))

pytestmark = pytest.mark.timeout(240)  # two type checkers start cold


def test_the_checkers_reject_what_is_marked_and_nothing_else(tmp_path: Path) -> None:
    assert misjudged(FILES, tmp_path) == []


SAMPLE = """\
from typing import assert_type

assert_type(len("a"), int)
len(1)  # rejected
len(2)
len("b")  # rejected
"""


def test_a_mark_that_is_wrong_is_found(tmp_path: Path) -> None:
    sample = tmp_path / "sample.py"
    sample.write_text(SAMPLE, encoding="utf-8")
    found = misjudged([sample], tmp_path)
    places = sorted(line.split(" it")[0] for line in found)
    assert places == [
        "sample.py:5: mypy rejects",
        "sample.py:5: pyright rejects",
        "sample.py:6: mypy accepts",
        "sample.py:6: pyright accepts",
    ]
