"""Frames between nodes as bytes: packing, and the bounds that hold before anything is decoded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Union, cast, get_args, get_type_hints

import msgspec
from msgspec import Struct

from wsrelay.errors import WireError
from wsrelay.wire import SMALL, check_head, encode_frame

from .frames import Content, PeerFrame

__all__ = ["KINDS", "pack", "unpack"]


def _kinds(base: type[PeerFrame]) -> Iterator[type[PeerFrame]]:
    for kind in base.__subclasses__():
        if kind.__struct_config__.tag is not None:
            yield kind
        yield from _kinds(kind)


KINDS: Final = tuple(_kinds(PeerFrame))
"""All kinds of frames that nodes write; two of one tag are refused when this is imported."""


class _View:
    """How large frames of a kind are decoded: their contents stay views of them.

    It is the type of a field that tells msgspec whether to copy bytes, hence the twin of each kind.
    """

    def __init__(self, kind: type[PeerFrame]) -> None:
        hints = get_type_hints(kind, include_extras=True)
        self._kind = kind
        self._contents = [
            name
            for name in kind.__struct_fields__
            if hints[name] == Content or Content in get_args(hints[name])
        ]
        for name in self._contents:
            hints[name] = memoryview if hints[name] == Content else memoryview | None
        self.twin = msgspec.defstruct(
            kind.__name__,
            [(name, hints[name]) for name in kind.__struct_fields__],
            array_like=True,
            forbid_unknown_fields=True,
            tag=cast("int", kind.__struct_config__.tag),
        )

    def frame(self, decoded: Struct, size: int) -> PeerFrame:
        """Return the frame that was decoded as a twin, from so many bytes."""
        for name in self._contents:
            content: memoryview | None = getattr(decoded, name)
            # A view that is not most of the frame would keep more memory than is counted.
            if content is not None and 2 * len(content) <= size:
                setattr(decoded, name, bytes(content))
        return self._kind(*msgspec.structs.astuple(decoded))


def _decoder(kinds: Any) -> Any:
    return msgspec.msgpack.Decoder(Union[tuple(kinds)]).decode  # noqa: UP007 - of a list


_VIEWS: Final = {view.twin: view for view in map(_View, KINDS)}
_decode = _decoder(KINDS)
_decode_large = _decoder(_VIEWS)


def pack(frame: PeerFrame) -> bytes:
    """Return the bytes of a frame."""
    return encode_frame(frame)


def unpack(data: bytes | memoryview) -> PeerFrame:
    """Return the frame that these bytes are; raises `WireError` if they are none of ours.

    What it takes is bounded by the size of the data, at most 4 MB above it.
    """
    size = len(data)
    try:
        if size <= SMALL:
            frame: PeerFrame = _decode(data)
            return frame
        check_head(data)
        decoded: Struct = _decode_large(data)
    except (ValueError, RecursionError) as error:
        raise WireError(f"{size} bytes are not a frame of a node: {error}") from None
    return _VIEWS[type(decoded)].frame(decoded, size)
