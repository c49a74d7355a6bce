"""The prose check reads docstrings, comments and documents, and no code."""

from pathlib import Path

import check_prose
import pytest


def _write(root: Path, files: dict[str, str]) -> None:
    for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"):
        files.setdefault(name, "")
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _lines(root: Path, files: dict[str, str]) -> list[str]:
    _write(root, files)
    return [str(finding) for finding in check_prose.findings(root)]


@pytest.mark.parametrize(
    "sentence",
    [
        "Whoever waits is told.",
        "Return what the function returned.",
        "Who waits gets nothing.",
        "A slot is filled by who comes first.",
        "So many of them are left.",
        "It is to be given back.",
        "Errors such as are raised by users.",
        "It is none of its business.",
        "Of all permits one is left.",
        "It waits for ever.",
    ],
)
def test_a_construction_that_needs_a_second_reading_is_found(tmp_path: Path, sentence: str) -> None:
    source = f'"""Module.\n\n{sentence}\n"""\n'
    (line,) = _lines(tmp_path, {"src/cuelight/_a.py": source})
    assert line.startswith("src/cuelight/_a.py:3: ")
    (line,) = _lines(tmp_path, {"src/cuelight/_a.py": f"x = 1\n# Why.\n# {sentence}\n"})
    assert line.startswith("src/cuelight/_a.py:3: ")
    (line,) = _lines(tmp_path, {"src/cuelight/_a.py": "", "docs/a.md": f"# Title\n\n{sentence}\n"})
    assert line.startswith("docs/a.md:3: ")


@pytest.mark.parametrize(
    "sentence",
    [
        "What does it cost?",
        "See `what` and `current_owner()`.",
        "Of course it ends.",
        "As soon as the worker that holds the lease ends, the server releases it.",
        "So many that they do not fit.",
    ],
)
def test_a_plain_sentence_is_no_finding(tmp_path: Path, sentence: str) -> None:
    assert _lines(tmp_path, {"docs/a.md": f"{sentence}\n\n```python\nwhat = whoever\n```\n"}) == []


def test_the_name_of_an_argument_is_no_finding(tmp_path: Path) -> None:
    source = 'def every(what):\n    """Repeat a task.\n\n    Args:\n        what: the task.\n    """\n'
    assert _lines(tmp_path, {"src/cuelight/_a.py": source}) == []


def test_text_that_the_program_uses_is_not_read(tmp_path: Path) -> None:
    assert _lines(tmp_path, {"src/cuelight/_a.py": 'whoever = "what is to be given"\n'}) == []


def test_a_rare_finding_in_much_text_is_allowed(tmp_path: Path) -> None:
    assert _lines(tmp_path, {"docs/a.md": "Callers wait. " * 1000 + "Whoever waits.\n"}) == []


def test_the_exit_code_and_the_rate_tell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write(tmp_path, {"docs/a.md": "Whoever waits is told.\n"})
    assert check_prose.main(tmp_path) == 1
    assert "docs/a.md:1: `Whoever`: name the one who acts" in capsys.readouterr().out
    assert check_prose.main(tmp_path, "--rate") == 0
    assert capsys.readouterr().out == "250.00 findings in 1,000 words\n"
    _write(tmp_path, {"docs/a.md": "Callers wait.\n"})
    assert check_prose.main(tmp_path) == 0
