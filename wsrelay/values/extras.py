"""What `pip install wsrelay` leaves out, and the extra that provides it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from wsrelay.errors import MissingExtra

__all__ = ["MODULES", "named"]

MODULES: Final = {
    "nats": "cluster",
    "prometheus_client": "metrics",
    "prompt_toolkit": "cli",
    "pydantic": "config",
    "rich": "cli",
    "watchfiles": "reload",
    "yaml": "config",
}
"""The extra that provides each module."""


@contextlib.contextmanager
def named() -> Iterator[None]:
    """Raise `MissingExtra` if an import inside needs an extra that is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in MODULES:
            raise
        raise MissingExtra(module, MODULES[module]) from None
