"""The console: a page that shows the running nodes, live, over their control sockets.

`app` is imported on first use: the process behind a page needs no web server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pages import app

__all__ = ["app"]


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .pages import app  # noqa: PLC0415 - see above

    return app
