"""The `X-WS-Relay` response header."""

from __future__ import annotations

import json
import re
from typing import Any, Final

import msgspec
from msgspec import Struct

from wsrelay.errors import InvalidPID, PayloadError, RelayRefused
from wsrelay.values import durations
from wsrelay.values.message import MESSAGE
from wsrelay.values.pid import LONGEST, PID
from wsrelay.wire import payload

__all__ = [
    "HEADER",
    "MOST_METADATA",
    "RelayHeader",
    "check_subprotocol",
    "check_topic",
    "heartbeat",
    "parse",
    "write",
]

HEADER: Final = "x-ws-relay"

_LEAST_HEARTBEAT: Final = 0.01
MOST_METADATA: Final = 256 * 1024
"""Bytes of metadata as MessagePack, which every connection keeps and every `ws.join` carries.

The whole head of a request, 64 KB by default, fits in twice, as `wsrelay run` may put it in.
"""
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""RFC 9110 section 5.6.2, which RFC 6455 section 4.1 requires of a subprotocol."""


class RelayHeader(Struct, frozen=True, kw_only=True):
    """How a connection is relayed; `heartbeat_interval` is in seconds, None for no heartbeats."""

    target_pid: PID
    message_topic: str = MESSAGE
    heartbeat_interval: float | None = None
    metadata: dict[str, Any] | None = None
    cancel_on_leave: bool = False


class _Header(Struct, forbid_unknown_fields=True, kw_only=True):
    target_pid: str
    message_topic: str = MESSAGE
    heartbeat_interval: str | None = None
    metadata: dict[str, Any] | None = None
    cancel_on_leave: bool = False


_decoder = msgspec.json.Decoder(_Header)


def parse(text: bytes, node: str) -> RelayHeader:
    """Parse the header's value; raises `RelayRefused` with the reason.

    `node` is the node name that is filled in if the target's PID has none.
    """
    try:
        header = _decoder.decode(text)
    except (ValueError, RecursionError) as error:
        raise RelayRefused(f"X-WS-Relay: {error}; given: {text[:200]!r}") from None
    try:
        _check_metadata(header.metadata)
        return RelayHeader(
            target_pid=PID(header.target_pid).on(node),
            message_topic=check_topic(header.message_topic),
            heartbeat_interval=heartbeat(header.heartbeat_interval),
            metadata=header.metadata,
            cancel_on_leave=header.cancel_on_leave,
        )
    except InvalidPID as error:
        raise RelayRefused(f"X-WS-Relay: target_pid: {error}") from None
    except PayloadError as error:
        raise RelayRefused(f"X-WS-Relay: metadata: {error}") from None
    except ValueError as error:
        raise RelayRefused(f"X-WS-Relay: {error}") from None


def write(relay: dict[str, Any]) -> str:
    """Return a header's value in ASCII; raises `RelayRefused` for what `parse` would refuse."""
    try:
        # json, not msgspec: header values have no defined encoding, and json escapes non-ASCII.
        text = json.dumps({key: value for key, value in relay.items() if value is not None})
    except (TypeError, ValueError, RecursionError) as error:
        raise RelayRefused(f"X-WS-Relay cannot be written as JSON: {error}") from None
    parse(text.encode(), "local")
    return text


def _check_metadata(metadata: dict[str, Any] | None) -> None:
    """Raise `ValueError` if it is too large, `PayloadError` if MessagePack cannot hold it."""
    size = len(payload.encode(metadata))
    if size > MOST_METADATA:
        raise ValueError(
            f"metadata has {size} bytes as MessagePack, at most {MOST_METADATA} are allowed; let "
            "the process itself keep larger data, by client_pid"
        )


def check_topic(topic: str) -> str:
    """Return the topic; raises `ValueError` if it is empty, reserved or too long."""
    if not topic or topic.startswith("@"):
        raise ValueError(f"message_topic: {topic!r:.200} is empty or starts with the reserved @")
    if len(topic) > LONGEST:
        raise ValueError(
            f"message_topic has {len(topic)} characters, at most {LONGEST} are allowed"
        )
    return topic


def check_subprotocol(text: str) -> str:
    """Return the subprotocol; raises `ValueError` if it is not a valid one."""
    if _TOKEN.fullmatch(text) is None:
        raise ValueError(
            f"subprotocol {text!r} is not valid: it is made of letters, digits and "
            "!#$%&'*+-.^_`|~, such as chat.v1"
        )
    return text


def heartbeat(text: str | None) -> float | None:
    """Return the interval in seconds; raises `ValueError` if it is not a duration or too short."""
    if text is None:
        return None
    try:
        return durations.parse(text, least=_LEAST_HEARTBEAT)
    except ValueError as error:
        raise ValueError(f"heartbeat_interval: {error}") from None
