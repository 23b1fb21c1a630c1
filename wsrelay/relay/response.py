"""`RelayResponse`: the response of an HTTP handler that hands its client to a process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from wsrelay.errors import RelayRefused
from wsrelay.session import header

__all__ = ["RelayResponse"]


class RelayResponse(Response):
    """A Starlette response with the `X-WS-Relay` header.

    `heartbeat_interval` is a duration such as `30s`. `subprotocol` is one that the client offers
    (`request.scope["subprotocols"]`); a browser that offers some closes if none is selected. Raises
    `RelayRefused` for anything that the relay would refuse.
    """

    def __init__(
        self,
        target_pid: str,
        *,
        message_topic: str | None = None,
        heartbeat_interval: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        cancel_on_leave: bool | None = None,
        subprotocol: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        relay = {
            "target_pid": target_pid,
            "message_topic": message_topic,
            "heartbeat_interval": heartbeat_interval,
            "metadata": None if metadata is None else dict(metadata),
            "cancel_on_leave": cancel_on_leave,
        }
        both = {**(headers or {}), header.HEADER: header.write(relay)}
        if subprotocol is not None:
            try:
                both["sec-websocket-protocol"] = header.check_subprotocol(subprotocol)
            except ValueError as error:
                raise RelayRefused(str(error)) from None
        super().__init__(headers=both)
