"""Stores of tasks: their interface, their rules, and the stores in memory and on SQLite."""
