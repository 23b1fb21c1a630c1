"""`wsrelay completion`: scripts that let a shell complete commands, options and PIDs."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

__all__ = ["completion"]


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, *, shell: str) -> None:
    """Print the completion script for a shell.

    bash: add `eval "$(wsrelay completion bash)"` to ~/.bashrc, zsh likewise to ~/.zshrc; fish:
    `wsrelay completion fish > ~/.config/fish/completions/wsrelay.fish`.
    """
    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 - the choices are click's own
    root = context.find_root().command
    click.echo(kind(root, {}, "wsrelay", "_WSRELAY_COMPLETE").source())
