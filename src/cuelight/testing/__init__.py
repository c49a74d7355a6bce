"""Tools to test programs that use Cuelight, on asyncio and on trio."""

from cuelight.testing._clock import VIRTUAL_BACKENDS, VirtualClockLoop, real_time, virtual_backend
from cuelight.testing._faults import InjectedCrash, assert_no_orphans, crash_once, wait_until_idle
from cuelight.testing._probe import Probe

__all__ = [
    "InjectedCrash",
    "Probe",
    "VIRTUAL_BACKENDS",
    "VirtualClockLoop",
    "assert_no_orphans",
    "crash_once",
    "real_time",
    "virtual_backend",
    "wait_until_idle",
]
