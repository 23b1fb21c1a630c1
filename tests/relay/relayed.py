"""What the tests of the relay share."""

from __future__ import annotations

import functools
from typing import Any

from support import client as plain_client

from wsrelay import Node, WebSocketRelay

client = functools.partial(plain_client, compression="deflate")  # offers it, as browsers do


def relayed(node: Node, app: Any, **options: Any) -> WebSocketRelay:
    return WebSocketRelay(app, node=node, **options)
