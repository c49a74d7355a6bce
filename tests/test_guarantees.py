"""Each guarantee in docs/guarantees.md is one sentence with one test that has its name."""

import ast
import re
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "guarantees.md"

# - `test_fifo_per_sender` Messages of one sender to one actor are handled in the order sent.
GUARANTEE = re.compile(r"^\s*[-*] `(test_\w+)`", re.MULTILINE)


def functions_under(folder: Path) -> set[str]:
    found: set[str] = set()
    for path in folder.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                found.add(node.name)
    return found


def problems(page: str, tests: Path) -> list[str]:
    listed = Counter(GUARANTEE.findall(page))
    if not listed:
        return ["the page lists no guarantee: begin a list item with the name of its test in backticks"]
    missing = [f"no test under tests/ is called {name}" for name in sorted(listed.keys() - functions_under(tests))]
    return missing + [f"{name} is listed {times} times" for name, times in listed.items() if times > 1]


def test_every_guarantee_has_its_test() -> None:
    if PAGE.exists():
        assert problems(PAGE.read_text(encoding="utf-8"), TESTS) == []


def test_a_guarantee_without_a_test_is_found(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text("class TestA:\n    async def test_kept(self): ...\n", encoding="utf-8")
    page = "# Page\n- `test_kept` Kept.\n- `test_broken` Not kept.\n* `test_kept` Again.\n- `Ref` is a word.\n"
    assert problems(page, tmp_path) == [
        "no test under tests/ is called test_broken",
        "test_kept is listed 2 times",
    ]
    assert len(problems("# Guarantees\n", tmp_path)) == 1
