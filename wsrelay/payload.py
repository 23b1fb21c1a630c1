"""Payloads: plain data to MessagePack and back (contract section 3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from .errors import PayloadError

__all__ = ["decode", "encode", "pack", "writable"]

_FLAT = (str, bytes)


def encode(payload: Any) -> bytes:
    """Encode a payload; raises `PayloadError` that names the offending type and its place.

    What it encodes, `decode` can decode: that is tried, for a payload must not be able to fail at
    its receiver (a dataclass as a key does, and so do msgspec's own raw types).
    """
    try:
        data = _encoder.encode(payload)
        # The form of `ws.send` is seen to be data without a trial.
        if not (
            type(payload) is dict
            and len(payload) == 2  # noqa: PLR2004 - `type` and `data`
            and type(payload.get("type")) is str
            and type(payload.get("data")) in _FLAT
        ):
            decode(data)
    except _ERRORS as error:
        where, problem = _find(payload, "payload", ())
        raise PayloadError(f"{where}: {problem or error}") from None
    return data


def _plain(value: Any) -> Any:
    """Make the built-in of a subclass of one; everything else is no data."""
    if isinstance(value, str):
        return str.__str__(value)
    built_ins: tuple[Any, ...] = (int, float, dict, list, tuple, set, frozenset, bytes)
    for kind in built_ins:
        if isinstance(value, kind):
            return kind(value)
    raise TypeError


_encoder = msgspec.msgpack.Encoder(enc_hook=_plain)

pack = _encoder.encode
"""Encode what is known to be data, without the trial of `encode`."""


def writable(text: Any, what: str) -> str:
    """Return text that fits into a frame; raises `PayloadError` that says what is wrong."""
    if not isinstance(text, str):
        raise PayloadError(f"{what}: {text!r:.80} is no text")
    if not _encodes(text):
        raise PayloadError(f"{what}: {_problem(text)}")
    return text


def _no_extension(code: int, _: memoryview) -> Any:
    raise ValueError(f"MessagePack extension {code} is no data")


decode = msgspec.msgpack.Decoder(ext_hook=_no_extension).decode

_ERRORS = (TypeError, ValueError, OverflowError, RecursionError)


_DEEPEST = 500


def _find(value: Any, where: str, above: tuple[int, ...]) -> tuple[str, str]:
    """Return where the first value sits that cannot be encoded, and what is wrong with it."""
    if id(value) in above or len(above) > _DEEPEST:
        return where, "nested too deeply, or inside itself"
    for step, item, is_key in _parts(value):
        if not _encodes({item: None} if is_key else item):
            if is_key:
                return f"{where}, key {item!r}", _problem(item)
            return _find(item, f"{where}{step}", (*above, id(value)))
    return where, _problem(value)


def _parts(value: Any) -> Iterator[tuple[str, Any, bool]]:
    """Give `(step to it, item, whether it is a key)` for all that a container holds."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield "", key, True
            yield f"[{key!r}]", item, False
    elif isinstance(value, list | tuple | set | frozenset):
        for index, item in enumerate(value):
            yield f"[{index}]", item, False
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield f".{name}", getattr(value, name), False
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield f".{field.name}", getattr(value, field.name), False


def _encodes(value: Any) -> bool:
    try:
        decode(_encoder.encode(value))
    except _ERRORS:
        return False
    return True


def _problem(value: Any) -> str:
    if isinstance(value, int):
        return f"{value} does not fit into 64 bits"
    if isinstance(value, str):
        return "the text has surrogates, which UTF-8 cannot hold"
    kind = type(value)
    return (
        f"{kind.__module__}.{kind.__qualname__} is no data; payloads are made of None, bool, int, "
        "float, str, bytes, list, dict, datetime, dataclasses and the like"
    )
