"""The documented features of `WorkerPool`, for `python -m unittest tests.test_concurrency -v`."""

# ruff: noqa: PT009, PT027 - this module is for unittest

from __future__ import annotations

import logging
import threading
import unittest

from cuelight import TaskResult, TaskStatus, WorkerPool, WorkerPoolConfig

PATIENCE = 30.0


def config(workers: int = 4, retries: int = 0, backoff: float = 0.001) -> WorkerPoolConfig:
    return WorkerPoolConfig(max_workers=workers, max_retries=retries, backoff_base_seconds=backoff)


def double(number: int) -> int:
    return 2 * number


class Flaky:
    """Fails so many times, and then does not."""

    def __init__(self, failures: int) -> None:
        self.left = failures

    def __call__(self) -> str:
        self.left -= 1
        if self.left >= 0:
            raise ConnectionError("the line is down")
        return "answered"


class Gate:
    """Holds up the tasks that call it."""

    def __init__(self) -> None:
        self.begun, self.opened = threading.Semaphore(0), threading.Event()

    def __call__(self) -> None:
        self.begun.release()
        self.opened.wait(PATIENCE)


class ConcurrencyTest(unittest.TestCase):
    def setUp(self) -> None:
        logger = logging.getLogger("cuelight")
        self.addCleanup(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL)

    def result_of(self, pool: WorkerPool, task_id: str) -> TaskResult[object]:
        return pool.get_task_result(task_id, timeout=PATIENCE)


class TestSubmission(ConcurrencyTest):
    def test_a_task_returns_its_result(self) -> None:
        with WorkerPool(config()) as pool:
            task_id = pool.submit_task(task_name="double", task_fn=double, args=(5,))
            result = self.result_of(pool, task_id)
        self.assertTrue(result.success)
        self.assertEqual((result.task_id, result.task_name, result.result), (task_id, "double", 10))
        self.assertIsNone(result.error)

    def test_keyword_arguments_are_passed(self) -> None:
        with WorkerPool(config()) as pool:
            self.assertEqual(self.result_of(pool, pool.submit_task("power", pow, (2,), {"exp": 5})).result, 32)

    def test_an_error_is_a_result(self) -> None:
        with WorkerPool(config()) as pool:
            result = self.result_of(pool, pool.submit_task("number", int, ("seven",)))
        self.assertFalse(result.success)
        self.assertIsInstance(result.error, ValueError)
        with self.assertRaises(ValueError):
            result.unwrap()

    def test_a_closed_pool_takes_no_tasks(self) -> None:
        with WorkerPool(config()) as pool:
            pass
        with self.assertRaises(RuntimeError):
            pool.submit_task("late", len, ("",))


class TestParallelTasks(ConcurrencyTest):
    def test_tasks_run_at_the_same_time(self) -> None:
        together = threading.Barrier(4)
        with WorkerPool(config(workers=4)) as pool:
            for number in range(4):
                pool.submit_task(f"task {number}", together.wait, (PATIENCE,))
            self.assertTrue(all(result.success for result in pool.wait_for_all(timeout=PATIENCE)))

    def test_no_more_than_max_workers_run(self) -> None:
        gate = Gate()
        with WorkerPool(config(workers=3)) as pool:
            for _ in range(10):
                pool.submit_task("gate", gate)
            for _ in range(3):
                self.assertTrue(gate.begun.acquire(timeout=PATIENCE))
            self.assertEqual(pool.get_summary_metrics()["running"], 3)
            self.assertEqual(pool.get_summary_metrics()["pending"], 7)
            gate.opened.set()


class TestRetries(ConcurrencyTest):
    def test_a_task_is_tried_again(self) -> None:
        with WorkerPool(config(retries=3)) as pool:
            result = self.result_of(pool, pool.submit_task("flaky", Flaky(2)))
        self.assertEqual(result.result, "answered")
        assert result.metrics is not None
        self.assertEqual(result.metrics.retries_used, 2)

    def test_a_task_is_given_up(self) -> None:
        with WorkerPool(config(retries=2)) as pool:
            result = self.result_of(pool, pool.submit_task("flaky", Flaky(9)))
            self.assertIsInstance(result.error, ConnectionError)
            self.assertEqual(pool.get_summary_metrics()["total_retries"], 2)
            with pool.dead_letters as letters:
                self.assertEqual([letter.payload.name for letter in letters], ["flaky"])

    def test_a_task_waits_before_it_is_tried_again(self) -> None:
        with WorkerPool(config(retries=1, backoff=3600)) as pool:
            task_id = pool.submit_task("flaky", Flaky(1))
            with self.assertRaises(TimeoutError):
                pool.get_task_result(task_id, timeout=0.05)
            pool.abort_pending_tasks()
            self.assertEqual(pool.get_metrics()[task_id].status, TaskStatus.CANCELLED)


class TestAborting(ConcurrencyTest):
    def test_pending_tasks_are_cancelled_and_running_ones_go_on(self) -> None:
        gate = Gate()
        with WorkerPool(config(workers=1)) as pool:
            running = pool.submit_task("gate", gate)
            self.assertTrue(gate.begun.acquire(timeout=PATIENCE))
            for number in range(20):
                pool.submit_task(f"task {number}", len, ("",))
            self.assertEqual(pool.abort_pending_tasks(), 20)
            gate.opened.set()
            self.assertTrue(self.result_of(pool, running).success)
            self.assertEqual(pool.get_summary_metrics()["cancelled"], 20)


class TestThreadSafety(ConcurrencyTest):
    def test_many_threads_may_submit_and_wait(self) -> None:
        found: list[int] = []

        def use(pool: WorkerPool, first: int) -> None:
            ids = [pool.submit_task("square", pow, (number, 2)) for number in range(first, first + 50)]
            found.extend(pool.get_task_result(task_id, timeout=PATIENCE).unwrap() for task_id in ids)

        with WorkerPool(config(workers=8)) as pool:
            threads = [threading.Thread(target=use, args=(pool, first)) for first in range(0, 400, 50)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual(sorted(found), [number**2 for number in range(400)])
            self.assertEqual(pool.get_summary_metrics()["completed"], 400)


class TestDeterminism(ConcurrencyTest):
    def test_results_come_in_the_order_of_submission(self) -> None:
        for _ in range(3):
            with WorkerPool(config(workers=8)) as pool:
                for number in range(100):
                    pool.submit_task(f"{number}", abs, (-number,))
                results = pool.wait_for_all(timeout=PATIENCE)
            self.assertEqual([result.result for result in results], list(range(100)))

    def test_tasks_begin_in_the_order_of_submission(self) -> None:
        begun: list[int] = []
        with WorkerPool(config(workers=1)) as pool:
            for number in range(50):
                pool.submit_task(f"{number}", begun.append, (number,))
        self.assertEqual(begun, list(range(50)))


class TestMetrics(ConcurrencyTest):
    def test_each_task_is_measured(self) -> None:
        with WorkerPool(config()) as pool:
            good, bad = pool.submit_task("good", len, ("",)), pool.submit_task("bad", int, ("x",))
            pool.wait_for_all(timeout=PATIENCE)
            metrics = pool.get_metrics()
        self.assertEqual(list(metrics), [good, bad])
        self.assertEqual((metrics[good].task_name, metrics[good].status), ("good", TaskStatus.COMPLETED))
        self.assertEqual(metrics[bad].status, TaskStatus.FAILED)
        self.assertIn("ValueError", metrics[bad].error_message or "")
        self.assertGreaterEqual(metrics[good].execution_time_ms, 0)

    def test_the_summary_counts(self) -> None:
        with WorkerPool(config()) as pool:
            for word in ("1", "2", "three", "4"):
                pool.submit_task("number", int, (word,))
            pool.wait_for_all(timeout=PATIENCE)
            summary = pool.get_summary_metrics()
        self.assertEqual((summary["total_tasks"], summary["completed"], summary["failed"]), (4, 3, 1))
        self.assertEqual(summary["success_rate"], 0.75)


if __name__ == "__main__":
    unittest.main()
