"""`python script.py`: a main module that serves, without a guard around that."""

import json
import os

import uvicorn
from fastapi import FastAPI, Response

from wsrelay import WebSocketRelay, process

print(f"main module runs as {__name__} in {os.getpid()}", flush=True)  # noqa: T201 - it is counted

app = FastAPI()
app.add_middleware(WebSocketRelay)
GREETING = "you said "


def reply(client: str, data: str) -> None:
    process.send(client, "ws.send", {"type": "text", "data": data})


def room() -> None:
    for message in process.inbox():
        if message.topic == "ws.message":
            reply(message.payload["client_pid"], GREETING + message.payload["data"])


@app.get("/ws")
def connect() -> Response:
    relay = {"target_pid": process.get_or_spawn("room", room)}
    return Response(headers={"X-WS-Relay": json.dumps(relay)})


uvicorn.run(app, port=0, ws="wsproto", http="h11")
