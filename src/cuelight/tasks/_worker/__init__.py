"""The worker: its loop, the exchange with the store, and the attempts."""
