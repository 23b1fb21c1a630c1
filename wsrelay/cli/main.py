"""The `wsrelay` command."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from typing import Any, Final

import click

from wsrelay.errors import MissingExtra
from wsrelay.values import extras

__all__ = ["main"]

_COMMANDS: Final = {
    "run": "run",
    "serve": "serve",
    "check": "serve",
    "ps": "control",
    "top": "top",
    "console": "console",
    "tree": "control",
    "connections": "control",
    "send": "control",
    "call": "control",
    "cancel": "control",
    "kill": "control",
    "stack": "control",
    "logs": "control",
    "show": "looking",
    "ends": "looking",
    "trace": "looking",
    "close": "looking",
    "nodes": "cluster",
    "drain": "cluster",
    "connect": "connect",
    "completion": "completion",
}


_UNWRITABLE: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""Errors of writing to standard output, to a full disk for example; click handles EPIPE."""


class _Commands(click.Group):
    """Imports a command when it is used, so that none waits for the libraries of the others."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command; if its output cannot be written, end it with a line that says so."""
        try:
            return super().main(*args, **kwargs)
        except OSError as error:
            if error.errno not in _UNWRITABLE or error.filename is not None:
                raise
            from .running import fail  # noqa: PLC0415 - most commands go well

            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the buffer is flushed at exit
            fail(f"the output cannot be written: {error.strerror}")

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Return all names."""
        return list(_COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command."""
        if (module := _COMMANDS.get(cmd_name)) is None:
            return None
        try:
            with extras.named():
                found = importlib.import_module(f"{__package__}.{module}")
        except MissingExtra as error:
            return _missing(cmd_name, error)
        command: click.Command = getattr(found, cmd_name)
        return command


def _missing(name: str, error: MissingExtra) -> click.Command:
    """Return a command that says what it needs, whatever its options."""
    from .running import fail  # noqa: PLC0415 - most commands have what they need

    return click.Command(
        name,
        callback=lambda: fail(str(error)),
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
        add_help_option=False,
        short_help=f"Needs: pip install 'wsrelay[{error.extra}]'",
    )


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="wsrelay")
def main() -> None:
    """Stateful WebSocket backends whose rooms are real OS processes."""
    _open_standard_streams()


def _open_standard_streams() -> None:
    """Open those of descriptors 0, 1 and 2 that the parent has closed (`<&-`, some daemons).

    Otherwise a socket would get the number and what is printed would go into it, and libuv aborts
    when it closes such a descriptor.
    """
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)
            os.set_inheritable(descriptor, True)
            setattr(sys, name, open(descriptor, mode, closefd=False))  # noqa: SIM115 - for good
