"""The asynchronous face: `from wsrelay.aio import process` in `async def` handlers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wsrelay.values.awaited import Client, Message

from . import process

if TYPE_CHECKING:
    from .room import Room

__all__ = ["Client", "Message", "Room", "process"]


def __getattr__(name: str) -> Any:
    if name != "Room":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .room import Room  # noqa: PLC0415 - only for workers that have one

    return Room
