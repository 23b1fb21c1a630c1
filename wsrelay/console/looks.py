"""What a page may ask of the console, as JSON."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

__all__ = ["Act", "Look", "Stack"]

_Text = Annotated[str, Meta(max_length=200)]
_PID = Annotated[str, Meta(max_length=1000)]


class Look(Struct, tag="look", frozen=True, kw_only=True):
    """What the page shows from now on; `number` comes back with what is visible.

    `search`, `sort`, `descending` and `start` are of its table, of ends those of this `kind`; `of`
    is the PID of the process. With `trace`, its messages are followed, with their `payload` if that
    is wanted.
    """

    number: int
    page: Literal["home", "process", "connections", "ends", "logs", "nodes"]
    search: _Text = ""
    sort: Annotated[str, Meta(max_length=20)] = ""
    descending: bool = True
    start: Annotated[int, Meta(ge=0, le=10_000_000)] = 0
    of: _PID = ""
    kind: Literal["process", "connection"] = "process"
    level: Literal["debug", "info", "warning", "error"] = "debug"
    trace: bool = False
    payload: bool = False


class Act(Struct, tag="act", frozen=True, kw_only=True):
    """An order of the user; `id` comes back with the answer."""

    id: int
    what: Literal["send", "call", "cancel", "kill", "close"]
    of: _PID
    topic: _Text = ""
    payload: Any = None
    reason: _Text = ""
    code: int = 1000


class Stack(Struct, tag="stack", frozen=True, kw_only=True):
    """Asks for the Python stacks of a process; `id` comes back with the answer."""

    id: int
    of: _PID
