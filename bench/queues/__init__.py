"""Programs of the queues that are measured, each to be run by `python -m bench.queues` in an environment of its own."""
