"""Lua scripts: their text and the hash by which a server identifies them."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import Final


class Script:
    """A Lua script.

    A changed text is another script with another hash, so workers of different versions never run each other's scripts.

    Attributes:
        text: the source text, encoded.
        sha: the hash for EVALSHA.
        name: the name for messages.
    """

    __slots__ = ("name", "sha", "text")

    def __init__(self, text: str, name: str = "script") -> None:
        """Create a script from its text.

        Args:
            text: the Lua source.
            name: the name for messages.
        """
        self.text: Final = text.encode()
        self.sha: Final = hashlib.sha1(self.text, usedforsecurity=False).hexdigest().encode()
        self.name: Final = name

    def __repr__(self) -> str:
        return f"Script({self.name!r}, {self.sha.decode()[:8]})"

    @classmethod
    def load(cls, package: str, *names: str) -> Script:
        """Read a script from files of a package. Several files are concatenated; the last one gives the name.

        Args:
            package: the package, such as "cuelight.redis._locks".
            names: the names of the files, such as "lease.lua".
        """
        text = "\n".join(files(package).joinpath(name).read_text("utf-8") for name in names)
        return cls(text, names[-1].removesuffix(".lua"))
