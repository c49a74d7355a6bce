"""Lua scripts: their text and the name by which a server knows them."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import Final

__all__ = ["Script"]


class Script:
    """A Lua script.

    A change of its text is another script with another name, so that workers of two versions never run each other's.

    Attributes:
        text: the whole of it.
        sha: what EVALSHA calls it.
        name: for messages.
    """

    __slots__ = ("name", "sha", "text")

    def __init__(self, text: str, name: str = "script") -> None:
        """Make one of its text.

        Args:
            text: Lua.
            name: for messages.
        """
        self.text: Final = text.encode()
        self.sha: Final = hashlib.sha1(self.text, usedforsecurity=False).hexdigest().encode()
        self.name: Final = name

    def __repr__(self) -> str:
        return f"Script({self.name!r}, {self.sha.decode()[:8]})"

    @classmethod
    def load(cls, package: str, *names: str) -> Script:
        """Read it from files of a package; several are put behind each other, the last gives the name.

        Args:
            package: such as "cuelight.redis._locks".
            names: of its files, such as "lease.lua".
        """
        text = "\n".join(files(package).joinpath(name).read_text("utf-8") for name in names)
        return cls(text, names[-1].removesuffix(".lua"))
