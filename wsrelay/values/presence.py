"""Who is in a group, and what a `groups.watch` shows of it."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from .pid import PID

__all__ = ["Kind", "Member", "Presence"]

Kind = Literal["joined", "left", "changed"]


class Member(Struct, frozen=True):
    """A process in a group, with the metadata that it joined with (None if there is none)."""

    pid: PID
    meta: Any = None


class Presence(Struct, frozen=True):
    """A change in a group: a process has `joined` or `left`, or its metadata has `changed`.

    `meta` is its metadata from then on, or in a `left` the last that it had.
    """

    kind: Kind
    pid: PID
    meta: Any = None
