import logging

from fastapi import FastAPI

from wsrelay import RelayResponse, WebSocketRelay, process

app = FastAPI(title="A titled application")
app.add_middleware(WebSocketRelay)


def echo() -> None:
    logging.getLogger("room").info("started")
    for message in process.inbox():
        match message.topic:
            case "ws.message":
                process.send(message.sender, "ws.send", {"type": "text", "data": message.data})
            case "double":
                message.reply(2 * message.payload)


@app.get("/ws")
async def connect() -> RelayResponse:
    return RelayResponse(target=echo)
