"""What the pages point to is there: files, and the functions that ARCHITECTURE.md names."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\[(?P<text>[^\]]+)\]\((?P<target>[^)#\s]+)\)")
NAME = re.compile(r"`(?P<name>[A-Za-z_][\w.]*)`")


def names_in(tree: ast.AST, prefix: str = "") -> set[str]:
    """The classes and functions of a module, and `Class.method`."""
    names: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                names |= names_in(node, f"{node.name}.")
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_files_lead_somewhere(page: Path) -> None:
    targets = [match["target"] for match in LINK.finditer(page.read_text(encoding="utf-8"))]
    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert missing == []


def test_the_functions_that_the_architecture_names_are_where_it_says() -> None:
    missing: list[str] = []
    checked = 0
    for match in LINK.finditer((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")):
        path, name = ROOT / match["target"], NAME.fullmatch(match["text"])
        if name is None or path.suffix != ".py" or path.stem in {name["name"], "__init__"}:
            continue
        if name["name"] == path.name:
            continue
        checked += 1
        if name["name"] not in names_in(ast.parse(path.read_text(encoding="utf-8"))):
            missing.append(match[0])
    assert missing == []
    assert checked > 50
