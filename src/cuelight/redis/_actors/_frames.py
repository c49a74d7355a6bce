"""What travels between nodes: small arrays, many of them in one batch, and the words for how actors and asks end.

A batch is a msgpack array of frames. Serials are those of the actor's own system, numbers those of the asking node.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

__all__ = [
    "Ask",
    "Batch",
    "Cancel",
    "Chunk",
    "Credit",
    "Ended",
    "FORMAT",
    "Fail",
    "Frame",
    "Link",
    "More",
    "Open",
    "Reply",
    "Signal",
    "Tell",
    "Up",
    "Watch",
    "batch_of",
    "frames_of",
]

FORMAT: Final = 1
"""Of frames and of the keys in the server. Another number is refused, never guessed at."""


class Frame(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One step of a conversation between two nodes."""


class Tell(Frame, frozen=True, tag=1):
    """A message for an actor."""

    to: int
    kind: str
    body: bytes


class Ask(Frame, frozen=True, tag=2):
    """A request. `left`: seconds that its handler may take, None without limit."""

    to: int
    number: int
    kind: str
    body: bytes
    left: float | None


class Open(Frame, frozen=True, tag=3):
    """A request that is answered with a stream."""

    to: int
    number: int
    kind: str
    body: bytes


class Reply(Frame, frozen=True, tag=4):
    """The answer; for a stream its end."""

    number: int
    body: bytes


class Fail(Frame, frozen=True, tag=5):
    """No answer: the class of the error, its text, and the class and text of what caused it."""

    number: int
    error: str
    text: str
    cause: tuple[str, str] | None = None


class Chunk(Frame, frozen=True, tag=6):
    """One chunk of a stream."""

    number: int
    body: bytes


class More(Frame, frozen=True, tag=7):
    """The reader of a stream has taken so many chunks."""

    number: int
    chunks: int


class Cancel(Frame, frozen=True, tag=8):
    """The asker waits no more; or its time is over and it waits to hear how far the handler was."""

    number: int
    overdue: bool


class Credit(Frame, frozen=True, tag=9):
    """So many of the messages for an actor are in its mailbox, or done with: there is room for as many again."""

    of: int
    count: int


class Watch(Frame, frozen=True, tag=10):
    """Tell me when this actor ends."""

    to: int


class Ended(Frame, frozen=True, tag=11):
    """An actor has ended: the class of its exit, and the text of that."""

    of: int
    exit: str
    why: str
    error: tuple[str, str] | None = None


class Up(Frame, frozen=True, tag=12):
    """A later incarnation of an actor that was stopped or killed is up."""

    of: int


class Signal(Frame, frozen=True, tag=13):
    """Stop, kill or interrupt an actor."""

    to: int
    verb: str
    why: str


class Link(Frame, frozen=True, tag=14):
    """Link an actor to one of mine, or (`on` false) do so no more."""

    to: int
    mine: int
    path: str
    on: bool


Batch = list[Tell | Ask | Open | Reply | Fail | Chunk | More | Cancel | Credit | Watch | Ended | Up | Signal | Link]

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Batch)
_raw: Final = msgspec.msgpack.Decoder(list[msgspec.Raw])
_single: Final = msgspec.msgpack.Decoder(Batch.__args__[0])  # type: ignore[attr-defined]


def batch_of(frames: list[Any]) -> bytes:
    """A batch as bytes."""
    return _encoder.encode(frames)


def frames_of(payload: bytes) -> tuple[list[Any], list[tuple[bytes, Exception]]]:
    """The frames of a batch, and those parts of it that are none, with the reason."""
    try:
        return _decoder.decode(payload), []
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        return _salvage(payload, error)


def _salvage(payload: bytes, error: Exception) -> tuple[list[Any], list[tuple[bytes, Exception]]]:
    """One bad frame costs itself, not the batch."""
    frames: list[Any] = []
    bad: list[tuple[bytes, Exception]] = []
    try:
        parts = _raw.decode(payload)
    except msgspec.MsgspecError:
        return [], [(payload, error)]
    for part in parts:
        try:
            frames.append(_single.decode(part))
        except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
            bad.append((bytes(part), problem))
    return frames, bad
