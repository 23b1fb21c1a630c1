"""The asynchronous face: `from wsrelay.aio import process` in `async def` handlers."""

from . import process

__all__ = ["process"]
