"""The command: `python -m chaos`, or `make chaos`."""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import fields

from chaos._run import Options, storm
from chaos._verdict import Verdict


def _options() -> Options:
    parser = argparse.ArgumentParser(
        prog="python -m chaos",
        description="Kill and freeze workers and producers of a durable queue; count the losses.",
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


def main() -> int:
    options = _options()
    verdict = storm(options, print)
    print(_table(verdict, options))
    failed = f"lost {verdict.lost[:5]}, accepted twice {verdict.accepted_twice[:5]}, "
    failed += f"exited {verdict.exited}, deaf {verdict.deaf}"
    print("passed" if verdict.passed else f"FAILED: {failed}")
    return 0 if verdict.passed else 1


if __name__ == "__main__":
    sys.exit(main())
