"""How options that are text become what they mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

__all__ = ["Callback", "json_option", "parsed"]

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")

Callback = Callable[[click.Context, click.Parameter, Any], Any]


def parsed(parse: Callable[[Any], Any]) -> Callback:
    """Return a callback of click's that converts an option, whose mistake is a `ValueError`."""

    def convert(_context: click.Context, _parameter: click.Parameter, given: Any) -> Any:
        try:
            return None if given is None else parse(given)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return convert
