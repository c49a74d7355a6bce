"""The report: exact numbers, the same under chaos and on both back ends, and clear words when there is none."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parent.parent.parent / "examples" / "stdlib_report.py"
BACKENDS = ["asyncio", "trio"]

GOOD = """\
class Shape:
    def area(self):
        return 0


def sign(number):
    if number > 0 and number < float("inf"):
        return 1
    for _ in ():
        pass
    return -1 if number < 0 else 0


async def nothing():
    def inner(x):
        return [y for y in x if y]
    return inner
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "sources"
    (root / "package.py").mkdir(parents=True)  # a folder, in spite of its name
    (root / "site-packages").mkdir()
    (root / "good.py").write_text(GOOD, encoding="utf-8")
    (root / "package.py" / "empty.py").write_bytes(b"")
    (root / "latin.py").write_bytes(b"# coding: latin-1\nname = 'caf\xe9'\n")
    (root / "feed.py").write_bytes(b"x = 1\r\n\x0cy = 2\r")  # two lines: a form feed ends none
    (root / "escape.py").write_text("pattern = '\\d'\n", encoding="utf-8")  # the compiler warns of it
    (root / "broken.py").write_text("def broken(:\n", encoding="utf-8")
    (root / "null.py").write_bytes(b"x = 1\0\n")
    (root / "undeclared.py").write_bytes(b"name = 'caf\xe9'\n")
    (root / "unknown.py").write_text("# coding: klingon\n", encoding="utf-8")
    (root / "dangling.py").symlink_to(root / "nowhere")
    (root / "site-packages" / "installed.py").write_text("x = 1\n", encoding="utf-8")
    (root / "notes.txt").write_text("def\n", encoding="utf-8")
    for number in range(30):
        (root / f"many_{number:02}.py").write_text(f"def f{number}(): ...\n" * number, encoding="utf-8")
    return root


def run(*options: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-W", "error", str(PROGRAM), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=50, check=False)


def report_on(*options: str | Path) -> str:
    done = run(*options)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_report_counts_everything(folder: Path, backend: str) -> None:
    report: dict[str, Any] = json.loads(report_on("--path", folder, "--json", "--backend", backend))
    assert report["files"] == 40
    assert report["measured"] == 35
    assert len(report["failures"]) == 5  # so every file is accounted for
    assert report["lines"] == sum(range(30)) + 17 + 2 + 1 + 2
    assert report["classes"] == 1
    assert report["functions"] == sum(range(30)) + 4
    assert report["most_complex_functions"][0] == {
        "name": "sign",
        "file": "good.py",
        "line": 6,
        "lines": 6,
        "complexity": 5,
    }
    longest = [function["name"] for function in report["longest_functions"]]
    assert longest[:2] == ["sign", "nothing"]
    failures = {failure["file"]: failure["kind"] for failure in report["failures"]}
    assert failures == {
        "broken.py": "does not parse",
        "dangling.py": "cannot be read",
        "null.py": "does not parse",
        "undeclared.py": "is not in its encoding",
        "unknown.py": "is not in its encoding",
    }
    assert {failure["dead_letter"] for failure in report["failures"]} == {"refused"}


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
def test_the_report_is_the_same_under_chaos_and_on_both_back_ends(folder: Path, form: list[str]) -> None:
    calm = report_on("--path", folder, *form)
    for options in (
        ["--backend", "trio"],
        ["--chaos", "--seed", "1"],
        ["--chaos", "--seed", "2", "--workers", "1"],
        ["--chaos", "--seed", "3", "--workers", "9", "--backend", "trio"],
    ):
        assert report_on("--path", folder, *form, *options) == calm


def test_chaos_does_crash_workers(folder: Path) -> None:
    done = run("--path", folder, "--chaos", "--verbose", "--progress")
    assert done.returncode == 0
    assert "RuntimeError: an accident before it was read" in done.stderr
    assert "RuntimeError: an accident after it was passed on" in done.stderr
    assert "35 of 40 files measured" in done.stderr
    assert "\n0 crashes of workers" not in done.stderr


def test_the_text_names_failures_by_kind(folder: Path) -> None:
    text = report_on("--path", folder)
    assert "       40 files, 35 of them measured\n" in text
    assert "\nFailures: 5\n" in text
    assert "        2  does not parse (dead letter: refused)\n" in text
    assert "             dangling.py: No such file or directory\n" in text


FAULT = """
import sys, stdlib_report as program
def fault(*_):
    raise KeyError("a fault")
program.{where} = fault
sys.exit(program.main())
"""


def run_with_a_fault(where: str, *options: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-B", "-c", FAULT.format(where=where), *map(str, options)]
    return subprocess.run(
        command, cwd=PROGRAM.parent, capture_output=True, text=True, encoding="utf-8", timeout=50, check=False
    )


def test_a_file_that_crashes_every_worker_is_a_failure_too(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("x = 1\n", encoding="utf-8")
    done = run_with_a_fault("measure", "--path", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "        1  crashes workers (dead letter: quarantined)\n" in done.stdout
    assert "             one.py: KeyError('a fault')\n" in done.stdout


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_crew_that_fails_is_explained(tmp_path: Path, backend: str) -> None:
    done = run_with_a_fault("python_files", "--path", tmp_path, "--backend", backend)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("the crew has failed: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--path", "missing"], "--path missing: it does not exist"),
        (["--path", str(PROGRAM)], "it is not a folder"),
        (["--workers", "0"], "--workers 0: give 1 or more"),
        (["--backend", "curio"], "invalid choice: 'curio'"),
    ],
)
def test_a_wrong_option_is_explained(options: list[str], message: str) -> None:
    done = run(*options)
    assert done.returncode == 2
    assert done.stdout == ""
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_folder_without_python_files_is_explained(tmp_path: Path, backend: str) -> None:
    done = run("--path", tmp_path, "--backend", backend)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"there is no Python file below {tmp_path}\n"


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGINT to send")
@pytest.mark.parametrize("backend", BACKENDS)
def test_control_c_ends_it_cleanly(backend: str) -> None:
    command = [sys.executable, "-W", "error", str(PROGRAM), "--progress", "--backend", backend]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        seen = ""
        while "files measured" not in seen:  # from then on it is at work
            seen += (more := process.stderr.read(1))
            assert more, seen
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert output == ""
    assert errors.endswith("\nstopped; nothing was left running\n")
    assert "Traceback" not in errors
