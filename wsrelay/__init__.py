"""Stateful WebSocket backends in Python whose rooms are real OS processes.

Some names are imported on first use: every worker loads this package, and workers need no ASGI.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .errors import (
    CallError,
    CannotJoin,
    ChannelClosed,
    HostFailed,
    HostFull,
    InvalidCall,
    InvalidMessage,
    InvalidName,
    InvalidPID,
    InvalidReply,
    InvalidTarget,
    NameNotFound,
    NameTaken,
    NodeBusy,
    NoQuorum,
    NotAllowed,
    NotAProcess,
    PayloadError,
    ProcessError,
    ReservedTopic,
    RoomReceives,
    TooMany,
    UnknownHost,
    WsrelayError,
)
from .values.client import Client
from .values.message import Event, ExitError, ExitKind, Message, Result, Tick
from .values.pid import PID
from .values.presence import Member, Presence
from .values.timer import Timer

if TYPE_CHECKING:
    from .confinement import Filesystem, HostOptions, Isolation, Limits
    from .gateway.configured import from_config
    from .node import Node
    from .node.supervisor import RestartPolicy, Service, Supervisor
    from .peers.options import Cluster, ClusterTLS
    from .relay.middleware import WebSocketRelay
    from .relay.response import RelayResponse
    from .relay.static import static
    from .room import Room, answers, every, on

__all__ = [
    "PID",
    "CallError",
    "CannotJoin",
    "ChannelClosed",
    "Client",
    "Cluster",
    "ClusterTLS",
    "Event",
    "ExitError",
    "ExitKind",
    "Filesystem",
    "HostFailed",
    "HostFull",
    "HostOptions",
    "InvalidCall",
    "InvalidMessage",
    "InvalidName",
    "InvalidPID",
    "InvalidReply",
    "InvalidTarget",
    "Isolation",
    "Limits",
    "Member",
    "Message",
    "NameNotFound",
    "NameTaken",
    "NoQuorum",
    "Node",
    "NodeBusy",
    "NotAProcess",
    "NotAllowed",
    "PayloadError",
    "Presence",
    "ProcessError",
    "RelayResponse",
    "ReservedTopic",
    "RestartPolicy",
    "Result",
    "Room",
    "RoomReceives",
    "Service",
    "Supervisor",
    "Tick",
    "Timer",
    "TooMany",
    "UnknownHost",
    "WebSocketRelay",
    "WsrelayError",
    "answers",
    "every",
    "from_config",
    "on",
    "static",
]

_LAZY = {
    "Cluster": ".peers.options",
    "ClusterTLS": ".peers.options",
    "Filesystem": ".confinement",
    "HostOptions": ".confinement",
    "Isolation": ".confinement",
    "Limits": ".confinement",
    "Node": ".node",
    "RelayResponse": ".relay.response",
    "RestartPolicy": ".node.supervisor",
    "Room": ".room",
    "Service": ".node.supervisor",
    "Supervisor": ".node.supervisor",
    "WebSocketRelay": ".relay.middleware",
    "answers": ".room",
    "every": ".room",
    "from_config": ".gateway.configured",
    "on": ".room",
    "static": ".relay.static",
}


def __getattr__(name: str) -> Any:
    if (module := _LAZY.get(name)) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(module, __name__), name)
