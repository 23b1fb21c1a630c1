"""Stateful WebSocket backends in Python whose rooms are real OS processes.

Names are imported on first use: every worker carries this package, and a worker needs no ASGI.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .errors import (
    ChannelClosed,
    HostFailed,
    HostFull,
    InvalidName,
    InvalidPID,
    InvalidTarget,
    NameNotFound,
    NameTaken,
    NotAllowed,
    NotAProcess,
    PayloadError,
    ProcessError,
    ReservedTopic,
    TooMany,
    UnknownHost,
    WsrelayError,
)
from .message import Event, ExitError, ExitKind, Message, Result
from .pid import PID

if TYPE_CHECKING:
    from .gateway.assembly import from_config
    from .node import Filesystem, HostOptions, Isolation, Limits, Node
    from .relay.middleware import WebSocketRelay
    from .relay.response import RelayResponse
    from .supervisor import RestartPolicy, Service, Supervisor

__all__ = [
    "PID",
    "ChannelClosed",
    "Event",
    "ExitError",
    "ExitKind",
    "Filesystem",
    "HostFailed",
    "HostFull",
    "HostOptions",
    "InvalidName",
    "InvalidPID",
    "InvalidTarget",
    "Isolation",
    "Limits",
    "Message",
    "NameNotFound",
    "NameTaken",
    "Node",
    "NotAProcess",
    "NotAllowed",
    "PayloadError",
    "ProcessError",
    "RelayResponse",
    "ReservedTopic",
    "RestartPolicy",
    "Result",
    "Service",
    "Supervisor",
    "TooMany",
    "UnknownHost",
    "WebSocketRelay",
    "WsrelayError",
    "from_config",
]

_LAZY = {
    "Filesystem": ".node",
    "HostOptions": ".node",
    "Isolation": ".node",
    "Limits": ".node",
    "Node": ".node",
    "RelayResponse": ".relay.response",
    "RestartPolicy": ".supervisor",
    "Service": ".supervisor",
    "Supervisor": ".supervisor",
    "WebSocketRelay": ".relay.middleware",
    "from_config": ".gateway.assembly",
}


def __getattr__(name: str) -> Any:
    if (module := _LAZY.get(name)) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(module, __name__), name)
