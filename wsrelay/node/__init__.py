"""The node: carries out the kernel's effects, routes messages, serves workers' requests."""

from __future__ import annotations

from wsrelay.confinement import Filesystem, HostOptions, Isolation, Limits

from .arrival import Arrival, NoTarget
from .connections import Connection, Connections
from .endpoint import Endpoint, Mail
from .info import ConnectionInfo, NodeInfo, ProcessInfo
from .node import Node
from .process import WorkerProcess
from .snapshot import describe
from .target import RelayTarget

__all__ = [
    "Arrival",
    "Connection",
    "ConnectionInfo",
    "Connections",
    "Endpoint",
    "Filesystem",
    "HostOptions",
    "Isolation",
    "Limits",
    "Mail",
    "NoTarget",
    "Node",
    "NodeInfo",
    "ProcessInfo",
    "RelayTarget",
    "WorkerProcess",
    "describe",
]
