"""Tools for testing programs that are built on Cuelight, on asyncio and on trio."""

from cuelight.testing._clock import VIRTUAL_BACKENDS, VirtualClockLoop, real_time, virtual_backend

__all__ = ["VIRTUAL_BACKENDS", "VirtualClockLoop", "real_time", "virtual_backend"]
