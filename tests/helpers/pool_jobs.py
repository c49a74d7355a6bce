"""What pools run in threads and processes in their tests. Imports little: every new process imports it."""

import os
import time


def double(number: int) -> int:
    return 2 * number


def odd_only(number: int) -> int:
    if number % 2 == 0:
        raise ValueError(f"{number} is even")
    return number


def die_at(number: int, *, at: int, log: str) -> int:
    with open(log, "a", encoding="utf-8") as file:
        file.write(f"{number}\n")
    if number == at:
        os._exit(7)
    return number


def stuck_once(log: str) -> int:
    """The first time it waits to be killed, and says who it is; the second time it says who was killed."""
    try:
        with open(log, encoding="utf-8") as file:
            return int(file.read())
    except FileNotFoundError:
        with open(f"{log}.new", "w", encoding="utf-8") as file:
            file.write(str(os.getpid()))
        os.replace(f"{log}.new", log)
        time.sleep(100)
        raise


def leave(number: int) -> None:
    raise SystemExit(number)
