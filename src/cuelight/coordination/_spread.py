"""Random numbers that spread attempts over time, from a separate generator.

The generator of the `random` module belongs to the program: drawing from it would change sequences that the program has
seeded.
"""

from __future__ import annotations

import os
import random
from typing import Final

spread: Final = random.Random()  # noqa: S311 - not used for secrets

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=spread.seed)
