"""The fixture `relay_server`, for every project that has wsrelay installed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .testing import RelayServer


@pytest.fixture
def relay_server() -> Iterator[Callable[..., RelayServer]]:
    """Start servers as `wsrelay.testing.serve` does; they end with the test.

    The function takes a handler (a script, or a function of the test), the path of a YAML
    configuration, or an ASGI application, and returns a `wsrelay.testing.RelayServer`.
    """
    from .testing import serve  # noqa: PLC0415 - tests that do not use it must not load a server

    with contextlib.ExitStack() as stack:

        def start(target: Any, **options: Any) -> RelayServer:
            __tracebackhide__ = True
            server = serve(target, **options)
            server.__enter__()  # not with `enter_context`, whose lines pytest would show
            stack.push(server)
            return server

        yield start
