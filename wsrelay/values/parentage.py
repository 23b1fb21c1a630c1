"""What a fresh interpreter that a handler starts (`spawn`, `forkserver`) knows of its parent."""

from __future__ import annotations

from typing import Any

from . import current

__all__ = ["Origin"]


class Origin:
    """Unpickled in the interpreter it says whose child that is."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _enter, (current.process(),)


def _enter(parent: str | None) -> None:
    if parent is not None:
        current.enter_child(parent)
