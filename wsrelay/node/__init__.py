"""The node: executes the kernel's effects, routes messages, serves what workers ask."""

from wsrelay.host import HostOptions

from .clients import Clients, Connection
from .node import Node

__all__ = ["Clients", "Connection", "HostOptions", "Node"]
