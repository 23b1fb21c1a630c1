"""What a fresh interpreter that a handler starts (`spawn`, `forkserver`) knows about its parent."""

from __future__ import annotations

from typing import Any

from . import current

__all__ = ["Origin"]


class Origin:
    """When unpickled in the new interpreter, records whose child it is."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _enter, (current.process(),)


def _enter(parent: str | None) -> None:
    if parent is not None:
        current.enter_child(parent)
