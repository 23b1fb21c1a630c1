"""The directory: this node's copies of the names that other nodes have given.

Each node tells the others its names over the link, all of them at the link's beginning and then
every change, in the order of what else it sends. So the copy needs no versions: whoever has got a
message from a process also knows the names that this process had when it was sent.

A name has one owner among the nodes. Two copies may still have the same name for a moment, since
the links of different nodes are not in step: the new owner may tell that it has the name before the
former one tells that it has not any more. Each name comes with the fence of its owner, and the
greater one wins: it is the later owner. What a node has told of a name is removed by that node
alone, or with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from wsrelay.errors import InvalidName, InvalidPID, WireError
from wsrelay.values.pid import PID, nameable

from .claims import is_local
from .frames import Named
from .peer import Peer

__all__ = ["Directory"]


class Directory:
    """The names of the other nodes, exclusive and registered ones alike."""

    def __init__(self) -> None:
        self._told: dict[Peer, dict[str, Named]] = {}
        self._latest: dict[str, tuple[int, PID, Peer]] = {}
        """For each name the greatest fence that was told, with its process and node."""

    def __len__(self) -> int:
        return len(self._latest)

    def __iter__(self) -> Iterator[str]:
        return iter(self._latest)

    def learn(self, peer: Peer, names: Iterable[Named]) -> None:
        """Take what a node has told of its names; without a PID the name is not given any more.

        Raises `WireError` for what no node of ours tells, and has then taken what was before it.
        """
        there = self._told.setdefault(peer, {})
        for named in names:
            if named.pid:
                pid = _checked(named, peer.node)
                there[named.name] = named
                told = named.fence, pid, peer
                if self._latest.setdefault(named.name, told) != told:
                    self._choose(named.name)
            elif there.pop(named.name, None) is not None:
                self._choose(named.name)

    def drop(self, peer: Peer) -> None:
        """Forget a node: it has left, or is down."""
        for name in self._told.pop(peer, ()):
            self._choose(name)

    def get(self, name: str) -> PID | None:
        """Return the process of another node with that name, or None."""
        latest = self._latest.get(name)
        return None if latest is None else latest[1]

    def of(self, pid: PID) -> list[str]:
        """Return the names of a process of another node; it looks at all names."""
        return [name for name, (_, there, _) in self._latest.items() if there == pid]

    def owner(self, name: str) -> Peer | None:
        """Return the node of the process with that name, or None."""
        latest = self._latest.get(name)
        return None if latest is None else latest[2]

    def names(self, peer: Peer) -> set[str]:
        """Return the names that a node has told."""
        return set(self._told.get(peer, ()))

    def _choose(self, name: str) -> None:
        """Find who has the name latest, now that the one that had it has not."""
        there = [
            (named.fence, PID.trusted(named.pid), peer)
            for peer, names in self._told.items()
            if (named := names.get(name)) is not None
        ]
        if there:
            self._latest[name] = max(there)
        else:
            self._latest.pop(name, None)


def _checked(named: Named, node: str) -> PID:
    """Return the PID of a name that a node has told."""
    try:
        pid = PID(named.pid)
        nameable(named.name)
    except (InvalidPID, InvalidName) as error:
        raise WireError(f"node {node} told a name that is none: {error}") from None
    if pid.node != node or is_local(named.name):
        raise WireError(f"node {node} may not give {pid} the name {named.name!r:.200}")
    return pid
