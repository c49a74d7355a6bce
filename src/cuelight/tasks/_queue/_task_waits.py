"""Tasks that wait for other tasks: they give up their slot in the meantime, and are in the graph of waits.

Invariants:

1. A task that waits for the result of another task uses no slot of its worker, so that the worker can run the other
   one. When it continues, it uses a slot again. While more tasks run than there are slots, the worker starts no new
   ones.
2. A task or an actor's handler that would wait for itself, directly or through others, gets `DeadlockError` instead.
3. When a wait ends, normally or not, it leaves no state behind.
"""

# Nodes are asyncio tasks, trio tasks, threads and cells, so no annotation is more precise.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Protocol
from uuid import UUID

import anyio

from cuelight.actors import current_cell, find_cycle, format_cycle, name_of, waits_by_node
from cuelight.coordination._lock_waiting import awaited_work, monitor
from cuelight.coordination._owner import current_owner, this_thread
from cuelight.errors import DeadlockError
from cuelight.mailbox import coroutine_of
from cuelight.tasks._context import running_task

if TYPE_CHECKING:
    from cuelight.tasks._context import TaskContext
    from cuelight.tasks._stores._protocol import Store

awaited_work.append(running_task.get)


class LocalRunner(Protocol):
    """An object that runs tasks in this process."""

    store: Store

    def node_of(self, task_id: str) -> Any:
        """The async task or the thread that runs a task here, or None. May be called from any thread."""
        ...


local_runners: Final[dict[LocalRunner, None]] = {}
"""All objects that currently run tasks in this process."""

blocking_thread: ContextVar[Any] = ContextVar("cuelight_blocking_thread", default=None)
"""The thread that waits for the running code, if that code serves a blocking call from another thread."""


class ResultWait:
    """A wait for a task, in the graph of waits."""

    __slots__ = ("_store", "_task_id", "thing")

    def __init__(self, store: Store, task_id: str, name: str) -> None:
        self._task_id = task_id
        # A random identifier means the same task in every store object; other identifiers may be in several queues.
        self._store = None if _is_random(task_id) else store
        self.thing = f"the result of {name or 'the task'} ({task_id})"

    def blockers(self) -> Iterable[Any]:
        """The node that runs the task in this process; empty before it runs, or if another process runs it."""
        found = [run.node_of(self._task_id) for run in tuple(local_runners) if self._store in {None, run.store}]
        return [node for node in found if node is not None]


def is_nested() -> bool:
    """Whether the running code belongs to a worker's task or to an actor's handler."""
    return running_task.get() is not None or current_cell.get() is not None


@contextmanager
def waiting_for_task(store: Store, task_id: str, name: str) -> Generator[None]:
    """Wait for a task inside the block, on behalf of the running task or handler.

    Raises:
        DeadlockError: the task or handler would wait for itself.
    """
    context = running_task.get()
    wait, nodes = ResultWait(store, task_id, name), _nodes(context)
    try:
        with monitor:
            for node in nodes:
                waits_by_node.setdefault(node, []).append(wait)
            way = find_cycle(nodes, [(blocker, wait.thing) for blocker in wait.blockers()])
            if way is not None:
                circle = format_cycle(nodes, way)
                raise DeadlockError(
                    f"{name_of(nodes[0])} waits for {wait.thing} and would wait forever, because each waits for the "
                    f"next: {circle}. Return, and let another task wait for both; or release the locks that it holds "
                    f"first"
                )
        with slot_released(context):
            yield
    finally:
        with monitor:
            for node in nodes:
                waits = waits_by_node.get(node, [])
                if wait in waits:
                    waits.remove(wait)
                if not waits:
                    waits_by_node.pop(node, None)


@contextmanager
def slot_released(context: TaskContext | None) -> Generator[None]:
    """Free the slot of the running task inside the block.

    Raises:
        DeadlockError: too many tasks of the worker wait already.
    """
    if context is None or not context.suspend():
        yield
        return
    try:
        yield
    finally:
        context.resume()


def _nodes(context: TaskContext | None) -> list[Any]:
    """The nodes that this wait blocks: the running task, and the worker's task or the actor that waits for it."""
    thread = blocking_thread.get()
    if thread is not None:
        return [thread]
    nodes = [current_owner()]
    node = None if context is None else context.node
    if node is not None and node not in nodes and (node is this_thread.owner or _waits_for_me(coroutine_of(node))):
        nodes.append(node)
    cell = current_cell.get()
    is_new = cell is not None and cell not in nodes and cell.waits_in_asks()
    if is_new and _waits_for_me(getattr(cell, "coroutine", None)):
        nodes.append(cell)
    return nodes


def _waits_for_me(coroutine: Any) -> bool:
    """Whether a coroutine belongs to the running task, or to one that waits for it in a task group, at any depth."""
    if coroutine is None:
        return False
    tasks = {task.id: task for task in anyio.get_running_tasks()}
    task: anyio.TaskInfo | None = anyio.get_current_task()
    while task is not None and task.coro is not coroutine:
        task = tasks.get(task.parent_id) if task.parent_id is not None else None
    return task is not None


def _is_random(task_id: str) -> bool:
    try:
        return UUID(task_id).version == 4
    except ValueError:
        return False
