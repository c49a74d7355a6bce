"""Measure every Python file below a folder with a durable task queue, and print a report.

    main ──► scan (folder) ──► scan (each folder in it)
                 │
                 └──► measure (each file in it) ──► worker processes ──► results  ─┐
                              │                                                    ├──► report
                              └── cannot be measured ──► dead letters ────────────┘

Points of interest:

* The queue is one SQLite file. `kill -9` this program at any moment and start it again with `--resume`: it continues
  where it was, and the report is the same, byte for byte. Start it twice with one `--state`, and both share the work.
* A task that is enqueued twice is accepted once. If the scan of a folder is interrupted, it is repeated, and enqueues
  the same tasks with the same identities.
* Parsing runs in worker processes. `--chaos` kills them with `kill -9` while they parse: each death costs one attempt
  of one file, and the process is replaced.
* A file that cannot be measured raises a `Rejected`: there is no second attempt, and a dead letter has the reason. The
  failures in the report are these dead letters.

Try `python examples/stdlib_report.py --workers 8 --chaos --backend trio`.
"""

import argparse
import ast
import hashlib
import io
import json
import logging
import os
import random
import shutil
import signal
import stat
import sys
import sysconfig
import tempfile
import tokenize
import warnings
from collections import defaultdict
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import anyio
import msgspec

from cuelight import (
    CuelightError,
    DeadLetterEntry,
    Rejected,
    SQLiteStore,
    TaskFunction,
    TaskPriority,
    TaskQueue,
    TaskWorker,
    task,
)

CRASHES = 8
"""The number of processes that may die under a file before it is quarantined; kills of this program count too."""

LEASE = 3.0
"""Seconds after which the tasks of a killed program are free for the next one."""

KEPT = 7 * 24 * 3600.0
"""Seconds for which results are kept for `--resume`."""

ACCIDENTS = 0.02
"""The share of files for which `--chaos` kills the process."""

SHOWN = 5
"""The number of rows in each table of the report."""


# Measuring: plain functions, because they have no state and no life of their own.


class Unmeasured(Rejected):
    """A file cannot be measured; the subclass gives the reason."""


class Unreadable(Unmeasured):
    pass


class Undecodable(Unmeasured):
    pass


class Unparsable(Unmeasured):
    pass


KINDS = {
    "Unreadable": "cannot be read",
    "Undecodable": "is not in its encoding",
    "Unparsable": "does not parse",
}


class Function(msgspec.Struct, frozen=True):
    name: str
    file: str
    line: int
    lines: int
    complexity: int


class Source(msgspec.Struct, frozen=True):
    """The measurements of one file."""

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
            warnings.simplefilter("ignore")  # warnings of the compiler about this code do not matter here
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
    """McCabe's count: 1, and one more for each branch. Nested functions are counted separately."""
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


# Tasks.


def accident(state: str, file: str, seed: int) -> None:
    """Kill this process for a random share of the files, once for each of them.

    This is not a part of the work: it stands for an external cause.
    """
    if random.Random(f"{seed} {file}").random() < ACCIDENTS:
        mark = hashlib.sha256(file.encode(errors="surrogateescape")).hexdigest()[:16]
        try:
            os.close(os.open(f"{state}.accidents/{mark}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return  # it has already happened
        os.kill(os.getpid(), signal.SIGKILL)


@task(name="measure", max_crashes=CRASHES, result_ttl=KEPT)
def measure_file(root: str, file: str, accidents: tuple[str, int] | None = None) -> Source:
    """Measure one file. A plain function: it runs in a worker process, which may be killed."""
    if accidents is not None:
        accident(accidents[0], file, accidents[1])
    return measure(file, read(Path(root, file)))


def entries(root: str, folder: str) -> tuple[list[str], list[str]]:
    """The folders and the Python files in a folder, sorted, without installed packages."""
    folders: list[str] = []
    files: list[str] = []
    for entry in os.scandir(Path(root, folder)):
        name = os.path.normpath(os.path.join(folder, entry.name))
        if entry.is_dir(follow_symlinks=False):
            if entry.name not in {"site-packages", "dist-packages"}:
                folders.append(name)
        elif name.endswith(".py"):
            files.append(name)
    return sorted(folders), sorted(files)


def scanner(queue: TaskQueue, accidents: tuple[str, int] | None) -> TaskFunction[[str, str], None]:
    """The task that scans a folder. It enqueues more tasks in its own queue."""

    @task(name="scan", priority=TaskPriority.HIGH, max_crashes=CRASHES, result_ttl=KEPT)
    async def scan(root: str, folder: str) -> None:
        try:
            folders, files = await anyio.to_thread.run_sync(entries, root, folder)
        except OSError as error:
            raise Unreadable(error.strerror or str(error)) from error
        # The identity names the folder or file, so a repeated scan enqueues the same tasks, which are accepted once.
        found = [scan.with_options(task_id=f"scan {name}").task(root, name) for name in folders]
        found += [measure_file.with_options(task_id=f"measure {name}").task(root, name, accidents) for name in files]
        await queue.enqueue_many(found)

    return scan


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


def failure_of(letter: DeadLetterEntry) -> Failure:
    """Convert a dead letter into a failure of its file."""
    given = letter.payload["kwargs"]
    file = given["file"] if "file" in given else given["folder"]
    name, _, error = letter.error.partition(": ")
    kind = KINDS.get(name.rpartition(".")[2])
    if kind is None:
        kind, error = ("kills workers" if letter.reason == "quarantined" else "crashes workers"), letter.error
    return Failure(kind, file, error, letter.reason)


async def make_report(queue: TaskQueue) -> Report:
    failures = sorted(
        [failure_of(letter) async for letter in queue.dead_letters], key=lambda failure: (failure.kind, failure.file)
    )
    sources = sorted([source async for _, source in queue.results(measure_file)], key=lambda source: source.file)
    functions = [function for source in sources for function in source.functions]
    return Report(
        files=len(sources) + len(failures),
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


async def show_progress(queue: TaskQueue) -> None:
    """Show a progress bar on stderr until cancelled."""
    from tqdm import tqdm  # noqa: PLC0415 - only who wants a bar needs it

    with tqdm(unit=" tasks", file=sys.stderr, dynamic_ncols=True, mininterval=0) as bar:

        async def update() -> None:
            size = await queue.size()
            bar.total = size.pending + size.scheduled + size.in_flight + size.completed + size.dead_letter
            bar.update(size.completed + size.dead_letter - bar.n)

        try:
            while True:
                await update()
                await anyio.sleep(0.1)
        finally:
            with anyio.move_on_after(1, shield=True):
                await update()  # include the last tasks; otherwise the bar would end before the work
            bar.refresh()


async def work(options: argparse.Namespace) -> Report:
    state, root = str(options.state), str(options.path.resolve())
    async with TaskQueue(SQLiteStore(options.state), max_length=None) as queue:
        scan = scanner(queue, (state, options.seed) if options.chaos else None)
        begun = await queue.get("scan .")
        if begun is not None and begun.payload["kwargs"]["root"] != root:
            raise WrongState(f"{state} is about {begun.payload['kwargs']['root']}, not {root}: give another --state")
        if begun is None:
            await queue.enqueue(scan.with_options(task_id="scan .").task(root, "."))
        async with anyio.create_task_group() as group:
            if options.progress:
                group.start_soon(show_progress, queue)
            async with TaskWorker(
                queue, [scan, measure_file], kind="process", threads=options.workers, concurrency=16, lease=LEASE
            ):
                await queue.drain(scheduled=True)
            group.cancel_scope.cancel()
        return await make_report(queue)


class WrongState(Exception):
    """The given state belongs to another folder."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure every Python file below a folder with a durable queue.")
    standard_library = Path(sysconfig.get_paths()["stdlib"])
    parser.add_argument("--path", type=Path, default=standard_library, help="default: the standard library")
    parser.add_argument(
        "--state", type=Path, help="the file of the queue (default: one for each --path, in the temp folder)"
    )
    parser.add_argument("--resume", action="store_true", help="go on where a run was that was stopped or killed")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 2, help="processes (default: one for each core)"
    )
    parser.add_argument("--chaos", action="store_true", help="kill processes at random; the report stays the same")
    parser.add_argument("--seed", type=int, default=0, help="where --chaos draws its accidents from (default: 0)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--progress", action="store_true", help="show progress although stderr is no terminal")
    parser.add_argument("-v", "--verbose", action="store_true", help="show what workers report")
    options = parser.parse_args()
    if options.workers < 1:
        parser.error(f"--workers {options.workers}: give 1 or more")
    if not options.path.is_dir():
        what = "is not a folder" if options.path.exists() else "does not exist"
        parser.error(f"--path {options.path}: it {what}")
    if options.backend == "trio" and find_spec("trio") is None:
        parser.error("--backend trio: trio is not installed; `pip install trio` does that")
    if find_spec("tqdm") is None and options.progress:
        parser.error("--progress: tqdm is not installed; `pip install tqdm` does that")
    options.progress = options.progress or (sys.stderr.isatty() and find_spec("tqdm") is not None)
    prepare_state(parser, options)
    return options


def prepare_state(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Set the file of the queue; a new run deletes an old file."""
    if options.state is None:
        name = hashlib.sha256(str(options.path.resolve()).encode(errors="surrogateescape")).hexdigest()[:12]
        options.state = Path(tempfile.gettempdir(), f"stdlib-report-{name}.db")
    accidents = Path(f"{options.state}.accidents")
    if options.resume and not options.state.exists():
        parser.error(f"--resume: there is nothing to resume, {options.state} does not exist")
    if not options.resume:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{options.state}{suffix}").unlink(missing_ok=True)
        shutil.rmtree(accidents, ignore_errors=True)
    if options.chaos:
        accidents.mkdir(parents=True, exist_ok=True)


def main() -> int:
    options = parse_arguments()
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("cuelight").setLevel(logging.WARNING if options.verbose else logging.CRITICAL)
    # asyncio turns Ctrl-C into a cancellation of `work`. Trio raises it between any two instructions of `work`, even in
    # the middle of the start of a task, unless it is told to wait for the next checkpoint.
    at_checkpoints = {"restrict_keyboard_interrupt_to_checkpoints": True} if options.backend == "trio" else {}
    status = 1
    try:
        report = anyio.run(work, options, backend=options.backend, backend_options=at_checkpoints)
        if not report.files:
            print(f"there is no Python file below {options.path}", file=sys.stderr)
            return 2
        text = json.dumps(msgspec.to_builtins(report), indent=2) if options.json else "\n".join(as_text(report))
        print(text.encode(sys.stdout.encoding, "backslashreplace").decode(sys.stdout.encoding), flush=True)
        status = 0
    except* KeyboardInterrupt:
        print("\nstopped; nothing was left running, and --resume goes on", file=sys.stderr)
        status = 130
    except* (CuelightError, WrongState) as errors:
        print(f"it did not work: {errors.exceptions[0]}", file=sys.stderr)
    except* BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader of the report has gone
    return status


if __name__ == "__main__":
    sys.exit(main())
