"""For tests of handlers: a node with our front end in a thread, and clients that expect.

    from wsrelay.testing import serve

    def test_echo():
        with serve("handlers/echo.py") as server, server.connect() as client:
            client.send("hello")
            client.expect("hello")

Under pytest the fixture `relay_server` does the same and ends everything after the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from types import EllipsisType, TracebackType
from typing import Any, Final, Self

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.typing import Origin, Subprotocol

from wsrelay.gateway.address import bind, url
from wsrelay.gateway.script import ScriptOptions, script_app
from wsrelay.gateway.server import FrontEnd, Server
from wsrelay.node import HostOptions, Node
from wsrelay.pid import PID

__all__ = ["Client", "RelayServer", "serve"]

Message = str | bytes
Expected = str | bytes | dict[str, Any] | list[Any] | re.Pattern[str] | Callable[[Any], Any]

_REMEMBERED: Final = 5
"""Messages before a mismatch that are shown with it."""


def serve(target: Any, *, host: HostOptions | None = None, **options: Any) -> RelayServer:
    """Return a server for a handler: text as in `wsrelay run`, or a function of the test itself.

    `options` are those of `ScriptOptions` (`scope`, `path`, `origins`, `heartbeat`,
    `room_linger`). Use it as a context manager.
    """
    return RelayServer(target, host or HostOptions(stop_timeout=2.0), options)


class RelayServer:
    """A node and our front end on a free port of the loopback, in a thread of their own."""

    def __init__(self, target: Any, host: HostOptions, options: dict[str, Any]) -> None:
        self._target = target
        self._host = host
        self._options = options
        self._clients: list[Client] = []
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self.url = ""
        """`ws://host:port`, without a path."""

    def __enter__(self) -> Self:
        """Start; raises what keeps it from starting, such as `HostFailed`."""
        self._thread = threading.Thread(target=self._run, name="wsrelay server")
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """End all clients, processes and the server."""
        for client in self._clients:
            client.close()
        self._loop.call_soon_threadsafe(self._front.stop)
        self._thread.join()

    def connect(
        self,
        path: str = "/ws",
        *,
        headers: dict[str, str] | None = None,
        origin: str | None = None,
        subprotocols: list[str] | None = None,
    ) -> Client:
        """Return a connected client; raises `websockets.InvalidStatus` if it is refused."""
        client = Client(
            f"{self.url}{path}",
            additional_headers=headers,
            origin=None if origin is None else Origin(origin),
            subprotocols=[Subprotocol(name) for name in subprotocols or ()] or None,
        )
        self._clients.append(client)
        return client

    @property
    def workers(self) -> dict[PID, int | None]:
        """The living processes with their operating system's process ids."""
        workers: dict[PID, int | None] = self._call(lambda: self.node.workers)
        return workers

    def kill(self, pid: str) -> None:
        """End a process at once, to see what its clients make of it."""
        self.node.terminate(pid)

    def _call(self, function: Callable[[], Any]) -> Any:
        async def call() -> Any:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - raised in the test's thread
            self._failure = error
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        named = isinstance(self._target, str)
        targets = (self._target,) if named else ()
        host = self._host
        fields = {name: getattr(host, name) for name in host.__struct_fields__}
        self.node = Node(hosts=[HostOptions(**{**fields, "targets": (*host.targets, *targets)})])
        options = ScriptOptions(target=self._target, **self._options)
        self._front = FrontEnd(self.node)
        with bind("127.0.0.1", 0) as listener:
            self.url = url(listener).replace("http", "ws", 1)
            server = Server(script_app(self.node, options), listener)
            await self._front.run([server], self._started.set)


class Client:
    """A WebSocket client that expects."""

    def __init__(self, url: str, **options: Any) -> None:
        self._seen: deque[Message] = deque(maxlen=_REMEMBERED)
        self._stack = contextlib.ExitStack()
        self._websocket = self._stack.enter_context(
            connect(
                url, compression=None, proxy=None, ping_interval=None, close_timeout=2, **options
            )
        )

    def __enter__(self) -> Self:
        """Be a context manager, which closes."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Close."""
        self.close()

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol that the server chose."""
        chosen: str | None = self._websocket.subprotocol
        return chosen

    def send(self, data: str | bytes | dict[str, Any] | list[Any]) -> None:
        """Send a message; a dict or a list as JSON."""
        self._websocket.send(data if isinstance(data, str | bytes) else json.dumps(data))

    def receive(self, timeout: float = 5.0) -> Message:
        """Return the next message; raises `AssertionError` if none comes in so many seconds."""
        try:
            message: Message = self._websocket.recv(timeout)
        except TimeoutError:
            raise AssertionError(f"no message within {timeout:g} s{self._context()}") from None
        except ConnectionClosed as error:
            raise AssertionError(
                f"no message but a close frame: {_close(error)}{self._context()}"
            ) from None
        self._seen.append(message)
        return message

    def expect(self, expected: Expected | EllipsisType, timeout: float = 5.0) -> Message:
        """Return the next message, which must be this; raises `AssertionError`.

        A dict or a list is compared with the message's JSON, a compiled pattern must match its
        whole text, a function must return something true for it, `...` is any message.
        """
        message = self.receive(timeout)
        if not _matches(message, expected):
            self._seen.pop()
            raise AssertionError(f"expected {_shown(expected)}, got {message!r}{self._context()}")
        return message

    def expect_close(self, code: int, reason: str | None = None, timeout: float = 5.0) -> None:
        """Read until the close frame, which must have this code; raises `AssertionError`."""
        deadline = time.monotonic() + timeout
        try:
            while True:
                self._seen.append(self._websocket.recv(max(0.0, deadline - time.monotonic())))
        except TimeoutError:
            raise AssertionError(f"no close frame within {timeout:g} s{self._context()}") from None
        except ConnectionClosed as error:
            got = error.rcvd
            if got is None or got.code != code or reason not in (None, got.reason):
                wanted = f"{code} {reason or ''}".rstrip()
                raise AssertionError(
                    f"expected close {wanted}, got {_close(error)}{self._context()}"
                ) from None

    def expect_nothing(self, seconds: float = 0.1) -> None:
        """Wait so long; raises `AssertionError` if a message comes, or the end."""
        try:
            message = self._websocket.recv(seconds)
        except TimeoutError:
            return
        except ConnectionClosed as error:
            raise AssertionError(f"expected nothing, got close {_close(error)}") from None
        raise AssertionError(f"expected nothing, got {message!r}{self._context()}")

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Close; a connection that is closed stays so."""
        self._websocket.close(code, reason)
        self._stack.close()

    def _context(self) -> str:
        return f"; before that: {', '.join(map(repr, self._seen))}" if self._seen else ""


def _matches(message: Message, expected: Any) -> bool:
    if expected is ...:
        return True
    if isinstance(expected, dict | list):
        try:
            return bool(json.loads(message) == expected)
        except ValueError:
            return False
    if isinstance(expected, re.Pattern):
        return isinstance(message, str) and expected.fullmatch(message) is not None
    if callable(expected):
        return bool(expected(message))
    return bool(message == expected)


def _shown(expected: Any) -> str:
    if isinstance(expected, re.Pattern):
        return f"text like {expected.pattern!r}"
    if callable(expected):
        return f"what {getattr(expected, '__name__', expected)} accepts"
    return repr(expected)


def _close(error: ConnectionClosed) -> str:
    got = error.rcvd
    return f"{got.code} {got.reason}".rstrip() if got else "1006, without a close frame"
