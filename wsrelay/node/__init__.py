"""The node: executes the kernel's effects, routes messages, serves what workers ask."""

from wsrelay.host import HostOptions

from .node import Connection, Node

__all__ = ["Connection", "HostOptions", "Node"]
