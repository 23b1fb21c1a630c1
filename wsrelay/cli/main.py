"""The `wsrelay` command."""

from __future__ import annotations

import click

from .run import run

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="wsrelay")
def main() -> None:
    """Stateful WebSocket backends whose rooms are real OS processes."""


main.add_command(run)
