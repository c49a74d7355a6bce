"""A long mixed run in one process, with balances that must come out: what is done must not leave anything behind."""

from soak._balance import Balance, Excess, excesses
from soak._options import Options
from soak._run import Verdict, soak

__all__ = ["Balance", "Excess", "Options", "Verdict", "excesses", "soak"]
