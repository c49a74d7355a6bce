"""Build the wheel, install it where nothing else is, and use it there from outside the checkout."""

import subprocess
import sys
import tempfile
import tomllib
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# What a bare `import cuelight` must not load: the extras, and whatever ties it to one event loop.
UNWANTED = ("hiredis", "redis", "rich", "trio", "uvloop")

PROGRAM = f"""
import importlib.metadata, sys
import cuelight

unwanted = sorted(set({UNWANTED!r}) & set(sys.modules))
assert not unwanted, f"import cuelight also loads {{unwanted}}: import them where they are needed"
installed = importlib.metadata.version("cuelight")
assert cuelight.__version__ == installed, f"{{cuelight.__version__}} is not {{installed}} as in its metadata"
assert "site-packages" in cuelight.__file__, cuelight.__file__
missing = [name for name in getattr(cuelight, "__all__", ()) if not hasattr(cuelight, name)]
assert not missing, f"__all__ lists what is not there: {{missing}}"
print(f"cuelight {{installed}} works from its wheel")
"""

ACTORS = """
import anyio
from cuelight import Actor, ActorSystem, Message, Request, on


class Add(Message):
    amount: int


class Total(Request[int]):
    pass


class Counter(Actor[Add | Total]):
    def __init__(self, start: int = 0) -> None:
        self.total = start

    @on(Add)
    def add(self, msg: Add) -> None:
        self.total += msg.amount

    @on(Total)
    async def get(self, msg: Total) -> int:
        return self.total


async def main() -> None:
    async with ActorSystem("wheel") as system:
        counter = await system.spawn(Counter, start=10)
        await counter.tell(Add(5))
        assert await counter.ask(Total()) == 15


anyio.run(main)
"""


def run(*command: str | Path, cwd: Path) -> None:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(str(part) for part in command[:4])} failed:\n{done.stdout}{done.stderr}")
    if done.stdout and command[-2] == "-c":
        print(done.stdout, end="")


def build(into: Path) -> Path:
    run(sys.executable, "-m", "build", "--wheel", "--outdir", into, ROOT, cwd=into)
    (wheel,) = into.glob("*.whl")
    return wheel


def check_contents(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    if "cuelight/py.typed" not in names:
        sys.exit(f"{wheel.name} has no cuelight/py.typed: type checkers would ignore its annotations")
    strangers = [name for name in names if not name.startswith(("cuelight/", "cuelight-"))]
    if strangers:
        sys.exit(f"{wheel.name} also installs {strangers[:5]}")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    if not wheel.name.startswith(f"cuelight-{version}-"):
        sys.exit(f"{wheel.name} is not version {version}")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        wheel = build(place)
        check_contents(wheel)
        venv.create(place / "env", with_pip=True)
        python = place / "env" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        run(python, "-m", "pip", "install", "--quiet", wheel, cwd=place)
        for program in (PROGRAM, ACTORS):
            run(python, "-I", "-W", "error", "-c", program, cwd=place)


if __name__ == "__main__":
    main()
