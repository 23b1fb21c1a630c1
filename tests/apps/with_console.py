from fastapi import FastAPI

from wsrelay import Node, RelayResponse, WebSocketRelay, console, process

node = Node()
app = FastAPI(title="A shop", lifespan=node.lifespan)
app.add_middleware(WebSocketRelay, node=node)
app.mount("/console", console.app(node))


def echo() -> None:
    for message in process.inbox():
        if message.topic == "ws.message":
            process.send(message.sender, "ws.send", {"type": "text", "data": message.data})


@app.get("/ws/{room}")
async def connect(room: str) -> RelayResponse:
    return RelayResponse(target=echo, name=f"room:{room}")
