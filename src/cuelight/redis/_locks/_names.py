"""The names of keys and channels on the server, and the name of this process there."""

from __future__ import annotations

import os
import re
import secrets
import socket
from typing import Final

from cuelight._text import safe_repr
from cuelight.tasks._stores._checks import check_text

LONGEST: Final = 512
"""The largest length of a name. Longer texts are most likely data that was passed by mistake."""


class Names:
    """The keys and channels of one lock. All have one hash tag, so a cluster keeps them in one slot."""

    __slots__ = ("channels", "keys", "tag")

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self.keys: tuple[str, ...] = tuple(f"{{{tag}}}:{part}" for part in ("state", "held", "line", "members", "gone"))
        self.channels = f"{{{tag}}}:to:"


def names_of(prefix: str, kind: str, name: str) -> Names:
    """Return the keys of a lock.

    Args:
        prefix: separates the keys of one application from others on the same server.
        kind: the kind of lock.
        name: the user's name for the lock. Braces are escaped, because they would end the hash tag.

    Raises:
        TypeError: the name or the prefix is not a str.
        ValueError: it is empty, too long or not Unicode text.
    """
    for what, text in {"name": name, "prefix": prefix}.items():
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"{what}={safe_repr(text)}: the {what} of a lock is a str")
        if not 0 < len(text) <= LONGEST:
            raise ValueError(f"{what}={text[:40]!r}: give 1 to {LONGEST} characters, not {len(text)}")
        check_text("a lock", **{what: text})
    return Names(f"{_escaped(prefix).replace(':', '%3A')}:{kind}:{_escaped(name)}")


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("{", "%7B").replace("}", "%7D")


_name = ""


def client_name() -> str:
    """The name of this process on the server: host, process identifier and a random part that makes it unique."""
    global _name  # noqa: PLW0603 - a child of a fork is another process
    if not _name:
        host = re.sub("[^A-Za-z0-9_-]", "-", socket.gethostname().partition(".")[0])[:24] or "host"
        _name = f"{host}.{os.getpid()}.{secrets.token_hex(4)}"
    return _name


def _forget() -> None:
    global _name  # noqa: PLW0603
    _name = ""


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def describe_member(member: str) -> str:
    """Describe a member of the script in words."""
    client = member.partition("/")[0]
    host, _, rest = client.partition(".")
    return f"process {rest.partition('.')[0]} on {host}" if rest else "another process"
