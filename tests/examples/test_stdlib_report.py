"""The report: exact numbers, the same under chaos, after `kill -9` and on both back ends; clear words without one."""

import json
import os
import signal
import subprocess
import sys
import time
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


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of other tests keep their queue in the same temporary folder."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def command(*options: str | Path) -> list[str]:
    return [sys.executable, "-W", "error", str(PROGRAM), *map(str, options)]


def run(*options: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command(*options), capture_output=True, text=True, encoding="utf-8", timeout=50, check=False)


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
    assert {failure["dead_letter"] for failure in report["failures"]} == {"rejected"}


def test_the_report_is_the_same_under_chaos_and_on_both_back_ends(folder: Path) -> None:
    assert report_on("--path", folder, "--backend", "trio") == report_on("--path", folder)
    calm = report_on("--path", folder, "--json")
    for options in (
        ["--backend", "trio"],
        ["--chaos", "--seed", "20", "--workers", "1"],
        ["--chaos", "--seed", "25", "--workers", "4", "--backend", "trio"],
    ):
        assert report_on("--path", folder, "--json", *options) == calm


def test_chaos_does_kill_workers(folder: Path, tmp_path: Path) -> None:
    done = run("--path", folder, "--chaos", "--seed", "20", "--verbose", "--progress", "--state", tmp_path / "queue.db")
    assert done.returncode == 0
    assert list((tmp_path / "queue.db.accidents").iterdir())
    assert "42/42" in done.stderr  # the bar: 40 files and 2 folders


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_report_is_the_same_after_kill_9_at_any_moment(folder: Path, tmp_path: Path, backend: str) -> None:
    calm = report_on("--path", folder, "--backend", backend)
    options = ["--path", str(folder), "--backend", backend, "--state", str(tmp_path / "queue.db")]
    for attempt, seconds in enumerate((0.4, 0.8, 1.2)):  # before the queue is there, and at work
        with subprocess.Popen(command(*options, *["--resume"][: attempt and 1]), stdout=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline and process.poll() is None:
                time.sleep(0.01)
            process.kill()
        if not (tmp_path / "queue.db").exists():
            report_on(*options)
    assert report_on(*options, "--resume") == calm


def test_two_programs_may_share_the_work(folder: Path, tmp_path: Path) -> None:
    calm = report_on("--path", folder)
    options: list[str | Path] = ["--path", folder, "--state", tmp_path / "queue.db"]
    report_on(*options)
    with subprocess.Popen(command(*options, "--resume"), stdout=subprocess.PIPE, text=True) as other:
        assert report_on(*options, "--resume") == calm
        output, _ = other.communicate(timeout=30)
    assert output == calm


def test_the_text_names_failures_by_kind(folder: Path) -> None:
    text = report_on("--path", folder)
    assert "       40 files, 35 of them measured\n" in text
    assert "\nFailures: 5\n" in text
    assert "        2  does not parse (dead letter: rejected)\n" in text
    assert "             dangling.py: No such file or directory\n" in text


POISON = """
import ast, os
parse = ast.parse
def parse_or_die(source, *args, **kwargs):
    if "poison" in source:
        os._exit(7)
    return parse(source, *args, **kwargs)
ast.parse = parse_or_die
"""


def test_a_file_that_kills_every_worker_is_a_failure_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(POISON, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "bad.py").write_text("poison = 1\n", encoding="utf-8")
    (tmp_path / "sources" / "good.py").write_text("x = 1\n", encoding="utf-8")
    text = report_on("--path", tmp_path / "sources", "--workers", "2")
    assert "        2 files, 1 of them measured\n" in text
    assert "        1  kills workers (dead letter: quarantined)\n" in text
    assert "             bad.py: " in text


def test_a_state_of_another_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    report_on("--path", folder / "package.py", "--state", tmp_path / "queue.db")
    done = run("--path", folder, "--state", tmp_path / "queue.db", "--resume")
    assert (done.returncode, done.stdout) == (1, "")
    assert "give another --state" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--path", "missing"], "--path missing: it does not exist"),
        (["--path", str(PROGRAM)], "it is not a folder"),
        (["--workers", "0"], "--workers 0: give 1 or more"),
        (["--backend", "curio"], "invalid choice: 'curio'"),
        (["--resume", "--state", "missing.db"], "nothing to resume, missing.db does not exist"),
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
    with subprocess.Popen(
        command("--progress", "--backend", backend), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        seen = ""
        while "0 tasks" not in seen:  # from then on it is at work
            seen += (more := process.stderr.read(1))
            assert more, seen
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert output == ""
    assert errors.endswith("\nstopped; nothing was left running, and --resume goes on\n")
    assert "Traceback" not in errors
