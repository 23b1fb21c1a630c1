"""The `X-WS-Relay` response header."""

from __future__ import annotations

import json
import re
from typing import Any, Final

import msgspec
from msgspec import UNSET, Struct, UnsetType

from wsrelay.errors import InvalidPID, PayloadError, RelayRefused
from wsrelay.values import durations
from wsrelay.values.message import MESSAGE
from wsrelay.values.pid import LONGEST, PID, nameable
from wsrelay.wire import payload

__all__ = [
    "HEADER",
    "MOST_METADATA",
    "RelayHeader",
    "TargetSpec",
    "check_subprotocol",
    "check_topic",
    "end_when_empty",
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


class TargetSpec(Struct, frozen=True, kw_only=True):
    """A target that the relay starts, or finds by its name.

    `target` and `host` are as in `wsrelay.process.spawn`, `name` as in `get_or_spawn`;
    `end_when_empty` is in seconds, None for never.
    """

    target: str
    name: str | None = None
    host: str | None = None
    args: tuple[Any, ...] = ()
    end_when_empty: float | None = None


class RelayHeader(Struct, frozen=True, kw_only=True):
    """How a connection is relayed; `heartbeat_interval` is in seconds, None for no heartbeats.

    It has a `target_pid`, a `spec`, or both: the spec and the target that was started by it.
    """

    target_pid: PID | None = None
    spec: TargetSpec | None = None
    message_topic: str = MESSAGE
    heartbeat_interval: float | None = None
    metadata: dict[str, Any] | None = None
    cancel_on_leave: bool = False


class _Header(Struct, forbid_unknown_fields=True, kw_only=True):
    target_pid: str | None = None
    target: str | None = None
    name: str | None = None
    host: str | None = None
    args: list[Any] | None = None
    end_when_empty: str | None = None
    message_topic: str = MESSAGE
    heartbeat_interval: str | None = None
    metadata: dict[str, Any] | None = None
    cancel_on_leave: bool | UnsetType = UNSET


_WITH_TARGET: Final = ("name", "host", "args", "end_when_empty")
"""Fields that say something of what `target` starts."""

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
        _check_size("metadata", header.metadata)
        spec = _spec(header)
        return RelayHeader(
            target_pid=None if header.target_pid is None else PID(header.target_pid).on(node),
            spec=spec,
            message_topic=check_topic(header.message_topic),
            heartbeat_interval=heartbeat(header.heartbeat_interval),
            metadata=header.metadata,
            # A process without a name is found by nobody else.
            cancel_on_leave=(
                spec is not None and spec.name is None
                if header.cancel_on_leave is UNSET
                else header.cancel_on_leave
            ),
        )
    except InvalidPID as error:
        raise RelayRefused(f"X-WS-Relay: target_pid: {error}") from None
    except (PayloadError, ValueError) as error:
        raise RelayRefused(f"X-WS-Relay: {error}") from None


def write(relay: dict[str, Any]) -> str:
    """Return a header's value in ASCII; raises `RelayRefused` for what `parse` would refuse."""
    try:
        # json, not msgspec: header values have no defined encoding, and json escapes non-ASCII.
        given = {key: value for key, value in relay.items() if value is not None}
        text = json.dumps(given, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RelayRefused(f"X-WS-Relay cannot be written as JSON: {error}") from None
    parse(text.encode(), "local")
    return text


def _spec(header: _Header) -> TargetSpec | None:
    """Return what the header says of a target to start; raises `ValueError`."""
    pid, target, name = header.target_pid, header.target, header.name
    if pid is not None and target is not None:
        raise ValueError(
            f"it has target_pid {pid!r:.200} and target {target!r:.200}, and must have one of them"
        )
    if target is None:
        if pid is None:
            raise ValueError(
                "it has neither target_pid (the PID of a process) nor target (what to start: the "
                "id of an entry, module:function or path/to/script.py:function)"
            )
        given = [field for field in _WITH_TARGET if getattr(header, field) is not None]
        if given:
            raise ValueError(
                f"it has {', '.join(given)} and target_pid {pid!r:.200}: a process that exists "
                "takes none of them; they go with target, which starts one"
            )
        return None
    if not header.host and header.host is not None:
        raise ValueError("host is empty; name a process host, or leave it out for the target's own")
    _check_ends(header)
    _check_size("args", header.args)
    return TargetSpec(
        target=target,
        name=None if name is None else nameable(name),
        host=header.host,
        args=tuple(header.args or ()),
        end_when_empty=end_when_empty(header.end_when_empty),
    )


def _check_ends(header: _Header) -> None:
    """Raise `ValueError` where it is not clear when the process that is started ends."""
    name, cancel = header.name, header.cancel_on_leave
    if name is None:
        if header.end_when_empty is not None:
            raise ValueError(
                f"end_when_empty is {header.end_when_empty!r:.80} and there is no name: without a "
                "name the process ends with its one connection; give it a name, or leave "
                "end_when_empty out"
            )
        if cancel is False:
            raise ValueError(
                "cancel_on_leave is false and there is no name: nobody else could find the "
                "process again; give it a name, or leave cancel_on_leave out"
            )
    elif cancel is True:
        raise ValueError(
            f"cancel_on_leave is true and the name is {name!r:.80}: others may be in that process; "
            "write end_when_empty: '0s' to end it when the last of them has left"
        )


def _check_size(field: str, content: Any) -> None:
    """Raise `ValueError` if it is too large, `PayloadError` if MessagePack cannot hold it."""
    try:
        size = len(payload.encode(content))
    except PayloadError as error:
        raise PayloadError(f"{field}: {error}") from None
    if size > MOST_METADATA:
        raise ValueError(
            f"{field} has {size} bytes as MessagePack, at most {MOST_METADATA} are allowed; let "
            "the process itself load larger data, or keep it by client_pid"
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


def end_when_empty(text: str | None) -> float | None:
    """Return the duration in seconds; raises `ValueError` if it is not one."""
    if text is None:
        return None
    try:
        return durations.parse(text)
    except ValueError as error:
        raise ValueError(f"end_when_empty: {error}") from None
