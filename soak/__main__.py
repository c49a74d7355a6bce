"""The command: `python -m soak`, or `make soak`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields

from soak._options import Options
from soak._run import Verdict, soak


def _options() -> Options:
    parser = argparse.ArgumentParser(prog="python -m soak", description="Run everything for a while; nothing may leak.")
    defaults = Options()
    for field in fields(Options):
        default: object = getattr(defaults, field.name)
        if isinstance(default, bool):
            parser.add_argument(f"--{field.name}", action=argparse.BooleanOptionalAction, default=default)
        elif isinstance(default, int | float | str):
            parser.add_argument(f"--{field.name}", type=type(default), default=default)
    return Options(**vars(parser.parse_args()))


def _table(verdict: Verdict) -> str:
    rows: list[tuple[str, object, object]] = [
        ("rounds of " + name, "", times) for name, times in verdict.rounds.items()
    ]
    before, after = vars(verdict.before), vars(verdict.after)
    rows += [(name, before[name], after[name]) for name in before if name != "kept"]
    rows += [(name, before["kept"].get(name, 0), most) for name, most in after["kept"].items()]
    text = "\n".join(f"{what:<32} {_shown(was):>14} {_shown(now):>14}" for what, was, now in rows)
    errors = [f"{times} times {error}" for error, times in verdict.errors.most_common()]
    excesses = [
        f"{one.what}: {one.before:g} before, {one.after:g} after, {one.most:g} at most" for one in verdict.excesses
    ]
    return "\n".join([text, *errors, *excesses, "passed" if verdict.passed else "FAILED"])


def _shown(value: object) -> str:
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    verdict = soak(_options())
    print(_table(verdict))
    sys.exit(0 if verdict.passed else 1)
