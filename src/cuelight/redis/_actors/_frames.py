"""The frames sent between nodes: small arrays, many in one batch, with the names for how actors and requests end.

A batch is a msgpack array of frames. Serials are those of the actor's own system, numbers those of the asking node.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from cuelight._text import shortened

FORMAT: Final = 1
"""The format of frames and of the keys on the server. Any other number is rejected."""


LONGEST: Final = 4000
"""Maximum characters of one text in a frame that describes a failure."""


class Raised(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """An exception. Nodes that do not know its class, or cannot read its fields, create a `RemoteError` instead.

    Attributes:
        kind: the name of its class, for people.
        text: its text.
        name: the name by which a node finds the class; "" if the exception cannot be restored as itself.
        body: its arguments and fields, encoded as `cuelight.tasks` stores values.
        notes: the notes added with `add_note`.
        why: the reason why it cannot be restored as itself; "" if it can.
        cause: its cause.
    """

    kind: str
    text: str
    name: str = ""
    body: bytes = b""
    notes: tuple[str, ...] = ()
    why: str = ""
    cause: Raised | None = None


class Frame(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One step of a conversation between two nodes."""


class TellFrame(Frame, frozen=True, tag=1):
    """A message for an actor."""

    to: int
    kind: str
    body: bytes


class AskFrame(Frame, frozen=True, tag=2):
    """A request. `left`: the seconds that its handler may take; None for no limit."""

    to: int
    number: int
    kind: str
    body: bytes
    left: float | None


class OpenFrame(Frame, frozen=True, tag=3):
    """A request that is answered with a stream."""

    to: int
    number: int
    kind: str
    body: bytes


class ReplyFrame(Frame, frozen=True, tag=4):
    """The answer to a request; for a stream, its end."""

    number: int
    body: bytes


class FailFrame(Frame, frozen=True, tag=5):
    """A failed request: the class and text of the error, its cause, and the refusal if it is one."""

    number: int
    error: str
    text: str
    cause: Raised | None = None
    refusal: Raised | None = None


class ChunkFrame(Frame, frozen=True, tag=6):
    """One chunk of a stream."""

    number: int
    body: bytes


class MoreFrame(Frame, frozen=True, tag=7):
    """The number of chunks that the reader of a stream has taken since the last report."""

    number: int
    chunks: int


class CancelFrame(Frame, frozen=True, tag=8):
    """The asker has stopped waiting; or, if `overdue`, it only waits for a report on the handler's progress."""

    number: int
    overdue: bool


class CreditFrame(Frame, frozen=True, tag=9):
    """The number of an actor's messages that entered its mailbox or were dropped; as many more may be sent."""

    of: int
    count: int


class WatchFrame(Frame, frozen=True, tag=10):
    """A request for notification when an actor ends."""

    to: int


class EndedFrame(Frame, frozen=True, tag=11):
    """An actor has ended: the class and text of its exit, and the exception on which it crashed."""

    of: int
    exit: str
    why: str
    error: Raised | None = None


class UpFrame(Frame, frozen=True, tag=12):
    """A later incarnation of an actor that was stopped or killed has started."""

    of: int


class SignalFrame(Frame, frozen=True, tag=13):
    """Stop, kill or interrupt an actor."""

    to: int
    verb: str
    why: str


class LinkFrame(Frame, frozen=True, tag=14):
    """Links an actor to an actor of the sender, or unlinks it if `on` is false."""

    to: int
    mine: int
    path: str
    on: bool


Batch = list[
    TellFrame
    | AskFrame
    | OpenFrame
    | ReplyFrame
    | FailFrame
    | ChunkFrame
    | MoreFrame
    | CancelFrame
    | CreditFrame
    | WatchFrame
    | EndedFrame
    | UpFrame
    | SignalFrame
    | LinkFrame
]

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Batch)
_raw: Final = msgspec.msgpack.Decoder(list[msgspec.Raw])
_single: Final = msgspec.msgpack.Decoder(Batch.__args__[0])  # type: ignore[attr-defined]


_number: Final = msgspec.msgpack.Decoder(int)

UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""The errors of msgspec for data that cannot be decoded."""


def batch_of(frames: list[Any]) -> bytes:
    """Encode a batch."""
    return _encoder.encode(frames)


def encode_frames(frames: list[Any]) -> tuple[bytes, list[tuple[Any, Exception]]]:
    """Encode a batch. Returns also the frames that cannot be encoded, with the reason.

    Text that cannot be encoded, because it contains half a surrogate pair, is sent with escapes.
    """
    try:
        return _encoder.encode(frames), []
    except Exception:
        return _encode_each(frames)


def _encode_each(frames: list[Any]) -> tuple[bytes, list[tuple[Any, Exception]]]:
    """Encode each frame separately, so that a frame that cannot be encoded does not affect the others."""
    parts: list[msgspec.Raw] = []
    bad: list[tuple[Any, Exception]] = []
    for frame in frames:
        try:
            parts.append(msgspec.Raw(_encoder.encode(frame)))
        except UnicodeEncodeError:
            try:
                parts.append(msgspec.Raw(_encoder.encode(_escaped(frame))))
            except Exception as error:
                bad.append((frame, error))
        except Exception as error:
            bad.append((frame, error))
    return _encoder.encode(parts), bad


def _escaped(value: Any) -> Any:
    """Return a frame, or a part of one, in which each text can be encoded."""
    if isinstance(value, str):
        return shortened(value, len(value))
    if isinstance(value, tuple):
        return tuple(map(_escaped, value))  # pyright: ignore[reportUnknownVariableType,reportUnknownArgumentType]
    if isinstance(value, Frame | Raised):
        return type(value)(*(_escaped(getattr(value, name)) for name in value.__struct_fields__))
    return value


def frames_of(payload: bytes) -> tuple[list[Any], list[tuple[bytes, Exception]]]:
    """Decode a batch. Returns also the parts that are not frames, with the reason."""
    try:
        return _decoder.decode(payload), []
    except UNREADABLE as error:
        return _salvage(payload, error)


def _salvage(payload: bytes, error: Exception) -> tuple[list[Any], list[tuple[bytes, Exception]]]:
    """Decode each frame separately, so that a malformed frame does not affect the others."""
    frames: list[Any] = []
    bad: list[tuple[bytes, Exception]] = []
    try:
        parts = _raw.decode(payload)
    except UNREADABLE:
        return [], [(payload, error)]
    for part in parts:
        try:
            frames.append(_single.decode(part))
        except UNREADABLE as problem:
            bad.append((bytes(part), problem))
    return frames, bad


def addressee_of(part: bytes) -> tuple[int, int, int]:
    """Return the tag of a malformed frame and the two numbers after it; 0 for each that is not a number."""
    numbers: list[int] = []
    try:
        parts = _raw.decode(part)[:3]
    except UNREADABLE:
        parts = []
    for one in parts:
        try:
            numbers.append(_number.decode(one))
        except UNREADABLE:
            numbers.append(0)
    tag, first, second = [*numbers, 0, 0, 0][:3]
    return tag, first, second
