"""A configuration whose every entry is valid."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, TypeVar

from msgspec import Struct

from .entries import Endpoint, Entry, Function, Host, PythonProcess, Router, Server, Service, Static

__all__ = ["Configuration", "Where"]

E = TypeVar("E", bound=Entry)


class Where(NamedTuple):
    """Where an entry stands."""

    file: Path
    line: int


class Configuration(Struct, frozen=True):
    """All entries by id, in the files' order, and where each stands."""

    files: tuple[Path, ...]
    entries: dict[str, Entry]
    where: dict[str, Where]

    def _of(self, kind: type[E]) -> dict[str, E]:
        return {name: entry for name, entry in self.entries.items() if isinstance(entry, kind)}

    @property
    def hosts(self) -> dict[str, Host]:
        """Process hosts."""
        return self._of(Host)

    @property
    def processes(self) -> dict[str, PythonProcess]:
        """What can be spawned."""
        return self._of(PythonProcess)

    @property
    def functions(self) -> dict[str, Function]:
        """Endpoint functions."""
        return self._of(Function)

    @property
    def servers(self) -> dict[str, Server]:
        """Servers."""
        return self._of(Server)

    @property
    def routers(self) -> dict[str, Router]:
        """Routers."""
        return self._of(Router)

    @property
    def endpoints(self) -> dict[str, Endpoint]:
        """Endpoints."""
        return self._of(Endpoint)

    @property
    def statics(self) -> dict[str, Static]:
        """Folders of files."""
        return self._of(Static)

    @property
    def services(self) -> dict[str, Service]:
        """Services."""
        return self._of(Service)
