"""Lines that must not type-check: both mypy and pyright report each `# rejected` line, and no other."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

Place = tuple[str, int]

_MYPY_ERROR = re.compile(r"^(?P<file>.+?):(?P<line>\d+)(:\d+)?: error: (?P<text>.*)$", re.MULTILINE)


def misjudged(files: list[Path], scratch: Path) -> list[str]:
    """Return what the type checkers say of the files that their `# rejected` marks do not.

    Args:
        files: the Python files to check, under the strict rules of both checkers.
        scratch: a directory for the configuration and the caches.
    """
    if not files:
        return []
    # Pyright looks at nothing outside its project, so the files go where its configuration is.
    files = [Path(shutil.copy(path, scratch / path.name)) if path.parent != scratch else path for path in files]
    expected = {
        (path.name, number)
        for path in files
        for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if text.rstrip().endswith("# rejected")
    }
    found: list[str] = []
    for checker, reported in (("mypy", _mypy(files, scratch)), ("pyright", _pyright(files, scratch))):
        found += [f"{name}:{line}: {checker} accepts it" for name, line in sorted(expected - reported.keys())]
        found += [
            f"{name}:{line}: {checker} rejects it: {text}"
            for (name, line), text in sorted(reported.items())
            if (name, line) not in expected
        ]
    return found


def _mypy(files: list[Path], scratch: Path) -> dict[Place, str]:
    options = ["--strict", "--python-version=3.11", "--config-file=", f"--cache-dir={scratch / 'mypy'}"]
    options += ["--no-error-summary", "--hide-error-context", "--no-pretty", "--no-color-output"]
    command = [sys.executable, "-m", "mypy", *options, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=scratch)
    if done.returncode not in (0, 1) or done.stderr:
        raise RuntimeError(f"mypy could not check: {done.stdout}{done.stderr}")
    return {
        (Path(match["file"]).name, int(match["line"])): match["text"] for match in _MYPY_ERROR.finditer(done.stdout)
    }


def _pyright(files: list[Path], scratch: Path) -> dict[Place, str]:
    config = {"include": [path.name for path in files], "typeCheckingMode": "strict", "pythonVersion": "3.11"}
    (scratch / "pyrightconfig.json").write_text(json.dumps(config), encoding="utf-8")
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    command += ["--project", str(scratch)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=scratch)
    report: dict[str, Any] = json.loads(done.stdout)
    if report["summary"]["filesAnalyzed"] != len(files):
        raise RuntimeError(f"pyright could not check: {done.stdout}{done.stderr}")
    return {
        (Path(entry["file"]).name, entry["range"]["start"]["line"] + 1): entry["message"]
        for entry in report["generalDiagnostics"]
        if entry["severity"] == "error"
    }
