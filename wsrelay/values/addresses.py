"""Where a server listens, as text: `:8080`, `127.0.0.1:8080`, `[::1]:8080`, `unix:path.sock`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from msgspec import Struct

__all__ = ["Address", "parse"]

_ADDRESS: Final = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<host>[^:\[\]/]*)):(?P<port>\d{1,5})")


class Address(Struct, frozen=True):
    """Where a server listens: host (empty: all interfaces) and port, or a Unix socket."""

    host: str | None = None
    port: int | None = None
    path: Path | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if self.host and ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse(text: str, folder: Path = Path()) -> Address:
    """Return the address; a Unix socket's path is relative to the folder. Raises `ValueError`."""
    if text.startswith("unix:") and len(text) > len("unix:"):
        return Address(path=Path(folder, text.removeprefix("unix:")))
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match["port"]) > 65535:  # noqa: PLR2004 - the largest port
        raise ValueError(
            f"{text!r} is not an address; write ':8080', '127.0.0.1:8080', '[::1]:8080' or "
            "'unix:path.sock'"
        )
    return Address(match["v6"] or match["host"], int(match["port"]))
