"""A service: it runs all the time, is restarted when it fails, and is found by its name.

It keeps a list of rooms: send it `opened` or `closed` with a room's name, and `roll` to get it.

wsrelay send app:manager.service opened '"blue"'
"""

import logging

from wsrelay import process

logger = logging.getLogger(__name__)


def handler() -> None:
    """Keep the list until the node stops."""
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
