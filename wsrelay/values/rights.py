"""What processes of a walled-in host may do to those of other hosts.

The node enforces this; a worker checks its own rights only to raise in the code that calls.
"""

from __future__ import annotations

import fnmatch

from msgspec import Struct

from wsrelay.errors import NotAllowed

__all__ = ["Rights"]


class Rights(Struct, frozen=True):
    """The rights of one host: what its options `may_spawn`, `may_control` and `may_name` add.

    All methods raise `NotAllowed`, which says what was refused and which option would allow it.
    """

    host: str
    may_spawn: tuple[str, ...] = ()
    may_control: tuple[str, ...] = ()
    may_name: tuple[str, ...] = ()

    def check_spawn(
        self, host: str, target: str | None, home: str | None, *, plain: bool, linked: bool
    ) -> None:
        """Check that a process may be started in `host`.

        `home` is the host of the entry whose id is `target`, or None if there is no such entry;
        `plain` says that the arguments are data. In its own host a process may start anything.
        """
        if host == self.host:
            return
        if host not in self.may_spawn:
            raise self._refused(f"start one in host {host!r:.80}", f"may_spawn: [{host:.80}]")
        if home is None:
            what = "a callable" if target is None else f"{target!r:.200}"
            raise NotAllowed(
                f"{self._who} may start nothing but declared entries in host {host!r:.80}, and "
                f"{what} is not one"
            )
        if home != host:
            raise NotAllowed(
                f"{self._who} may start an entry only in the entry's own host, and "
                f"{target!r:.200} belongs to host {home!r:.80}, not to {host!r:.80}"
            )
        if not plain:
            raise NotAllowed(
                f"{self._who} may start {target!r:.200} in host {host!r:.80} with arguments that "
                "are data, not with a pickle"
            )
        if linked:
            self.check_control("be linked to", "what it starts", host)

    def check_control(self, what: str, whom: str, host: str) -> None:
        """Check that it may do that to a process of the host, or to a client bound to one."""
        if host != self.host and host not in self.may_control:
            raise self._refused(
                f"{what} {whom}, whose host is {host!r:.80}", f"may_control: [{host:.80}]"
            )

    def check_name(self, name: str) -> None:
        """Check that it may take the name."""
        own = f"{self.host}/"
        if not name.startswith(own) and not any(
            fnmatch.fnmatchcase(name, pattern) for pattern in self.may_name
        ):
            raise self._refused(
                f"take the name {name!r:.80}, which does not begin with {own!r:.80}",
                "a pattern for it in may_name",
            )

    @property
    def _who(self) -> str:
        return f"a process of host {self.host!r:.80}, which is walled in,"

    def _refused(self, what: str, option: str) -> NotAllowed:
        return NotAllowed(f"{self._who} may not {what}, unless {self.host:.80} has {option}")
