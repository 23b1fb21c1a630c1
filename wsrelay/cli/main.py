"""The `wsrelay` command."""

from __future__ import annotations

import importlib
from typing import Final

import click

__all__ = ["main"]

_COMMANDS: Final = {
    "run": "run",
    "serve": "serve",
    "check": "serve",
    "ps": "control",
    "top": "top",
    "tree": "control",
    "connections": "control",
    "send": "control",
    "cancel": "control",
    "kill": "control",
    "logs": "control",
    "connect": "connect",
    "completion": "completion",
}


class _Commands(click.Group):
    """Imports a command when it is used: none waits for the libraries of the others."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Return all names."""
        return list(_COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command."""
        if (module := _COMMANDS.get(cmd_name)) is None:
            return None
        command: click.Command = getattr(
            importlib.import_module(f"{__package__}.{module}"), cmd_name
        )
        return command


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="wsrelay")
def main() -> None:
    """Stateful WebSocket backends whose rooms are real OS processes."""
