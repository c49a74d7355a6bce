"""The structure check finds what it is for, and says where."""

from pathlib import Path

import check_structure
import pytest

FINE_BODY = "    x = 1\n" * 50
LONG_BODY = "    x = 1\n" * 51


def _lines(tmp_path: Path, files: dict[str, str]) -> list[str]:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return [str(finding) for finding in check_structure.findings(tmp_path)]


def test_a_tidy_house_has_no_findings(tmp_path: Path) -> None:
    files = {
        "src/cuelight/__init__.py": (
            'from cuelight.mailbox import Channel\nimport sys\n__version__ = "1"\n'
            '__all__ = ["Channel", "__version__", "mailbox"]\n'
        ),
        "src/cuelight/mailbox/__init__.py": ("from cuelight.mailbox._channel import Channel\n__all__ = ['Channel']\n"),
        "src/cuelight/mailbox/_channel.py": "from collections import deque\nclass Channel: pass\n",
    }
    assert _lines(tmp_path, files) == []


@pytest.mark.parametrize(("name", "limit"), [("src/cuelight/_a.py", 560), ("tests/test_a.py", 700)])
def test_a_long_file_is_found(tmp_path: Path, name: str, limit: int) -> None:
    around = '"""Says\nwhat it is."""\n\n# Why.\n'
    assert _lines(tmp_path, {name: around + "x = 1\n" * limit}) == []
    (line,) = _lines(tmp_path, {name: around + "x = 1\n" * (limit + 1)})
    assert line.startswith(f"{name}:1: the file has {limit + 1} lines of code")


def test_a_long_function_is_found_without_counting_its_docstring(tmp_path: Path) -> None:
    docstring = '    """' + "\n" * 30 + '    """\n'
    files = {
        "src/cuelight/_a.py": f"async def long():\n{docstring}{LONG_BODY}",
        "src/cuelight/_b.py": f"def fine():\n{docstring}{FINE_BODY}",
        "tests/test_a.py": f"def test_long():\n{LONG_BODY}",
    }
    (line,) = _lines(tmp_path, files)
    assert line.startswith("src/cuelight/_a.py:1: `long` has 51 lines")


@pytest.mark.parametrize(
    "statement",
    [
        "import cuelight",
        "from cuelight import Ref",
        "def f():\n    from cuelight import Ref",
        "from .. import Ref",
    ],
)
def test_an_import_of_the_root_is_found(tmp_path: Path, statement: str) -> None:
    files = {"src/cuelight/actors/_cell.py": statement + "\n"}
    (line,) = _lines(tmp_path, files)
    assert "imports the root" in line


@pytest.mark.parametrize("statement", ["import cuelight.errors", "from cuelight.errors import X", "from . import _ref"])
def test_an_import_of_a_package_below_is_fine(tmp_path: Path, statement: str) -> None:
    assert _lines(tmp_path, {"src/cuelight/actors/_cell.py": statement + "\n"}) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = 1\n", "1: the package has no literal `__all__`"),
        ("from ._a import A, B\n__all__ = ['B', 'A']\n", "2: `__all__` is not sorted"),
        ("from ._a import A\n__all__ = ['A', 'A']\n", "2: `__all__` is not sorted or names something twice"),
        ("__all__ = ['Gone']\n", "1: `__all__` lists `Gone`"),
        ("from cuelight.a._a import A, B\n__all__ = ['A']\n", "1: `B` is imported or defined but not in"),
    ],
)
def test_a_dishonest_all_is_found(tmp_path: Path, text: str, expected: str) -> None:
    (line,) = _lines(tmp_path, {"src/cuelight/a/__init__.py": text})
    assert line.startswith(f"src/cuelight/a/__init__.py:{expected}")


def test_an_import_circle_is_found_in_functions_and_for_type_checkers_too(tmp_path: Path) -> None:
    files = {
        "src/cuelight/a/_one.py": "from cuelight.a import _two\n",
        "src/cuelight/a/_two.py": "def f():\n    import cuelight.a._three\n",
        "src/cuelight/a/_three.py": "if TYPE_CHECKING:\n    from cuelight.a._one import X\n",
        "src/cuelight/a/_apart.py": "from cuelight.a._one import X\nfrom cuelight.a._apart import Y\n",
        "src/cuelight/a/__init__.py": "__all__ = []\n",
    }
    lines = _lines(tmp_path, files)
    assert [line.partition(": is in")[0] for line in lines] == [
        "src/cuelight/a/_one.py:1",
        "src/cuelight/a/_three.py:2",
        "src/cuelight/a/_two.py:2",
    ]
    assert "cuelight.a._one -> cuelight.a._two -> cuelight.a._three -> cuelight.a._one:" in lines[0]


def test_a_class_name_used_twice_is_found(tmp_path: Path) -> None:
    files = {
        "src/cuelight/_a.py": "class Row: pass\nclass Other: pass\n",
        "src/cuelight/_b.py": "def f():\n    class _Row: pass\n",
    }
    (line,) = _lines(tmp_path, files)
    assert line == ("src/cuelight/_a.py:1: `Row` is also the name of a class at src/cuelight/_b.py:2: rename one")


def test_all_in_a_private_module_is_found(tmp_path: Path) -> None:
    (line,) = _lines(
        tmp_path, {"src/cuelight/_a.py": "x = 1\n__all__ = ['x']\n", "src/cuelight/b.py": "__all__ = []\n"}
    )
    assert line.startswith("src/cuelight/_a.py:2: a private module has `__all__`")


def test_the_exit_code_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_structure.main(tmp_path) == 0
    _lines(tmp_path, {"src/cuelight/a/__init__.py": ""})
    assert check_structure.main(tmp_path) == 1
    assert "a/__init__.py:1:" in capsys.readouterr().out
