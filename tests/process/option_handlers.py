"""Handlers that set their options."""

from __future__ import annotations

from typing import Any

from relating import both, error_of, now

from wsrelay import process


@both
async def ends_when_empty(face: Any, given: Any) -> list[Any]:
    """Set the option; then wait for what comes of it."""
    face.set_options(end_when_empty=given)
    event = await now(face.events().receive(timeout=20))
    return [event.kind, event.reason]


@both
async def changed(face: Any) -> list[Any]:
    """Only what is given changes."""
    seen = [face.get_options()]
    several: list[dict[str, Any]] = [
        {"end_when_empty": "1m30s"},
        {"trap_links": True},
        {"end_when_empty": 90},
        {},
        {"end_when_empty": None},
    ]
    for given in several:
        face.set_options(**given)
        seen.append(face.get_options())
    return seen


@both
async def misused(face: Any) -> list[Any]:
    """Calls that raise change nothing."""
    wrong: list[dict[str, Any]] = [
        {"end_when_empty": "soon", "trap_links": True},
        {"end_when_empty": -1},
        {"end_when_empty": float("nan")},
        {"end_when_empty": True},
        {"trap_links": 1},
    ]
    errors = [await error_of(face.set_options, **given) for given in wrong]
    return [errors, face.get_options()]


def sets_it_later() -> None:
    """Echo, and set the option when told so."""
    for message in process.inbox():
        if message.topic == "set":
            process.set_options(end_when_empty=message.payload)
        elif message.client and message.topic == "ws.message":
            message.client.send(message.data)
