import json

from fastapi import FastAPI, Response

from wsrelay import WebSocketRelay, process

app = FastAPI()
app.add_middleware(WebSocketRelay)


def echo() -> None:
    for message in process.inbox():
        if message.topic == "ws.message":
            payload = {"type": message.payload["type"], "data": message.payload["data"]}
            process.send(message.payload["client_pid"], "ws.send", payload)


@app.get("/ws")
async def connect() -> Response:
    return Response(headers={"X-WS-Relay": json.dumps({"target_pid": process.spawn(echo)})})
