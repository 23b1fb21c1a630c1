"""A process that does what its clients say, and echoes the rest."""

from wsrelay import process


def handler() -> None:
    for message in process.inbox():
        if message.client is None or message.topic != "ws.message":
            continue
        data = message.payload["data"]
        match data.split(" ", 1) if isinstance(data, str) else []:
            case ["close", code]:
                process.send(message.client, "ws.close", {"code": int(code), "reason": "asked"})
            case ["news", text]:
                process.send(message.client, "news", {"text": text})
            case ["crash"]:
                raise ZeroDivisionError
            case _:
                echo = {"type": message.payload["type"], "data": data}
                process.send(message.client, "ws.send", echo)
