"""CPU-heavy rendering: a viewer's process computes tiles; a new request replaces the old one.

A request is JSON: `{"id": 1, "x": -0.5, "y": 0, "scale": 0.004, "width": 640, "height": 480}`,
where `scale` is the size of a pixel and `x`, `y` the centre. Each tile is one binary message: id,
left, top, width and height as little-endian uint32, then a byte per pixel: the share of iterations
after which it escaped, as 0 to 254, or 255 if it did not.

wsrelay serve -c handlers/mandelbrot.yaml
"""

import json
import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from wsrelay import ChannelClosed, Message, RelayResponse, process

TILE = 64
LARGEST = 4096
ITERATIONS = 400
ESCAPED = 4


class Picture:
    """The picture that a request asks for; raises `ValueError` for an invalid request."""

    def __init__(self, data: object) -> None:
        try:
            request = json.loads(data)  # type: ignore[arg-type]
            self.id = int(request["id"]) & 0xFFFFFFFF
            self.x, self.y, self.scale = (float(request[key]) for key in ("x", "y", "scale"))
            self.width, self.height = int(request["width"]), int(request["height"])
        except (ValueError, TypeError, KeyError, OverflowError):
            raise ValueError("send {id, x, y, scale, width, height} as JSON numbers") from None
        if not (0 < self.width <= LARGEST and 0 < self.height <= LARGEST):
            raise ValueError(f"width and height must be 1 to {LARGEST}")
        if not np.isfinite([self.x, self.y, self.scale]).all() or self.scale <= 0:
            raise ValueError("x, y and scale must be finite, and scale above 0")

    def tiles(self) -> Iterator[bytes]:
        """Render one tile after another."""
        for top in range(0, self.height, TILE):
            for left in range(0, self.width, TILE):
                yield self._tile(left, top)

    def _tile(self, left: int, top: int) -> bytes:
        width, height = min(TILE, self.width - left), min(TILE, self.height - top)
        xs = self.x + (left + np.arange(width) + 0.5 - self.width / 2) * self.scale
        ys = self.y + (top + np.arange(height) + 0.5 - self.height / 2) * self.scale
        shades = escapes(xs[None, :] + 1j * ys[:, None])
        return struct.pack("<5I", self.id, left, top, width, height) + shades.tobytes()


def escapes(points: NDArray[np.complex128]) -> NDArray[np.uint8]:
    """Return when each point escapes, as 0 to 254; 255 if it does not."""
    shades = np.full(points.shape, 255, np.uint8)
    z = np.zeros_like(points)
    inside = np.ones(points.shape, bool)
    for step in range(ITERATIONS):
        z[inside] = z[inside] ** 2 + points[inside]
        out = inside & (z.real**2 + z.imag**2 > ESCAPED)
        shades[out] = step * 254 // ITERATIONS
        inside &= ~out
        if not inside.any():
            break
    return shades


def handler() -> None:
    """Render for one viewer, and check for a newer request between tiles."""
    inbox = process.inbox()
    viewer = ""
    tiles: Iterator[bytes] = iter(())
    while True:
        tile = next(tiles, None)
        if tile is not None:
            process.send(viewer, "ws.send", {"type": "binary", "data": tile})
        try:
            message = inbox.receive(timeout=None if tile is None else 0)
        except TimeoutError:
            continue
        except ChannelClosed:
            return
        if message.client:
            viewer, tiles = message.client, requested(message) or tiles


def requested(message: Message) -> Iterator[bytes] | None:
    """Return the tiles of the picture that a message requests, None if it requests none."""
    if message.topic != "ws.message":
        return None
    try:
        return Picture(message.payload["data"]).tiles()
    except ValueError as error:
        answer = {"type": "text", "data": json.dumps({"error": str(error)})}
        process.send(message.sender, "ws.send", answer)
        return None


async def connect(_request: Request) -> Response:
    """Answer an upgrade with a process, which waits while its viewer does not read (`pause`)."""
    return RelayResponse(target="mandelbrot:viewer")
