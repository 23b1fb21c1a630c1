"""`/wsrelay.js`: the module that pages import to connect."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from starlette.routing import Match, Route

from wsrelay.relay.asgi import Scope
from wsrelay.relay.static import FILE_NAME, static

__all__ = ["ClientModule"]


class ClientModule(Route):
    """The route; it leaves the path to folders that are served at `/` and have such a file."""

    def __init__(self, folders: Iterable[Path]) -> None:
        super().__init__(f"/{FILE_NAME}", static)
        self._files = [folder / FILE_NAME for folder in folders]

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match plain requests for the file."""
        match, child = super().matches(scope)
        if match is Match.NONE or any(file.exists() for file in self._files):
            return Match.NONE, {}
        return match, child
