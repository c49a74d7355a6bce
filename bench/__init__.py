"""Benchmarks: Cuelight and its peers, in one process and one run. `python -m bench --help` lists the options."""
