"""JSON, as clients get it."""

from __future__ import annotations

from typing import Any

import msgspec

from wsrelay.errors import PayloadError

from . import misfits

__all__ = ["json_text"]

_encoder = msgspec.json.Encoder(enc_hook=misfits.as_built_in)


def json_text(value: Any) -> str:
    """Return a value as JSON; raises `PayloadError`, which names the offending type and its place.

    Whatever can be a payload can be written, and as a browser's JavaScript expects it: a datetime
    in ISO 8601, bytes as base64, not-a-number and the infinities as null, a UUID or Decimal as
    text.
    """
    try:
        return _encoder.encode(value).decode()
    except misfits.ERRORS as error:
        where, problem = misfits.find(value, "value", _encodes)
        raise PayloadError(f"{where}: {problem or error}") from None


def _encodes(value: Any) -> bool:
    try:
        _encoder.encode(value)
    except misfits.ERRORS:
        return False
    return True
