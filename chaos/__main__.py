"""The command: `python -m chaos`, or `make chaos`."""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import fields

from chaos._options import Options
from chaos._run import storm
from chaos._verdict import Verdict


def _options() -> Options:
    parser = argparse.ArgumentParser(
        prog="python -m chaos",
        description="Kill, freeze and cut off workers, producers and servers; count what was lost.",
    )
    defaults = Options()
    for field in fields(Options):
        default: object = getattr(defaults, field.name)
        if isinstance(default, int | float | str):
            parser.add_argument(f"--{field.name}", type=type(default), default=default)
    return Options(**vars(parser.parse_args()))


def _table(verdict: Verdict, options: Options) -> str:
    recoveries = sorted(verdict.recoveries)
    rows: list[tuple[str, object]] = [
        ("tasks given and acknowledged", verdict.given),
        ("  completed", verdict.completed),
        ("  in the dead letter queue", verdict.dead),
        ("  lost", len(verdict.lost)),
        ("completions accepted twice", len(verdict.accepted_twice)),
        ("forgotten by the server itself", len(verdict.forgotten)),
        ("completions of zombies refused", verdict.refused),
        ("attempts", verdict.executions),
        ("  beyond the first of a task", verdict.repeated),
        *((f"faults: {kind}", times) for kind, times in sorted(verdict.faults.items())),
        ("workers that ended by themselves", len(verdict.exited)),
        ("workers that took no work any more", len(verdict.deaf)),
        ("attempts under way in killed workers", len(recoveries)),
    ]
    if recoveries:
        rows += [
            (f"  run again after (lease {options.lease:g} s), median", f"{statistics.median(recoveries):.1f} s"),
            ("  at most", f"{recoveries[-1]:.1f} s"),
        ]
    return "\n".join(f"{what:<52} {value!s:>10}" for what, value in rows)


def _storm_of_locks(options: Options) -> int:
    from chaos._lock_run import lock_storm  # noqa: PLC0415 - a queue in a file needs none of it

    verdict = lock_storm(options, print)
    for name, value in vars(verdict).items():
        print(f"{name.replace('_', ' '):<20} {dict(sorted(value.items())) if name == 'faults' else value}")
    print("passed" if verdict.passed else "FAILED")
    return 0 if verdict.passed else 1


def main() -> int:
    options = _options()
    if options.what == "locks":
        return _storm_of_locks(options)
    if options.what != "tasks":
        raise SystemExit(f"--what {options.what}: give tasks or locks")
    verdict = storm(options, print)
    print(_table(verdict, options))
    failed = f"lost {verdict.lost[:5]}, accepted twice {verdict.accepted_twice[:5]}, "
    failed += f"exited {verdict.exited}, deaf {verdict.deaf}"
    print("passed" if verdict.passed else f"FAILED: {failed}")
    return 0 if verdict.passed else 1


if __name__ == "__main__":
    sys.exit(main())
