from __future__ import annotations

import pytest

from wsrelay import wire
from wsrelay.values.pid import PID
from wsrelay.wire.relayed import relay_head, relayed

CLIENT = PID("{local@gateway|k3f9.0-1}")
SIZES = [0, 1, 31, 32, 33, 255, 256, 65_535, 65_536, 200_000]


@pytest.mark.parametrize("topic", ["ws.message", "größer", "t" * 300])
@pytest.mark.parametrize("size", SIZES)
def test_a_client_s_message_has_the_bytes_of_its_frame(size: int, topic: str) -> None:
    head = relay_head(topic, CLIENT)
    for kind, data in (("text", "x" * size), ("text", "é" * (size // 2)), ("binary", bytes(size))):
        packed = wire.pack(wire.RelayFrame(topic, str(CLIENT), {"type": kind, "data": data}))
        content = data if isinstance(data, bytes) else data.encode()
        assert relayed(head, content, is_text=kind == "text") == packed
