"""Rate-limited logging of an application's errors, which a client can cause with each request."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from wsrelay.relay.rate_limited_log import RateLimitedLog

__all__ = ["Errors"]

_uvicorn: Final = logging.getLogger("uvicorn.error")
_lines: Final = RateLimitedLog(_uvicorn)


class Errors(logging.LoggerAdapter[logging.Logger]):
    """Takes the place of uvicorn's logger in a connection: few errors per address are logged.

    A body that was not JSON, sent over and over to an endpoint that expects it, caused 27,000 lines
    of tracebacks a second.
    """

    def __init__(self, client: tuple[str, int] | None) -> None:
        super().__init__(_uvicorn, {})
        self._client = client[0] if client else None

    @property
    def level(self) -> int:
        """The level of uvicorn's logger."""
        return self.logger.level

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log a record, or count one that is left out."""
        if level < logging.ERROR:
            self.logger.log(level, msg, *args, **kwargs)
            return
        now, text = asyncio.get_running_loop().time(), str(msg).rstrip()
        _lines.log(level, now, text, *args, client=self._client, exc_info=kwargs.get("exc_info"))
