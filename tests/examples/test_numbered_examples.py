"""The numbered examples say the same on both back ends: what stands in `expected/`. Some need a server."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.redis_servers import shared_server

HERE = Path(__file__).parent
EXAMPLES = sorted((HERE.parent.parent / "examples").glob("[0-9]*.py"))


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_says_what_is_expected(example: Path, backend: str) -> None:
    command = [sys.executable, "-W", "error", str(example), "--backend", backend]
    env = {**os.environ, "REDIS_URL": shared_server().url}
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=50, check=False, env=env)
    expected = (HERE / "expected" / f"{example.stem}.txt").read_text(encoding="utf-8")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == expected


def test_nothing_is_expected_of_an_example_that_is_not_there() -> None:
    assert [path.stem for path in sorted((HERE / "expected").glob("*.txt"))] == [path.stem for path in EXAMPLES]
