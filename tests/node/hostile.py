"""What hostile workers share."""

from __future__ import annotations

from typing import Any

from wsrelay import process


def own_pipe() -> Any:
    """The pipe of this worker, for what its functions would not write."""
    return process._worker().pipe


def next_one() -> Any:
    return process.inbox().receive(20).payload
