"""A long mixed run in one process, with checks that nothing leaks."""

from soak._balance import Balance, Excess, excesses
from soak._options import Options
from soak._run import Verdict, soak

__all__ = ["Balance", "Excess", "Options", "Verdict", "excesses", "soak"]
