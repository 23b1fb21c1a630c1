"""Ten lines, and a WebSocket route of FastAPI's own beside the relay."""

from fastapi import WebSocket
from ten_lines import app

__all__ = ["app"]


@app.websocket("/native")
async def native(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)
