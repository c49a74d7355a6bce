"""Check the English of docstrings, comments and documents for constructions that need a second reading.

Run as `python scripts/check_prose.py [ROOT]`; `make check` does. Prints `path:line: finding, and the way out` for each
finding, and exits with 1 if there is one. With `--rate` it prints the number of findings in 1,000 words instead.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from check_structure import Finding

SOURCES: Final = ("src", "scripts", "examples")
DOCUMENTS: Final = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs")
ALLOWED: Final = 0.5
"""Findings in 1,000 words of all files that are not listed."""

RULES: Final = {
    r"\bwho(?:m|se)?(?:so)?ever\b": "name the one who acts: the caller, the worker, the server, the lock",
    r"\bwhat\b(?!\s+(?:if|about)\b)": "use a noun instead of a clause with `what`: the result, the reason, the message",
    r"(?:^|[.:;]\s+)who\b": "a clause with `who` is the subject: name the one who acts",
    r"\b(?:by|of|to|with|for|from|than|but|tell|tells|told) whom?\b": "a clause with `who` is the object: use a noun",
    r"\bso (?:many|much)(?: of)?\b(?!\s+(?:as|that)\b)": "say which number or part is meant",
    r"\bto be (?:had|given|taken|told|done|read|written|found|asked|sent)\b": "say who does it, with an active verb",
    r"\bsuch as (?:are|is|have|has|do|does)\b": "use a relative clause with `that`",
    r"\bin (?:the|its|their|his) stead\b|\bin the stead of\b": "use `instead of` or `for`",
    r"\bnone of (?:its|their|our|his) business\b": "say what does not matter, and to which part",
    r"(?:^|\.\s+)of (?!course\b)": "begin the sentence with its subject",
    r"\bfor ever\b(?! and)": "say until when, or that there is no limit",
}
PATTERNS: Final = [(re.compile(pattern, re.IGNORECASE | re.MULTILINE), way) for pattern, way in RULES.items()]

CODE: Final = re.compile(r"```.*?```|``[^`\n]*``|`[^`\n]*`", re.DOTALL)
ARGUMENT: Final = re.compile(r"^[ ]{2,}\w+(?=: )", re.MULTILINE)
QUESTION: Final = re.compile(r"\bwhat\b[^.;:?]*\?", re.IGNORECASE)

Passage = tuple[int, str]
"""Text, with the line where it begins."""


def python_prose(source: str) -> Iterator[Passage]:
    """The docstrings of a module and its comments; comments on lines that follow each other are one passage."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value
    first, last, lines = 0, 0, list[str]()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        if lines and token.start[0] != last + 1:
            yield first, "\n".join(lines)
            lines.clear()
        if not lines:
            first = token.start[0]
        last = token.start[0]
        lines.append(token.string.lstrip("#! "))
    if lines:
        yield first, "\n".join(lines)


def without_code(text: str) -> str:
    """The same number of lines, without examples and names of code."""
    return CODE.sub(lambda match: "\n" * match[0].count("\n") or "code", text)


def passages(path: Path) -> Iterator[Passage]:
    source = path.read_text(encoding="utf-8")
    found = python_prose(source) if path.suffix == ".py" else iter([(1, source)])
    for line, text in found:
        plain = ARGUMENT.sub("argument", without_code(text))
        yield line, QUESTION.sub(lambda match: "\n" * match[0].count("\n"), plain)


def files(root: Path) -> Iterator[Path]:
    for name in SOURCES:
        yield from sorted((root / name).rglob("*.py"))
    for name in DOCUMENTS:
        yield from [root / name] if name.endswith(".md") else sorted((root / name).rglob("*.md"))


def file_findings(root: Path, path: Path, texts: Iterable[Passage]) -> Iterator[Finding]:
    for begin, text in texts:
        for pattern, way in PATTERNS:
            for match in pattern.finditer(text):
                line = begin + text.count("\n", 0, match.end())
                words = match[0].strip(" .:;\n")
                yield Finding(path.relative_to(root), line, f"`{words}`: {way}")


def word_count(texts: Iterable[Passage]) -> int:
    return sum(len(text.split()) for _, text in texts)


def findings(root: Path) -> Iterator[Finding]:
    words, found = 0, list[Finding]()
    for path in files(root):
        texts = list(passages(path))
        found += file_findings(root, path, texts)
        words += word_count(texts)
    if len(found) * 1000 > ALLOWED * words:
        yield from found


def rate(root: Path) -> float:
    """Findings in 1,000 words."""
    found, words = 0, 0
    for path in files(root):
        texts = list(passages(path))
        found += sum(1 for _ in file_findings(root, path, texts))
        words += word_count(texts)
    return 1000 * found / words


def main(root: Path, *options: str) -> int:
    if "--rate" in options:
        print(f"{rate(root):.2f} findings in 1,000 words")
        return 0
    found = list(findings(root))
    for finding in found:
        print(finding)
    return 1 if found else 0


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    options = [argument for argument in sys.argv[1:] if argument.startswith("--")]
    sys.exit(main(Path(arguments[0]) if arguments else Path(__file__).parent.parent, *options))
