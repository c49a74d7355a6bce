"""Chaos: real processes on one durable queue, killed and frozen at random, and what became of every task."""

from chaos._ledger import Event
from chaos._run import Options, storm
from chaos._verdict import Fault, Verdict, judge

__all__ = ["Event", "Fault", "Options", "Verdict", "judge", "storm"]
