"""The dead letters of an async pool."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cuelight.pools._crew import Crew
    from cuelight.pools._dead_letters import DeadLetterBox, DeadLetterQueue, FailedCall
    from cuelight.pools._submission import Submission


class PoolLetters:
    """The methods of an async pool for tasks that have failed for good."""

    name: str
    _letters: DeadLetterBox

    if TYPE_CHECKING:
        submit: Callable[..., Submission[Any]]

        @property
        def crew(self) -> Crew | None: ...

    @property
    def dead_letters(self) -> DeadLetterQueue:
        """The tasks that have failed for good, with their errors, to inspect, edit, replay and purge.

        `replay` submits a task again. Call it in the event loop of the pool.
        """
        return self._letters.queue

    def submit_again(self, call: FailedCall, task_id: str) -> Submission[Any] | None:
        """Submit the task of a dead letter again, as `DeadLetterQueue.replay` does.

        Args:
            call: the payload of the dead letter.
            task_id: the identifier of the task.

        Returns:
            A submission that runs only while it is awaited; None if the task runs anyway.

        Raises:
            RuntimeError: this is not the event loop of the pool.
        """
        crew = self.crew
        if crew is not None and crew.thread != get_ident():
            raise crew.wrong_thread()
        function = partial(call.function, *call.args, **call.kwargs) if call.kwargs else call.function
        args = () if call.kwargs else call.args
        task = self.submit(function, *args, task_id=task_id, priority=call.priority, timeout=call.timeout)
        return task if crew is None else None
