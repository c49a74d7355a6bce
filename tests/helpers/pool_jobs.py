"""What pools run in threads and processes in their tests. Imports little: every new process imports it."""

import os


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


def leave(number: int) -> None:
    raise SystemExit(number)
