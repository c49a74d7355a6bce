"""Every Python block of the README and of the documentation runs, page by page, in the order of the page.

The blocks of one page share a namespace, as a reader who types along has it. `<!-- skip: next -->` before a
block leaves it out. Where a block names the server of its reader it gets the one of the tests, empty at the start of
the page.
"""

import sys
from pathlib import Path
from types import ModuleType

import pytest
from sybil import Example
from sybil.document import Document
from sybil.parsers.markdown import CodeBlockParser, SkipParser

from helpers.redis_servers import shared_server

ROOT = Path(__file__).parent.parent
PAGES = sorted(path for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")] if path.exists())

SERVER = "redis://localhost:6379"


def _run(example: Example) -> None:
    source = "\n" * (example.line + example.parsed.line_offset) + example.parsed
    if SERVER in source:
        source = source.replace(SERVER, shared_server().url.removesuffix("/0"))
    exec(compile(source, example.path, "exec", dont_inherit=True), example.namespace)


def run_page(page: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run the blocks of a page as one script, and return how many there are."""
    script = ModuleType("__main__")
    # What looks a class's module up (for its annotations, say) must find the page there.
    monkeypatch.setitem(sys.modules, "__main__", script)
    parsers = (CodeBlockParser("python", _run), SkipParser())
    document = Document.parse(str(page), *parsers)
    document.namespace = script.__dict__
    if SERVER in page.read_text(encoding="utf-8"):
        shared_server().command("FLUSHALL")
    examples = list(document.examples())
    for example in examples:
        example.evaluate()
    return len(examples)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_code_on_a_page_runs(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(page, monkeypatch)


SAMPLE = """
```python
class Greeting:
    text: "Text"

Text = str
```
```sh
false
```
```python
import typing
assert typing.get_type_hints(Greeting) == {"text": str}
assert __name__ == "__main__"
```
"""


def test_blocks_of_one_page_share_a_namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(SAMPLE, encoding="utf-8")
    assert run_page(page, monkeypatch) == 2


SERVER_SAMPLE = """
```python
import redis

client = redis.Redis.from_url("redis://localhost:6379/1")
assert client.set("page", 1, nx=True)
client.close()
```
"""


def test_a_block_that_names_a_server_gets_an_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(SERVER_SAMPLE, encoding="utf-8")
    for _ in range(2):
        run_page(page, monkeypatch)
    assert b"db1:keys=1" in shared_server().command("INFO", "keyspace")


def test_a_block_that_fails_names_its_page_and_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(SAMPLE + "```python\nraise KeyError(1)\n```\n", encoding="utf-8")
    with pytest.raises(KeyError) as caught:
        run_page(page, monkeypatch)
    last = caught.traceback[-1]
    assert (Path(last.path).name, last.lineno + 1) == ("page.md", 17)
