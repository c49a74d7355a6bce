"""Every example runs as a user would run it and prints no error or warning.

`tests/examples/test_numbered_examples.py` runs the numbered ones.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.redis_servers import shared_server

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("[!_0-9]*.py"))
ARGUMENTS = {"stdlib_report": ["--path", str(Path(json.__file__).parents[1] / "email")]}
"""By default, the report is about the whole standard library, which takes a minute: `make demo` does that."""

RUNS = [
    pytest.param(path, [*ARGUMENTS.get(path.stem, []), *options], id=" ".join([path.stem, *options[1:]]))
    for path in EXAMPLES
    for options in ([], ["--backend", "trio"])
    if not options or "--backend" in path.read_text(encoding="utf-8")
]


@pytest.mark.timeout(200)  # the example itself has 180 seconds
@pytest.mark.parametrize(("path", "options"), RUNS)
def test_an_example_runs(path: Path, options: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", str(path), *options]
    environment = {**os.environ, "REDIS_URL": shared_server().url}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
