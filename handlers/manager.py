"""A service: it is always there, is started again when it fails, and is found by its name.

It keeps a roll of rooms: send it `opened` or `closed` with a room's name, and `roll` to be told.

wsrelay send app:manager.service opened '"blue"'
"""

import logging

from wsrelay import process

logger = logging.getLogger(__name__)


def handler() -> None:
    """Keep the roll until the node ends."""
    rooms: set[str] = set()
    for message in process.inbox():
        match message.topic, message.payload:
            case "opened", str(room):
                rooms.add(room)
            case "closed", str(room):
                rooms.discard(room)
            case "roll", _:
                process.send(message.sender, "roll", sorted(rooms))
        logger.info("%s: rooms are %s", message.topic, ", ".join(sorted(rooms)) or "none")
