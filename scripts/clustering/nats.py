"""The NATS server of the cluster."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from pathlib import Path

from .program import Program, StartError

__all__ = ["Nats"]

_LOOK = 0.01


class Nats(Program):
    """A server with JetStream and its store in a folder, on a free loopback port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._said: list[str] = []
        binary = Path(sys.executable).with_name("nats-server")
        address = ["--addr", "127.0.0.1", "--port", "-1", "--ports_file_dir", str(folder)]
        store = ["--jetstream", "--store_dir", str(folder / "store")]
        super().__init__("nats-server", [str(binary), *address, *store], self._said.append)

    async def serving(self) -> str:
        """Start it and wait until it takes connections; returns its URL. Raises `StartError`."""
        await self.start()
        while not self.has_ended:
            # It writes the file as soon as it listens, and not in one step.
            for ports in self._folder.glob("*.ports"):
                with contextlib.suppress(ValueError):
                    return str(json.loads(ports.read_text(encoding="utf-8"))["nats"][0])
            await asyncio.sleep(_LOOK)
        how = await self.ended()
        raise StartError(f"{self.name} did not start: {self._said[-1] if self._said else how}")
