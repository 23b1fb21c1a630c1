"""The title of a worker, which `ps` shows, when a name is added or removed.

One that the handler has set itself is left alone, and a name that it was spawned under stays. Names
that other processes give it do not show: only a process itself can change its title.
"""

from __future__ import annotations

from typing import Final

from setproctitle import getproctitle, setproctitle

from wsrelay.values.printable import printable

__all__ = ["BEGIN", "add", "remove", "shown_name"]

BEGIN: Final = "wsrelay: "

_LONGEST_NAME: Final = 60
"""Characters: titles overwrite the template's own command line, of about 150 bytes."""


def shown_name(name: str) -> str:
    """Return a name as it is shown in a title."""
    return printable(name)[:_LONGEST_NAME]


def add(pid: str, name: str) -> None:
    """Show a name if none is shown."""
    if (title := getproctitle()).startswith(f"{BEGIN}{pid}"):
        setproctitle(f"{BEGIN}{shown_name(name)} {title.removeprefix(BEGIN)}")


def remove(pid: str, name: str) -> None:
    """Show that name no more."""
    named = f"{BEGIN}{shown_name(name)} "
    if (title := getproctitle()).startswith(f"{named}{pid}"):
        setproctitle(f"{BEGIN}{title.removeprefix(named)}")
