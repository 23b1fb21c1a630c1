"""The console as a server of its own, for the user of this machine alone."""

from __future__ import annotations

from wsrelay.gateway.allowed_hosts import AllowedHosts
from wsrelay.node import HostOptions, Node
from wsrelay.relay.asgi import App
from wsrelay.relay.middleware import WebSocketRelay
from wsrelay.session.hosts import Hosts

from .pages import VIEW, pages
from .token_gate import TokenGate

__all__ = ["console_node", "standalone"]


def console_node() -> Node:
    """Return the node that the processes behind the pages run on; it is not shown itself."""
    return Node(name="console", hosts=[HostOptions(targets=(VIEW,))], control=False)


def standalone(node: Node, port: int, *, write: bool) -> tuple[App, str]:
    """Return the console of all nodes of this user, and the token that opens it.

    Under the name of another site that resolves to this machine, it answers nothing.
    """
    gate = TokenGate(pages(None, write=write), port)
    relay = WebSocketRelay(gate, node=node, native=False)
    return AllowedHosts(relay, Hosts(""), "wsrelay console"), gate.token
