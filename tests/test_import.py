"""`import cuelight` loads what every program needs, and no more."""

import importlib
import subprocess
import sys

import pytest

import cuelight

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


def test_locks_over_redis_are_found_at_the_root_and_loaded_at_first_use() -> None:
    assert {"DistributedLock", "RedisLock"} <= set(dir(cuelight))
    assert not _loaded("import cuelight\nfrom cuelight import *\ndir(cuelight)").intersection(EXTRAS)
    assert "redis" in _loaded("from cuelight import RedisLock")
    from cuelight import DistributedLock, RedisLock
    from cuelight.redis import RedisLock as Original

    assert RedisLock is Original
    assert DistributedLock is Original
    assert vars(cuelight)["RedisLock"] is Original, "it is looked for once"


def test_each_name_of_the_root_is_that_of_one_package() -> None:
    """Every package but the root exports all of its names; the root has those that an ordinary program needs."""
    packages = ("actors", "mailbox", "supervision", "pools", "tasks", "coordination", "errors")
    exported = {name: importlib.import_module(f"cuelight.{name}") for name in packages}
    names = set(cuelight.__all__) - {"__version__"}
    assert len(names) <= 105
    for name in names:
        homes = {id(getattr(package, name)) for package in exported.values() if hasattr(package, name)}
        assert homes == {id(getattr(cuelight, name))}, name


def test_a_name_that_the_root_does_not_have_is_no_attribute() -> None:
    assert not hasattr(cuelight, "RedisLocks")
    with pytest.raises(AttributeError, match="module 'cuelight' has no attribute 'Nothing'"):
        _ = cuelight.Nothing  # type: ignore[attr-defined]  # pyright: ignore
