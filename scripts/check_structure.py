"""Check the structure of the source tree: sizes, import circles, names of classes, `__all__` lists, guarded logging.

Run as `python scripts/check_structure.py [ROOT]`; `make check` does. Prints `path:line: finding, and the way out` for
each finding, and exits with 1 if there is one.
"""

import ast
import io
import sys
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "cuelight"
SRC_LINES = 560  # of code
TEST_LINES = 700
FUNCTION_LINES = 50
CRASHES = {"exit_.error", "self.error"}  # exceptions of actors

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Finding:
    path: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


@dataclass(frozen=True)
class Module:
    root: Path
    path: Path  # relative to the root
    source: str
    tree: ast.Module
    nodes: list[ast.AST]  # all of the tree

    @property
    def name(self) -> str:
        """The name under which it is imported."""
        parts = self.path.with_suffix("").parts[1:]
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def finding(self, line: int, text: str) -> Finding:
        return Finding(self.path, line, text)


def check_file_length(module: Module) -> Iterator[Finding]:
    limit = SRC_LINES if module.path.parts[0] == "src" else TEST_LINES
    lines = code_lines(module)
    if lines > limit:
        yield module.finding(
            1,
            f"the file has {lines} lines of code, the limit is {limit}: give one of its subjects its own file",
        )


def code_lines(module: Module) -> int:
    """Lines that hold code: no blank lines, comments or docstrings."""
    docstrings: set[int] = set()
    for node in module.nodes:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            docstrings.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(module.source).readline):
        if token.type not in layout:
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code - docstrings)


def check_function_length(module: Module) -> Iterator[Finding]:
    for node in module.nodes:
        if isinstance(node, Function) and (lines := body_lines(node)) > FUNCTION_LINES:
            yield module.finding(
                node.lineno,
                f"`{node.name}` has {lines} lines without its docstring, the limit is {FUNCTION_LINES}: "
                "give one step of it a name",
            )


def body_lines(function: Function) -> int:
    """Lines from the first statement after the docstring to the end."""
    body = function.body[1:] if ast.get_docstring(function, clean=False) is not None else function.body
    if not body:
        return 0
    return (body[-1].end_lineno or body[-1].lineno) - body[0].lineno + 1


def check_root_import(module: Module) -> Iterator[Finding]:
    """Also within functions: a lazy import of the root is the same cycle, later."""
    depth = len(module.path.parts) - len(("src", PACKAGE, "module.py"))
    for node in module.nodes:
        if isinstance(node, ast.Import):
            named = any(alias.name == PACKAGE for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            named = node.module == PACKAGE if node.level == 0 else node.module is None and node.level == depth + 1
        else:
            continue
        if named and module.path.parts[-2:] != (PACKAGE, "__init__.py"):
            yield module.finding(
                node.lineno,
                f"imports the root, and so everything: import from a package below, `{PACKAGE}.<name>`",
            )


def check_import_circles(sources: list[Module]) -> Iterator[Finding]:
    """Imports within functions and for type checkers count, too: a reader of one module has to read all of them."""
    by_name = {module.name: module for module in sources}
    imports = {name: imported_modules(module, by_name) for name, module in by_name.items()}
    for name, module in by_name.items():
        circle = shortest_circle(name, imports)
        if circle:
            text = f"is in an import circle, {' -> '.join(circle)}: move the code that both ends need below them"
            yield module.finding(imports[name][circle[1]], text)


def imported_modules(module: Module, by_name: dict[str, Module]) -> dict[str, int]:
    """The modules of this package that `module` names in imports, each with the line of the first import."""
    found: dict[str, int] = {}
    for node in module.nodes:
        match node:
            case ast.Import(names=names):
                targets = [alias.name for alias in names]
            case ast.ImportFrom(module=str(origin), names=names, level=0):
                inner = [f"{origin}.{alias.name}" for alias in names]
                targets = [name if name in by_name else origin for name in inner]
            case _:
                continue
        for target in targets:
            if target in by_name and target != module.name:
                found.setdefault(target, node.lineno)
    return found


def shortest_circle(start: str, imports: dict[str, dict[str, int]]) -> list[str]:
    """The shortest way from a module over its imports back to itself, with both ends; empty if there is none."""
    came_from: dict[str, str] = {}
    reached = [start]
    for name in reached:
        for target in imports[name]:
            if target == start:
                way = [start, name]
                while way[-1] != start:
                    way.append(came_from[way[-1]])
                return way[::-1]
            if target not in came_from:
                came_from[target] = name
                reached.append(target)
    return []


def check_class_names(sources: list[Module]) -> Iterator[Finding]:
    """A leading underscore makes no other name of it."""
    places: dict[str, list[tuple[Module, int]]] = {}
    for module in sources:
        for node in module.nodes:
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name.lstrip("_"), []).append((module, node.lineno))
    for name, (first, *others) in places.items():
        if others:
            at = ", ".join(f"{module.path}:{line}" for module, line in others)
            yield first[0].finding(first[1], f"`{name}` is also the name of a class at {at}: rename one")


def check_private_exports(sources: list[Module]) -> Iterator[Finding]:
    for module in sources:
        if module.path.name.startswith("_") and module.path.name != "__init__.py":
            listed, line = declared_exports(module.tree)
            if listed is not None:
                text = "a private module has `__all__`: remove it, and give names used here only an underscore"
                yield module.finding(line, text)


def check_exports(module: Module) -> Iterator[Finding]:
    listed, line = declared_exports(module.tree)
    if listed is None and module.path.parent.name.startswith("_") and not module.tree.body[1:]:
        return  # a private package that only groups modules
    if listed is None:
        yield module.finding(1, "the package has no literal `__all__`: add a list of the names that it exports")
        return
    if listed != sorted(set(listed)):
        yield module.finding(line, "`__all__` is not sorted or names something twice: sort it, each name once")
    bound, exported = module_names(module.tree)
    bound |= submodules(module.root / module.path.parent)
    for name in listed:
        if name not in bound:
            yield module.finding(line, f"`__all__` lists `{name}`, which is not there: import it, or take it out")
    for name, at in sorted(exported.items()):
        if name not in listed:
            yield module.finding(
                at,
                f"`{name}` is imported or defined but not in `__all__`: list it there, or call it `_{name}`",
            )


def check_logging(module: Module) -> Iterator[Finding]:
    """Log handlers are code of users: only the guarded log may call them."""
    if module.path.name == "_log.py":
        return
    for node in module.nodes:
        if isinstance(node, ast.Attribute) and node.attr == "getLogger":
            yield module.finding(node.lineno, "logs unguarded: use `get_log` of `cuelight._log`")


def check_error_texts(module: Module) -> Iterator[Finding]:
    """The text of an exception that users raise is code of theirs: it may raise itself."""
    if module.path.name in {"_log.py", "_text.py", "_child.py"}:  # the last is loaded without its package
        return
    for function in module.nodes:
        if not isinstance(function, Function):
            continue
        names = broad_error_names(function)
        for node in ast.walk(function):
            match node:
                case ast.FormattedValue(value=value):
                    pass
                case ast.Call(func=ast.Name(id="str" | "repr"), args=[value]):
                    pass
                case _:
                    continue
            if (isinstance(value, ast.Name) and value.id in names) or ast.unparse(value) in CRASHES:
                yield module.finding(
                    node.lineno,
                    f"formats the exception `{ast.unparse(value)}`, whose text may raise: use `describe_error`, "
                    "`safe_str` or `safe_repr` of `cuelight._text`",
                )


def broad_error_names(function: Function) -> set[str]:
    """Names that hold any exception at all: parameters that say so, and those of broad `except` clauses."""
    arguments = function.args
    names = {
        argument.arg
        for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
        if argument.annotation is not None and "Exception" in ast.unparse(argument.annotation)
    }
    for node in ast.walk(function):
        if isinstance(node, ast.ExceptHandler) and node.name is not None and node.type is not None:
            kinds = {kind.id for kind in ast.walk(node.type) if isinstance(kind, ast.Name)}
            if kinds & {"Exception", "BaseException"}:
                names.add(node.name)
    return names


def submodules(folder: Path) -> set[str]:
    return {child.stem for child in folder.iterdir() if child.suffix == ".py" or (child / "__init__.py").is_file()}


def declared_exports(tree: ast.Module) -> tuple[list[str] | None, int]:
    for node in tree.body:
        match node:
            case (
                ast.Assign(targets=[ast.Name(id="__all__")], value=value)
                | ast.AnnAssign(target=ast.Name(id="__all__"), value=ast.expr() as value)
            ):
                try:
                    names: list[str] = [str(name) for name in ast.literal_eval(value)]
                except ValueError:
                    return None, node.lineno
                return names, node.lineno
            case _:
                pass
    return None, 1


def module_names(tree: ast.Module) -> tuple[set[str], dict[str, int]]:
    """All names that the top level of a module binds, and those that look like exports, each with its line.

    A name imported from elsewhere than this package (`import sys`) is a tool of the module, not an export.
    """
    bound: set[str] = set()
    exported: dict[str, int] = {}
    for node in tree.body:
        names: list[str] = []
        ours = True
        match node:
            case ast.Import():
                names, ours = [(alias.asname or alias.name).split(".")[0] for alias in node.names], False
            case ast.ImportFrom():
                names = [alias.asname or alias.name for alias in node.names]
                ours = node.level > 0 or (node.module or "").split(".")[0] == PACKAGE
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names = [node.name]
            case ast.Assign():
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            case ast.AnnAssign(target=ast.Name(id=name)):
                names = [name]
            case _:
                pass
        bound.update(names)
        if ours:
            exported.update((name, node.lineno) for name in names if not name.startswith("_"))
    return bound, exported


def modules(root: Path) -> Iterator[Module]:
    for folder in ("src", "tests"):
        for path in sorted((root / folder).rglob("*.py")):
            source = path.read_text(encoding="utf-8")
            tree = ast.parse(source, str(path))
            yield Module(root, path.relative_to(root), source, tree, list(ast.walk(tree)))


def findings(root: Path) -> Iterator[Finding]:
    every = list(modules(root))
    sources = [module for module in every if module.path.parts[0] == "src"]
    yield from check_import_circles(sources)
    yield from check_class_names(sources)
    yield from check_private_exports(sources)
    for module in every:
        yield from check_file_length(module)
        if module.path.parts[0] != "src":
            continue
        checks: list[Callable[[Module], Iterator[Finding]]] = [
            check_function_length,
            check_root_import,
            check_logging,
            check_error_texts,
        ]
        if module.path.name == "__init__.py":
            checks.append(check_exports)
        for check in checks:
            yield from check(module)


def main(root: Path) -> int:
    found = list(findings(root))
    for finding in found:
        print(finding)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent)))
