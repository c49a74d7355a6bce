"""Random numbers that spread attempts out, from a generator of their own.

The one of the `random` module is the program's: what it has seeded, nobody else may draw from.
"""

from __future__ import annotations

import os
import random
from typing import Final

__all__ = ["spread"]

spread: Final = random.Random()  # noqa: S311 - nothing here is a secret

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=spread.seed)
