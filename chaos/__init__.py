"""Chaos: real processes on one durable queue, killed and frozen at random, and what became of every task."""
