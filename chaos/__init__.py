"""Chaos: real processes on one queue or one lock are killed, frozen and cut off at random; losses are counted."""

from chaos._ledger import Event
from chaos._options import Options
from chaos._run import storm
from chaos._verdict import Fault, Trouble, Verdict, judge

__all__ = ["Event", "Fault", "Options", "Trouble", "Verdict", "judge", "storm"]
