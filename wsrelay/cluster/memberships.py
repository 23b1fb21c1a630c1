"""The members of groups that nodes tell each other of: what is told, and how it becomes a copy.

Each node tells the others the memberships of its own processes over the link, all of them at the
link's beginning and then every change, in the order of what else it sends. The copies are in the
kernel's groups themselves, so that who looks at a group does not ask which node a member is on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from wsrelay.errors import InvalidName, InvalidPID, TooMany, WireError
from wsrelay.kernel import PresenceEffect
from wsrelay.kernel.groups import Groups
from wsrelay.values.pid import PID
from wsrelay.values.presence import Kind
from wsrelay.values.sizes import ITEM, show

from .frames import MAX_MEMBERSHIPS, Membership

__all__ = ["MOST_OF_A_NODE", "Memberships"]

MOST_OF_A_NODE: Final = 512 * 1024 * 1024
"""Bytes of the memberships of one node's processes that others keep: a million and more, or the
most of four hosts that make use of all the metadata that they may have."""

_PORTION: Final = 32 * 1024
"""Bytes of memberships in one frame, but for the last of them."""


class Memberships:
    """What a node tells the others of its groups, and what it keeps of theirs."""

    def __init__(self, node: str, groups: Groups) -> None:
        self._own = f"{{{node}@"
        self._groups = groups
        self._kept: dict[str, int] = {}
        """Bytes that the memberships of each other node take."""

    def is_own(self, pid: str) -> bool:
        """Whether it is a process of this node."""
        return pid.startswith(self._own)

    def all(self) -> Iterator[list[Membership]]:
        """Yield this node's own memberships, as many as fit into a frame at a time."""
        portion: list[Membership] = []
        room = _PORTION
        for group, pid, meta in self._groups:
            if self.is_own(pid):
                portion.append(Membership(group, str(pid), meta))
                room -= _cost(group, pid, meta)
            if room <= 0 or len(portion) == MAX_MEMBERSHIPS:
                yield portion
                portion, room = [], _PORTION
        if portion:
            yield portion

    def changed(self, kind: Kind, group: str, pid: PID, meta: bytes) -> Membership | None:
        """Return what the others are to be told of a change of the groups; None for a copy's."""
        if not self.is_own(pid):
            return None
        return Membership(group, str(pid), None if kind == "left" else meta)

    def learn(self, node: str, told: Iterable[Membership]) -> Iterator[list[PresenceEffect]]:
        """Take what a node has told, one by one; yield what those who watch are to be told.

        Raises `WireError` for what no node of ours tells.
        """
        for one in told:
            try:
                pid = PID(one.pid)
                if pid.node != node:
                    raise WireError(f"node {node} may not let {pid} join or leave groups")
                yield self._learn(node, one.group, pid, one.meta)
            except (InvalidPID, InvalidName, TooMany) as error:
                raise WireError(f"node {node} told a membership that is none: {error}") from None

    def _learn(self, node: str, group: str, pid: PID, meta: bytes | None) -> list[PresenceEffect]:
        before = self._groups.meta(group, pid)
        size = self._kept.get(node, 0)
        if before is not None:
            size -= _cost(group, pid, before)
        if meta is None:
            effects = self._groups.leave(group, pid)
        else:
            size += _cost(group, pid, meta)
            if size > MOST_OF_A_NODE:
                raise WireError(
                    f"the memberships of its processes take more than {show(MOST_OF_A_NODE)}"
                )
            effects = self._groups.join(group, pid, None, meta)
        self._kept[node] = size
        return effects

    def drop(self, node: str) -> list[PresenceEffect]:
        """Let all processes of a node that is gone leave; returns what those who watch are told."""
        self._kept.pop(node, None)
        return [told for pid in self._groups.of_node(node) for told in self._groups.release(pid)]


def _cost(group: str, pid: str, meta: bytes) -> int:
    return 2 * ITEM + len(group.encode()) + len(pid) + len(meta)
