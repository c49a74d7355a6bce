"""`import cuelight` loads what every program needs, and no more."""

import subprocess
import sys

import pytest

EXTRAS = ("cronsim", "hiredis", "redis", "rich", "tqdm", "trio", "uvloop")
"""Options, which need not be installed."""

COSTLY = (
    "concurrent.futures.process",
    "concurrent.futures.thread",
    "hashlib",
    "ipaddress",
    "mmap",
    "multiprocessing",
    "pickle",
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


@pytest.mark.parametrize("name", ["ProcessExecutor", "RemoteTraceback"])
def test_what_is_loaded_at_first_use_can_be_imported_as_everything_else(name: str) -> None:
    assert "pickle" in _loaded(f"from cuelight.pools import {name}")
    assert "pickle" in _loaded(f"import cuelight.pools\ncuelight.pools.{name}")


def test_a_name_that_a_package_does_not_have_is_still_an_attribute_error() -> None:
    import cuelight.pools

    with pytest.raises(AttributeError, match=r"module 'cuelight\.pools' has no attribute 'Nothing'"):
        _ = getattr(cuelight.pools, "Nothing")  # noqa: B009 - the type checkers know that it is not there
