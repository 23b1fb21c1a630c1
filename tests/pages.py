"""The pages of docs/, as files of code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

DOCS: Final = Path(__file__).resolve().parents[1] / "docs"

_NAMED = re.compile(r"^`(\S+)`:\n\n```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)


def files(page: Path) -> dict[str, str]:
    """Return the blocks that have a name above, by their names."""
    return dict(_NAMED.findall(page.read_text(encoding="utf-8")))


def written(page: Path, folder: Path) -> dict[str, str]:
    """Write them into a folder, and return them."""
    found = files(page)
    for name, code in found.items():
        (folder / name).write_text(code, encoding="utf-8")
    return found
