"""The task queue: its handle, the session behind it, handles of tasks, and schedules."""
