"""An actor-model message-passing runtime for asyncio and trio."""

__version__ = "0.1.0"
