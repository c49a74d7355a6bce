"""Benchmarks: Cuelight beside its peers, in one process and one run. `python -m bench --help` says how."""
