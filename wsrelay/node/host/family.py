"""Which processes a template may name to the node: its own children only."""

from __future__ import annotations

import sys
from typing import NamedTuple

from wsrelay.values import linux

__all__ = ["Family"]


class Family(NamedTuple):
    """A template's process id, its guardian's, and the user that all its children belong to.

    `user` is None where that is not fixed: what a host without `user` loads may change it.
    """

    template: int
    guardian: int
    user: int | None

    def has(self, os_pid: int, pidfd: int | None) -> bool:
        """Whether a process is of this family, or has ended and so is harmless (Linux only).

        The node sends signals to whatever it has a pidfd of, perhaps as root: without this check a
        template could have it kill any process. `pidfd` was opened by that id before the call; it
        is None if that failed.
        """
        if sys.platform != "linux":
            return True
        meant = os_pid if pidfd is None else linux.process_of(pidfd)
        related = linux.relations(os_pid)
        # Asked last: as long as it has not been reaped its id cannot be another process's.
        over = related is None if pidfd is None else linux.process_of(pidfd) == linux.REAPED
        if over:
            return True
        if meant != os_pid or related is None:
            return False
        parent, users = related
        # The orphans of a template that was killed are the guardian's children.
        is_child = parent > 0 and parent in (self.template, self.guardian)
        return is_child and (self.user is None or users == {self.user})
