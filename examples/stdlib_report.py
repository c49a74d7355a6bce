"""Measure every Python file below a folder with a crew of actors, and print a report.

    main ── asks for the findings ──► Aggregator ◄── Measured ── Worker 0..n ◄── Measure ── Finder
                                                                   │
                                                                   └── refused ──► dead letters ──► main

What to look at:

* `Crew` declares who is there, in which order they start, and how each is kept.
* Back-pressure: the mailbox of a worker holds few files, so the finder waits (`await worker.tell(...)`).
* A file that cannot be measured is refused: the worker raises a `ReplyError`, lives on, and the message becomes a
  dead letter with the error. The failures in the report are those dead letters.
* A worker that crashes is restarted by the crew. The file that it was at is delivered again (`redeliver`), and its
  mailbox and its ref stay. `--chaos` shows that: the report is the same, byte for byte.
* The end needs no counting: messages of one sender stay in order, so `NoMore` is the last that a worker gets, and
  the last that it passes on.

Try `python examples/stdlib_report.py --workers 8 --chaos --backend trio`.
"""

import argparse
import ast
import io
import json
import logging
import os
import random
import stat
import sys
import sysconfig
import tokenize
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anyio
import msgspec

from cuelight import (
    Actor,
    ActorSystem,
    Backoff,
    ChildSpec,
    CuelightError,
    DeadLetter,
    Message,
    Ref,
    ReplyError,
    ReplyPort,
    Request,
    Start,
    Supervisor,
    child,
    on,
)

DELIVERIES = 4
"""Times that a file is delivered before it is quarantined: its worker must have crashed on it each time."""

SHOWN = 5
"""Rows in each table of the report."""


# Measuring: plain functions, because they have no state and no life of their own.


class Unmeasured(ReplyError):
    """A file cannot be measured, for this kind of reason."""

    kind = "unmeasured"


class Unreadable(Unmeasured):
    kind = "cannot be read"


class Undecodable(Unmeasured):
    kind = "is not in its encoding"


class Unparsable(Unmeasured):
    kind = "does not parse"


class Function(msgspec.Struct, frozen=True):
    name: str
    file: str
    line: int
    lines: int
    complexity: int


class Source(msgspec.Struct, frozen=True):
    """What was measured of one file."""

    file: str
    lines: int
    classes: int
    functions: list[Function]


BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.match_case, ast.comprehension)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def read(path: Path) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise Unreadable("it is not a regular file")
        return path.read_bytes()
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from error


def measure(file: str, content: bytes) -> Source:
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        text = content.decode(encoding)
    except (SyntaxError, ValueError) as error:
        raise Undecodable(str(error)) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the compiler thinks of that code is not our business
            tree = ast.parse(text)
    except SyntaxError as error:
        raise Unparsable(f"{error.msg} (line {error.lineno})") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise Unparsable(str(error) or "it is nested too deeply") from error
    nodes = list(ast.walk(tree))
    functions = [
        Function(node.name, file, node.lineno, (node.end_lineno or node.lineno) - node.lineno + 1, complexity(node))
        for node in nodes
        if isinstance(node, FUNCTIONS)
    ]
    classes = sum(isinstance(node, ast.ClassDef) for node in nodes)
    return Source(file, len(content.splitlines()), classes, functions)


def complexity(function: ast.AST) -> int:
    """McCabe's count: one way through, and one more for each branch; functions inside count for themselves."""
    count, inside = 1, list(ast.iter_child_nodes(function))
    while inside:
        node = inside.pop()
        if isinstance(node, FUNCTIONS):
            continue
        if isinstance(node, BRANCHES):
            count += 1
        elif isinstance(node, ast.BoolOp):
            count += len(node.values) - 1
        inside.extend(ast.iter_child_nodes(node))
    return count


# Messages.


class Measure(Message):
    file: str  # relative to the folder


class Measured(Message):
    source: Source


class Found(Message):
    files: int


class NoMore(Message):
    """There are no more files: the finder tells each worker, and each worker passes it on with its name."""

    worker: str = ""


class Collected(msgspec.Struct, frozen=True):
    """The answer to `Findings`."""

    found: int
    sources: list[Source]


class Findings(Request[Collected]):
    """Ask for all that was measured. The answer comes when the last worker is through."""


class ShowProgress(Message):
    """The aggregator's timer."""


# Actors.


class Chaos:
    """Accidents, drawn from a seed. Not an actor: it stands for the bad luck that comes from outside."""

    def __init__(self, seed: int | None, share: float = 0.1) -> None:
        self._seed, self._share = seed, share
        self._accidents: Counter[str] = Counter()

    @property
    def accidents(self) -> int:
        return self._accidents.total()

    def strike(self, file: str, moment: str) -> None:
        """Perhaps crash whoever is at this file, but not so often that a good file would be quarantined."""
        if self._seed is None or self._accidents[file] == DELIVERIES - 1:
            return
        if random.Random(f"{self._seed} {file} {moment} {self._accidents[file]}").random() < self._share:
            self._accidents[file] += 1
            raise RuntimeError(f"an accident {moment}")


class Finder(Actor[Message]):
    """Finds the files and hands them out, each worker in turn. It has a `run` of its own, and ends with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def run(self) -> None:
        aggregator: Ref[Found] = self.system.find("aggregator")
        workers = self.system.group("workers")
        files = await anyio.to_thread.run_sync(python_files, self.folder)  # a disk may be slow: not in the loop
        await aggregator.tell(Found(len(files)))
        for file in files:
            await workers.pick().tell(Measure(file))  # waits while the mailbox of the worker is full
        for worker in workers:
            await worker.tell(NoMore())


def python_files(folder: Path) -> list[str]:
    """The Python files below a folder, sorted; installed packages are left out."""
    found: list[str] = []

    def note_unreadable(error: OSError) -> None:
        found.append(os.path.relpath(error.filename, folder))  # reading it will fail, and be counted

    for where, folders, files in os.walk(folder, onerror=note_unreadable):
        folders[:] = [name for name in folders if name not in {"site-packages", "dist-packages"}]
        found += [os.path.relpath(os.path.join(where, name), folder) for name in files if name.endswith(".py")]
    return sorted(found)


class Worker(Actor[Measure | NoMore]):
    """Measures one file at a time."""

    def __init__(self, folder: Path, chaos: Chaos) -> None:
        self.folder, self.chaos = folder, chaos
        self.aggregator: Ref[Measured | NoMore] = self.system.find("aggregator")  # a ref outlives restarts

    def started(self, why: Start) -> None:
        self.join("workers")

    @on(Measure)
    async def measure(self, message: Measure) -> None:
        self.chaos.strike(message.file, "before it was read")
        content = await anyio.to_thread.run_sync(read, self.folder / message.file)
        source = measure(message.file, content)
        self.chaos.strike(message.file, "before it was passed on")
        await self.aggregator.tell(Measured(source))
        self.chaos.strike(message.file, "after it was passed on")  # so it will be passed on twice

    @on(NoMore)
    async def no_more(self, message: NoMore) -> None:
        await self.aggregator.tell(NoMore(self.name))


class Aggregator(Actor[Measured | Found | NoMore | Findings | ShowProgress]):
    """Collects what was measured. The same file twice is one: a delivery that is repeated changes nothing."""

    def __init__(self, workers: int, *, progress: bool) -> None:
        self.waiting_for = {worker_name(number) for number in range(workers)}
        self.progress = progress
        self.found = 0
        self.sources: dict[str, Source] = {}
        self.asker: ReplyPort | None = None

    def started(self, why: Start) -> None:
        if self.progress:
            self.every(0.1, ShowProgress())

    @on(Found)
    def files_found(self, message: Found) -> None:
        self.found = message.files

    @on(Measured)
    def measured(self, message: Measured) -> None:
        self.sources[message.source.file] = message.source

    @on(NoMore)
    def no_more(self, message: NoMore) -> None:
        self.waiting_for.discard(message.worker)
        self.answer_if_complete()

    @on(Findings)
    def findings(self, message: Findings) -> Collected:
        self.asker = self.defer_reply()  # answered later, when all is there
        self.answer_if_complete()
        return Collected(0, [])  # not sent: the reply was deferred

    def answer_if_complete(self) -> None:
        if self.asker is not None and not self.waiting_for:
            self.show_progress(ShowProgress())
            self.asker.send(Collected(self.found, [self.sources[file] for file in sorted(self.sources)]))

    @on(ShowProgress)
    def show_progress(self, message: ShowProgress) -> None:
        if self.progress:
            print(f"\r{len(self.sources)} of {self.found} files measured ", end="", file=sys.stderr, flush=True)


def worker_name(number: int) -> str:
    return f"worker-{number}"


class Crew(Supervisor):
    """Its children start in this order, each when the one before is up, and end in the reverse of it."""

    max_restarts = 0  # crashes on a file that is redelivered do not count; after any other the work is incomplete

    def __init__(self, options: argparse.Namespace, chaos: Chaos) -> None:
        self.options, self.chaos = options, chaos

    def specs(self) -> Iterable[ChildSpec[Any]]:
        workers = self.options.workers
        yield child(Aggregator, workers, progress=self.options.progress).with_options(name="aggregator")
        for number in range(workers):
            yield child(Worker, self.options.path, self.chaos).with_options(
                name=worker_name(number),
                capacity=4,
                redeliver=DELIVERIES,
                backoff=Backoff(minimum=0.001, maximum=0.01),
            )
        yield child(Finder, self.options.path).with_options(name="finder")


# The report.


class Failure(msgspec.Struct, frozen=True):
    kind: str
    file: str
    error: str
    dead_letter: str


class Report(msgspec.Struct, frozen=True):
    files: int
    measured: int
    lines: int
    classes: int
    functions: int
    longest_functions: list[Function]
    most_complex_functions: list[Function]
    failures: list[Failure]


def failures_among(letters: Iterable[DeadLetter]) -> list[Failure]:
    failures: list[Failure] = []
    for letter in letters:
        if isinstance(letter.message, Measure) and letter.reason in {"refused", "quarantined"}:
            if isinstance(letter.error, Unmeasured):
                kind, error = letter.error.kind, str(letter.error)
            else:  # a fault of this program
                kind, error = "crashes workers", repr(letter.error)
            failures.append(Failure(kind, letter.message.file, error, letter.reason))
    return sorted(failures, key=lambda failure: (failure.kind, failure.file))


def make_report(collected: Collected, letters: Iterable[DeadLetter]) -> Report:
    sources = collected.sources
    failures = failures_among(letters)
    functions = [function for source in sources for function in source.functions]
    return Report(
        files=collected.found,
        measured=len(sources),
        lines=sum(source.lines for source in sources),
        classes=sum(source.classes for source in sources),
        functions=len(functions),
        longest_functions=sorted(functions, key=lambda function: (-function.lines, function.file))[:SHOWN],
        most_complex_functions=sorted(functions, key=lambda function: (-function.complexity, function.file))[:SHOWN],
        failures=failures,
    )


def as_text(report: Report) -> Iterator[str]:
    yield f"{report.files:>9,} files, {report.measured:,} of them measured"
    yield f"{report.lines:>9,} lines"
    yield f"{report.classes:>9,} classes"
    yield f"{report.functions:>9,} functions"
    for title, functions in {
        "The longest functions": report.longest_functions,
        "The most complex functions": report.most_complex_functions,
    }.items():
        yield f"\n{title}\n    lines  complexity"
        for one in functions:
            yield f"{one.lines:>9,}  {one.complexity:>10,}  {one.name}, {one.file}:{one.line}"
    kinds: defaultdict[tuple[str, str], list[Failure]] = defaultdict(list)
    for failure in report.failures:
        kinds[failure.kind, failure.dead_letter].append(failure)
    yield f"\nFailures: {len(report.failures):,}"
    for (kind, dead_letter), failures in kinds.items():
        yield f"{len(failures):>9,}  {kind} (dead letter: {dead_letter})"
        for failure in failures:
            yield f"             {failure.file}: {failure.error}"


# The program.


async def work(options: argparse.Namespace) -> Report:
    chaos = Chaos(options.seed if options.chaos else None)
    collected = Collected(0, [])
    letters: list[DeadLetter] = []
    async with ActorSystem("report") as system:
        graveyard = system.dead_letters.subscribe(capacity=sys.maxsize)  # the system itself keeps only the latest ones
        await system.spawn(child(Crew, options, chaos).with_options(name="crew"))
        aggregator: Ref[Findings] = system.find("aggregator")
        collected = await aggregator.ask(Findings(), timeout=float("inf"))
        graveyard.close()
        letters = [letter async for letter in graveyard]
    if options.progress:
        print(file=sys.stderr)
    if options.chaos:
        print(f"{chaos.accidents:,} crashes of workers; what follows knows nothing of them", file=sys.stderr)
    return make_report(collected, letters)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure every Python file below a folder with a crew of actors.")
    standard_library = Path(sysconfig.get_paths()["stdlib"])
    parser.add_argument("--path", type=Path, default=standard_library, help="default: the standard library")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument("--workers", type=int, default=4, help="how many actors measure (default: 4)")
    parser.add_argument("--chaos", action="store_true", help="crash workers at random; the report stays the same")
    parser.add_argument("--seed", type=int, default=0, help="where --chaos draws its accidents from (default: 0)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--progress", action="store_true", help="show progress although stderr is no terminal")
    parser.add_argument("-v", "--verbose", action="store_true", help="show the reports of crashes")
    options = parser.parse_args()
    if options.workers < 1:
        parser.error(f"--workers {options.workers}: give 1 or more")
    if not options.path.is_dir():
        what = "is not a folder" if options.path.exists() else "does not exist"
        parser.error(f"--path {options.path}: it {what}")
    if options.backend == "trio" and find_spec("trio") is None:
        parser.error("--backend trio: trio is not installed; `pip install trio` does that")
    options.progress = options.progress or sys.stderr.isatty()
    return options


def main() -> int:
    options = parse_arguments()
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("cuelight").setLevel(logging.WARNING if options.verbose else logging.CRITICAL)
    status = 1
    try:
        report = anyio.run(work, options, backend=options.backend)
        if not report.files:
            print(f"there is no Python file below {options.path}", file=sys.stderr)
            return 2
        text = json.dumps(msgspec.to_builtins(report), indent=2) if options.json else "\n".join(as_text(report))
        print(text.encode(sys.stdout.encoding, "backslashreplace").decode(sys.stdout.encoding), flush=True)
        status = 0
    except* KeyboardInterrupt:
        print("\nstopped; nothing was left running", file=sys.stderr)
        status = 130
    except* CuelightError as errors:
        print(f"the crew has failed: {errors.exceptions[0]} (--verbose shows the crashes)", file=sys.stderr)
    except* BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whoever read the report has gone
    return status


if __name__ == "__main__":
    sys.exit(main())
