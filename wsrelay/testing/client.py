"""A WebSocket client for tests, which checks what it receives."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import EllipsisType
from typing import Any, Final, Self

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from .log import LogCapture

__all__ = ["Client"]

Message = str | bytes
Expected = str | bytes | dict[str, Any] | list[Any] | re.Pattern[str] | Callable[[Any], Any]

_REMEMBERED: Final = 5
"""Messages before a mismatch that are shown with it."""

_SKIPPED: Final = 10
"""Skipped messages, the last ones before a mismatch, that are shown with it."""


class Client:
    """A WebSocket client that checks what it receives.

    Methods that may fail a test set `__tracebackhide__`, so that pytest shows the test's own lines.
    """

    def __init__(self, url: str, log: LogCapture, **options: Any) -> None:
        self._seen: deque[Message] = deque(maxlen=_REMEMBERED)
        self._log = log
        self._sent_at = log.position()
        self._stack = contextlib.ExitStack()
        __tracebackhide__ = True
        try:
            websocket = connect(
                url, compression=None, proxy=None, ping_interval=None, close_timeout=2, **options
            )
        except InvalidStatus as error:
            for line in log.since(self._sent_at):
                error.add_note(line)
            raise error.with_traceback(None) from None
        self._websocket = self._stack.enter_context(websocket)

    def __enter__(self) -> Self:
        """Return the client, which is closed on exit."""
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
        self._sent_at = self._log.position()
        self._websocket.send(data if isinstance(data, str | bytes) else json.dumps(data))

    def receive(self, timeout: float = 5.0) -> Message:
        """Return the next message; raises `AssertionError` if none comes in `timeout` seconds."""
        __tracebackhide__ = True
        return self.expect(..., timeout)

    def expect(
        self, expected: Expected | EllipsisType, timeout: float = 5.0, *, skip: bool = False
    ) -> Message:
        """Return the next message; raises `AssertionError` if it is not the expected one.

        A dict or a list is compared with the message's JSON, a compiled pattern must match its
        whole text, a function must return something true for it, and `...` accepts any message.
        With `skip`, other messages are skipped until the expected one comes, for at most `timeout`
        seconds.
        """
        __tracebackhide__ = True
        wanted, skipped = _shown(expected), list[Message]()
        deadline = time.monotonic() + timeout
        while True:
            try:
                message: Message = self._websocket.recv(max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                none = "nothing else" if skipped else "nothing"
                raise self._mismatch(wanted, f"{none} within {timeout:g} s", skipped) from None
            except ConnectionClosed as error:
                raise self._mismatch(wanted, _close(error), skipped) from None
            if _matches(message, expected):
                self._seen += [*skipped, message]
                return message
            if not skip:
                raise self._mismatch(wanted, repr(message))
            skipped.append(message)

    def expect_close(self, code: int, reason: str | None = None, timeout: float = 5.0) -> None:
        """Read up to the close frame; raises `AssertionError` unless it has this code and reason.

        With None, any reason is accepted.
        """
        __tracebackhide__ = True
        wanted = f"close {code} {reason or ''}".rstrip()
        deadline = time.monotonic() + timeout
        try:
            while True:
                self._seen.append(self._websocket.recv(max(0.0, deadline - time.monotonic())))
        except TimeoutError:
            raise self._mismatch(wanted, f"no close frame within {timeout:g} s") from None
        except ConnectionClosed as error:
            got = error.rcvd
            if got is None or got.code != code or reason not in (None, got.reason):
                raise self._mismatch(wanted, _close(error)) from None

    def expect_nothing(self, seconds: float = 0.1) -> None:
        """Wait; raises `AssertionError` if a message or a close comes within `seconds`."""
        __tracebackhide__ = True
        try:
            message = self._websocket.recv(seconds)
        except TimeoutError:
            return
        except ConnectionClosed as error:
            raise self._mismatch("nothing", _close(error)) from None
        raise self._mismatch("nothing", repr(message))

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection; does nothing if it is closed already."""
        self._websocket.close(code, reason)
        self._stack.close()

    def _mismatch(self, wanted: str, got: str, skipped: Sequence[Message] = ()) -> AssertionError:
        """Say what came instead, after what, and what was logged since this client last sent."""
        text = f"expected {wanted}, got {got}"
        if skipped:
            others = len(skipped) - _SKIPPED
            more = f"{others} others and " if others > 0 else ""
            text += f"; skipped: {more}{', '.join(map(repr, skipped[-_SKIPPED:]))}"
        if self._seen:
            text += f"; before that: {', '.join(map(repr, self._seen))}"
        return AssertionError("\n".join([text, *self._log.since(self._sent_at)]))


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
    return "a message" if expected is ... else repr(expected)


def _close(error: ConnectionClosed) -> str:
    got = error.rcvd
    return f"close {got.code} {got.reason}".rstrip() if got else "close 1006, without a close frame"
