import json

import uvicorn
from fastapi import FastAPI, Response

from wsrelay import Node, WebSocketRelay, process

node = Node()
app = FastAPI(lifespan=node.lifespan)
app.add_middleware(WebSocketRelay, node=node)


def echo() -> None:
    for message in process.inbox():
        if message.topic == "ws.message":
            payload = {"type": message.payload["type"], "data": message.payload["data"]}
            process.send(message.payload["client_pid"], "ws.send", payload)


@app.get("/ws")
async def connect() -> Response:
    return Response(headers={"X-WS-Relay": json.dumps({"target_pid": process.spawn(echo)})})


if __name__ == "__main__":
    uvicorn.run("own_node:app", port=0, ws="wsproto", http="h11", workers=2)
