"""The metadata of a group's members: bytes that the node keeps and does not look at."""

from __future__ import annotations

from typing import Any, Final

from wsrelay.errors import PayloadError
from wsrelay.values.sizes import show

from . import payload

__all__ = ["MAX_META", "decode", "encode"]

MAX_META: Final = 64 * 1024
"""Bytes of one member's metadata: the node keeps it, and tells it to all who watch the group."""


def encode(meta: Any) -> bytes:
    """Return metadata as bytes, which are empty for None; raises `PayloadError`."""
    if meta is None:
        return b""
    data = payload.encode(meta, "meta")
    if len(data) > MAX_META:
        raise PayloadError(
            f"meta: {len(data)} bytes are more than the metadata of a member may have, "
            f"{show(MAX_META)}; let the process itself keep larger data"
        )
    return data


def decode(data: bytes) -> Any:
    """Return metadata; None for what is not data, which no worker of ours writes."""
    try:
        return payload.decode(data) if data else None
    except (ValueError, RecursionError):
        return None
