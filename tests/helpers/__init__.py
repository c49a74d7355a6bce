"""Helpers for tests. `pythonpath` in pyproject.toml makes this package importable as `helpers`."""

from helpers._backends import BACKENDS, Backend, run_on
from helpers._rejected import misjudged

__all__ = ["BACKENDS", "Backend", "misjudged", "run_on"]
