import logging
import os

from fastapi import FastAPI

from wsrelay import RelayResponse, WebSocketRelay, process

if os.environ.get("SET_UP") == "yes":
    logging.basicConfig(level=logging.INFO, format="mine: %(message)s")

app = FastAPI()
app.add_middleware(WebSocketRelay)


def room() -> None:
    log = logging.getLogger("room")
    for message in process.inbox():
        if message.topic == "ws.message":
            log.info("at info")
            log.warning("at warning")
            process.send(message.sender, "ws.send", {"type": "text", "data": "done"})
        elif message.topic == "question":
            process.send(message.sender, "answer", 42)


@app.get("/ws")
async def connect() -> RelayResponse:
    pid = process.spawn(room)
    for _ in range(2):
        process.send(pid, "question")
    return RelayResponse(pid)
