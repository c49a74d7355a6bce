"""`import cuelight` loads what every program needs, and no more."""

import subprocess
import sys

EXTRAS = ("cronsim", "hiredis", "redis", "rich", "tqdm", "trio", "uvloop")
"""Options, which need not be installed."""

COSTLY = (
    "concurrent.futures.process",
    "concurrent.futures.thread",
    "hashlib",
    "ipaddress",
    "multiprocessing",
    "shutil",
    "sqlite3",
    "tempfile",
    "urllib.parse",
    "zoneinfo",
)
"""What takes milliseconds and only some programs need: it is loaded at first use."""


def _loaded(program: str) -> set[str]:
    run = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport sys\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(run.stdout.split())


def test_the_import_loads_no_extra_and_nothing_that_only_some_programs_need() -> None:
    before = _loaded("import anyio, asyncio, msgspec")  # what they load is theirs, and differs from version to version
    assert not before.intersection(EXTRAS)
    assert not (_loaded("import cuelight") - before).intersection(EXTRAS + COSTLY)
