"""Which processes a template may name to the node: its children, and nobody else's."""

from __future__ import annotations

import sys
from typing import NamedTuple

from wsrelay.values import linux

__all__ = ["Family"]


class Family(NamedTuple):
    """A template's process id, its guardian's, and the user whom all its children belong to.

    `user` is None where that is not laid down: what a host without `user` loads may change it.
    """

    template: int
    guardian: int
    user: int | None

    def has(self, os_pid: int, pidfd: int | None) -> bool:
        """Whether a process is of this family, or has ended and so is nobody any more (Linux).

        The node signals what it has a pidfd of, as root perhaps: a template could have it kill
        anybody. `pidfd` was opened by that number, before this is asked; None if it could not be.
        """
        if sys.platform != "linux":
            return True
        meant = os_pid if pidfd is None else linux.process_of(pidfd)
        related = linux.relations(os_pid)
        # Asked behind the other: as long as it was not reaped its number cannot be another one's.
        over = related is None if pidfd is None else linux.process_of(pidfd) == linux.REAPED
        if over:
            return True
        if meant != os_pid or related is None:
            return False
        parent, users = related
        # The guardian has the orphans of a template that was killed.
        is_child = parent > 0 and parent in (self.template, self.guardian)
        return is_child and (self.user is None or users == {self.user})
