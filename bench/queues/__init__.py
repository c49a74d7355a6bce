"""Programs of the measured queues. `python -m bench.queues` runs each in its own environment."""
