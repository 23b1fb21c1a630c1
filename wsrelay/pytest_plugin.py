"""The fixture `relay_server`, for every project that has wsrelay installed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from wsrelay.testing import RelayServer


@pytest.fixture
def relay_server() -> Iterator[Callable[..., RelayServer]]:
    """Start servers as `wsrelay.testing.serve` does, until the test is over."""
    from wsrelay.testing import serve  # noqa: PLC0415 - tests without it shall not load a server

    with contextlib.ExitStack() as stack:

        def start(target: Any, **options: Any) -> RelayServer:
            return stack.enter_context(serve(target, **options))

        yield start
