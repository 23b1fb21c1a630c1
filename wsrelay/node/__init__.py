"""The node: executes the kernel's effects, routes messages, serves what workers ask."""

from wsrelay.confinement import Filesystem, HostOptions, Isolation, Limits

from .clients import Clients, Connection
from .info import ConnectionInfo, NodeInfo, ProcessInfo, describe
from .node import Node

__all__ = [
    "Clients",
    "Connection",
    "ConnectionInfo",
    "Filesystem",
    "HostOptions",
    "Isolation",
    "Limits",
    "Node",
    "NodeInfo",
    "ProcessInfo",
    "describe",
]
