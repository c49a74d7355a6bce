"""Helpers for tests. `pythonpath` in pyproject.toml makes this package importable as `helpers`."""

from helpers._backends import BACKENDS, Backend, run_on

__all__ = ["BACKENDS", "Backend", "run_on"]
