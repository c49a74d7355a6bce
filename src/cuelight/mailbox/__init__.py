"""Channels between tasks, `select` over them, and overflow policies.

A `Channel` is a FIFO with back-pressure. `select` waits for several channels, timers or other cases and takes exactly
one. An overflow policy decides which item is dropped when a channel or a mailbox is full, or that the sender waits or
fails.
"""

from cuelight.mailbox._backend import (
    Backend,
    Slot,
    Waiter,
    await_until,
    current_backend,
    loop_time,
    new_slot,
    swap_current_task,
)
from cuelight.mailbox._case import CLOSED, NOT_READY, Case, CaseWaiter, NoItem, NotNow
from cuelight.mailbox._channel import Channel, Permit, Receiver, SendCase, Sender
from cuelight.mailbox._channel_core import ChannelStatistics
from cuelight.mailbox._groups import TaskGroup
from cuelight.mailbox._interrupts import hold_interrupts, interruptible, run_interruptible
from cuelight.mailbox._mailbox import Mailbox, WaitingSender
from cuelight.mailbox._overflow import Overflow, checked_overflow, coalesce, drop_newest, drop_oldest, fail, wait
from cuelight.mailbox._select import merge, seed_select, select, select_nowait
from cuelight.mailbox._task_info import (
    asyncio_task,
    awaited_by,
    call_in_loop,
    coroutine_of,
    drivers,
    frame_of,
    has_ended,
    in_trio_task,
    loop_of,
    running_loop,
    running_task,
    source_location,
    when_task_ends,
)
from cuelight.mailbox._thread_channel import ThreadEnd
from cuelight.mailbox._timers import Ticker, Timer, after, every

__all__ = [
    "Backend",
    "CLOSED",
    "Case",
    "CaseWaiter",
    "Channel",
    "ChannelStatistics",
    "Mailbox",
    "NOT_READY",
    "NoItem",
    "NotNow",
    "Overflow",
    "Permit",
    "Receiver",
    "SendCase",
    "Sender",
    "Slot",
    "TaskGroup",
    "ThreadEnd",
    "Ticker",
    "Timer",
    "Waiter",
    "WaitingSender",
    "after",
    "asyncio_task",
    "await_until",
    "awaited_by",
    "call_in_loop",
    "checked_overflow",
    "coalesce",
    "coroutine_of",
    "current_backend",
    "drivers",
    "drop_newest",
    "drop_oldest",
    "every",
    "fail",
    "frame_of",
    "has_ended",
    "hold_interrupts",
    "in_trio_task",
    "interruptible",
    "loop_of",
    "loop_time",
    "merge",
    "new_slot",
    "run_interruptible",
    "running_loop",
    "running_task",
    "seed_select",
    "select",
    "select_nowait",
    "source_location",
    "swap_current_task",
    "wait",
    "when_task_ends",
]
