"""`/wsrelay.js` and `/wsrelay.css`: what pages connect by and what they look like."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from starlette.routing import Match, Route

from wsrelay.relay.asgi import Scope
from wsrelay.relay.static import MEDIA_TYPES, static

__all__ = ["PageFile", "page_files"]


class PageFile(Route):
    """The route of one file; it leaves the path to folders at `/` that have such a file."""

    def __init__(self, name: str, folders: Iterable[Path]) -> None:
        super().__init__(f"/{name}", static)
        self._theirs = [folder / name for folder in folders]

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match plain requests for the file."""
        match, child = super().matches(scope)
        if match is Match.NONE or any(file.exists() for file in self._theirs):
            return Match.NONE, {}
        return match, child


def page_files(folders: Iterable[Path]) -> list[PageFile]:
    """Return the routes of all files, beside these folders, which are served at `/`."""
    folders = [*folders]
    return [PageFile(name, folders) for name in MEDIA_TYPES]
