"""The asynchronous face: `from wsrelay.aio import process` in `async def` handlers."""

from wsrelay.values.awaited import Client, Message

from . import process

__all__ = ["Client", "Message", "process"]
