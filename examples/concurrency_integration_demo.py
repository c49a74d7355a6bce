"""An orchestrator that asks 300 questions, first with a `ThreadPoolExecutor` and then with a `WorkerPool`.

The pool keeps the order of submission, retries failures, limits the time of each task, counts, and keeps the tasks that
failed for good. Run it with `python examples/concurrency_integration_demo.py`.
"""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from cuelight import Rejected, TaskResult, WorkerPool, WorkerPoolConfig

QUESTIONS = range(1, 301)
UNANSWERABLE = 13

Document = dict[str, Any]


class Service:
    """A service that is busy the first time that it is asked each seventh question."""

    def __init__(self) -> None:
        self._asked: set[int] = set()
        self._lock = threading.Lock()

    def ask(self, question: int, document: Document) -> str:
        with self._lock:
            is_new = question not in self._asked
            self._asked.add(question)
        if question == UNANSWERABLE:
            raise Rejected("nobody knows")  # another attempt makes no sense
        if question % 7 == 0 and is_new:
            raise ConnectionError("the service is busy")
        return f"{question} of {document['title']}"


def orchestrate_with_an_executor(service: Service, document: Document) -> dict[int, str]:
    """The old code: results come in the order of completion, there is no retry, and the caller must handle the
    errors.
    """
    answers: dict[int, str] = {}
    with ThreadPoolExecutor(max_workers=50) as executor:
        futures = {executor.submit(service.ask, question, document): question for question in QUESTIONS}
        for future in as_completed(futures):
            try:
                answers[futures[future]] = future.result()
            except Exception:  # the old code has no answer to this
                pass
    return answers


def orchestrate_with_a_pool(service: Service, document: Document) -> list[TaskResult[str]]:
    """The new code: the same structure, and every failure is reported."""
    config = WorkerPoolConfig(max_workers=50, max_retries=3, task_timeout_seconds=30, backoff_base_seconds=0.01)
    with WorkerPool(config) as pool:
        for question in QUESTIONS:
            pool.submit_task(task_name=f"Q{question:03d}", task_fn=service.ask, args=(question, document))
        results = pool.wait_for_all(timeout=60)

        summary = pool.get_summary_metrics()
        print(f"    completed {summary['completed']}, failed {summary['failed']}, retries {summary['total_retries']}")
        print(f"    success rate {summary['success_rate']:.1%}")
        tried_again = [metrics.task_name for metrics in pool.get_metrics().values() if metrics.retries_used]
        print(f"    tried again: {', '.join(tried_again[:3])} and {len(tried_again) - 3} others")
        with pool.dead_letters as letters:
            for letter in letters:
                print(f"    kept for later: {letter.payload.name}, {letter.error}")
    return results


def main() -> None:
    logging.getLogger("cuelight").setLevel(logging.CRITICAL)  # hide the log of failures
    document = {"title": "the plan"}

    print("With ThreadPoolExecutor:")
    answers = orchestrate_with_an_executor(Service(), document)
    print(f"    {len(answers)} answers to {len(QUESTIONS)} questions")

    print("With WorkerPool:")
    results = orchestrate_with_a_pool(Service(), document)
    names = [result.task_name for result in results]
    print(f"    in the order of submission: {names == sorted(names)}, from {names[0]} to {names[-1]}")


if __name__ == "__main__":
    main()
