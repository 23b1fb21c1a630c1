"""A configuration whose every entry is valid."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from msgspec import Struct

from .entries import (
    ConfigEntry,
    EndpointEntry,
    Function,
    Host,
    MetricsEntry,
    PythonProcess,
    RouterEntry,
    ServerEntry,
    ServiceEntry,
    Static,
)

if TYPE_CHECKING:
    from .cluster import ClusterSection

__all__ = ["Configuration", "EntryLocation"]

E = TypeVar("E", bound=ConfigEntry)


class EntryLocation(NamedTuple):
    """Where an entry was defined."""

    file: Path
    line: int


class Configuration(Struct, frozen=True):
    """All entries by id, in the order of the files, the cluster if any, and where each is."""

    files: tuple[Path, ...]
    entries: dict[str, ConfigEntry]
    where: dict[str, EntryLocation]
    cluster: ClusterSection | None = None
    cluster_at: EntryLocation | None = None

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
    def servers(self) -> dict[str, ServerEntry]:
        """Servers."""
        return self._of(ServerEntry)

    @property
    def routers(self) -> dict[str, RouterEntry]:
        """Routers."""
        return self._of(RouterEntry)

    @property
    def endpoints(self) -> dict[str, EndpointEntry]:
        """Endpoints."""
        return self._of(EndpointEntry)

    @property
    def metrics(self) -> dict[str, MetricsEntry]:
        """Where servers have the node's metrics."""
        return self._of(MetricsEntry)

    @property
    def statics(self) -> dict[str, Static]:
        """Folders of files."""
        return self._of(Static)

    @property
    def services(self) -> dict[str, ServiceEntry]:
        """Services."""
        return self._of(ServiceEntry)
