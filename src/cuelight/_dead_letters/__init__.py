"""The dead letter queue, and the sources of its letters."""
