"""Whatever a text of the library advises to call exists, with the parameters that the text gives to it."""

from __future__ import annotations

import ast
import builtins
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cuelight
from cuelight import errors

SOURCE = Path(cuelight.__file__).parent

CALL = re.compile(r"(?<![\w.'\"`{])((?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*)\(([^()]*)\)?")
PARAMETER = re.compile(r"\b([a-z_]\w*)=")

EXTERNAL = {
    "NoRetryPolicy",
    "protocol",
    "requests",  # a name that a user gives to a limit
    "retry_policy",
}
"""What belongs to others, and is spelled as they do."""

WORDS = {"attempt", "error", "item", "key", "message", "s"}
"""No calls: words with a parenthesis right behind them, as in `message(s)`."""


class Names:
    """The functions, classes and methods that users can see, with the names of their parameters."""

    def __init__(self) -> None:
        self.parameters: dict[str, set[str]] = {}
        self.everything: set[str] = set()
        for path in SOURCE.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    self._enter(node.name, node.args)
                elif isinstance(node, ast.ClassDef):
                    self._enter_class(node)

    def _enter(self, name: str, arguments: ast.arguments) -> None:
        found = self.parameters.setdefault(name, set())
        for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            found.add(argument.arg)
            self.everything.add(argument.arg)
        if arguments.kwarg is not None:
            found.add("**")

    def _enter_class(self, node: ast.ClassDef) -> None:
        found = self.parameters.setdefault(node.name, set())
        for part in node.body:
            if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                found.add(part.target.id)
            if isinstance(part, ast.FunctionDef) and part.name == "__init__":
                self._enter(node.name, part.args)
        self.everything |= found

    def problems(self, text: str) -> Iterator[str]:
        """What is wrong with the calls that a text names."""
        for name, arguments in CALL.findall(text):
            last = name.rpartition(".")[2]
            if name in EXTERNAL or last in WORDS or last in dir(builtins):
                continue
            if last not in self.parameters:
                if not is_importable(name):
                    yield f"{name}() does not exist"
                continue
            known = self.parameters[last]
            if last.startswith("_"):
                yield f"{name}() is private"
            for parameter in PARAMETER.findall(arguments):
                if last[0].isupper():  # a class may inherit them
                    known = self.everything
                if parameter not in known and "**" not in known:
                    yield f"{name}() has no parameter {parameter}"
        for parameter in PARAMETER.findall(CALL.sub("", text)):
            if parameter not in self.everything | EXTERNAL:
                yield f"nothing has a parameter {parameter}"


def is_importable(name: str) -> bool:
    """Whether a dotted name is one of another package."""
    module, _, attribute = name.rpartition(".")
    if not module:
        return False
    try:
        return hasattr(importlib.import_module(module), attribute)
    except ImportError:
        return False


def texts_of_errors() -> Iterator[tuple[str, str]]:
    """(place, text) of every text in a call of an exception or of the log; what is formatted is `{}`."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and is_about_errors(node.func):
                for argument in node.args:
                    text = text_of(argument)
                    if text:
                        yield f"{path.relative_to(SOURCE)}:{argument.lineno}", text


def is_about_errors(called: ast.expr) -> bool:
    """Whether this makes an exception or a log record: exceptions have capitals, and end in what errors end in."""
    if isinstance(called, ast.Attribute):
        return called.attr in {"warning", "error", "exception", "warn"}
    if not isinstance(called, ast.Name):
        return False
    kind: Any = getattr(builtins, called.id, None) or getattr(errors, called.id, None)
    return isinstance(kind, type) and issubclass(kind, BaseException)


def text_of(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return ""


def test_what_error_texts_advise_to_call_exists() -> None:
    names = Names()
    found = [f"{place}: {problem} ({text})" for place, text in texts_of_errors() for problem in names.problems(text)]
    assert found == []


def test_wrong_advice_is_found() -> None:
    names = Names()
    assert list(names.problems("open it again with unlock_everything()")) == ["unlock_everything() does not exist"]
    assert list(names.problems("await ask(patience=3) first")) == ["ask() has no parameter patience"]
    assert list(names.problems("use _check(x)")) == ["_check() is private"]
    assert list(names.problems("give ask(timeout=...) more time, or len('') of it, anyio.sleep(1)")) == []
    assert len(list(texts_of_errors())) > 400
