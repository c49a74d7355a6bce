"""The web server: what each side sees when a signal ends it, in the order in which it is promised."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent.parent.parent / "examples" / "web_server.py"

CLIENTS = """\
Ben hears: hello, Ben
Ben hears: message 1 was: stand by
Ben hears: goodbye
Ben sees the end: 1011, an error
Ann hears: hello, Ann
Eve hears: hello, Eve
Ann hears: message 1 was: stand by
Ann hears: message 2 was: go
Eve hears: message 1 was: stand by
Ann hears: goodbye
Ann sees the end: 1012, a restart
Eve hears: goodbye
Eve sees the end: 1012, a restart
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_sessions_before_the_server(number: signal.Signals) -> None:
    command = [sys.executable, "-W", "error", str(PROGRAM), "--signal", number.name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    server, _, clients = done.stdout.partition("the system has ended. What the clients saw:\n")
    assert clients == CLIENTS
    lines = server.splitlines()
    assert lines[:4] == [
        "Ben: connected",
        "Ben: ended after 1 messages: crashed: RuntimeError: this is a fault of the program",
        "Ann: connected",
        "Eve: connected",
    ]
    # Sessions end together, so either may be the first.
    assert sorted(lines[4:6]) == ["Ann: ended after 2 messages: shut down", "Eve: ended after 1 messages: shut down"]
    assert lines[6:] == ["server: ended"]
