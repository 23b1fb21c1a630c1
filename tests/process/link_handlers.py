"""Handlers that link."""

from __future__ import annotations

from typing import Any

from relating import (
    WAIT,
    both,
    crash,
    deaf,
    end,
    gone,
    more_events,
    mortal,
    next_event,
    next_payload,
    now,
)

from wsrelay import process


@both
async def link_and_wait(face: Any, pid: str, report_to: str | None = None) -> str:
    """Link, say so, and wait: for the partner's end, or for a message that ends us."""
    face.link(pid)
    if report_to is not None:
        await now(face.send(report_to, "linked", face.pid()))
    return str(await next_payload(face))


@both
async def link_and_raise(face: Any, pid: str) -> None:
    face.link(pid)
    crash()


@both
async def link_and_return(face: Any, pid: str) -> str:
    face.link(pid)
    return "done"


@both
async def trap(face: Any, way: str, argument: Any) -> list[Any]:
    """Trap links and see a linked process end; gives the event and what came besides."""
    face.set_options(trap_links=True)
    pid = face.spawn(mortal)
    face.link(pid)
    await end(face, pid, way, argument)
    await gone(face, pid)
    return [pid, await more_events(face)]


@both
async def trap_deaf(face: Any) -> list[Any]:
    """Trap links and cancel a linked process that goes on."""
    face.set_options(trap_links=True)
    pid = face.spawn(deaf, "hasty")
    face.link(pid)
    face.cancel(pid)
    return [pid, await next_event(face)]


@both
async def trap_one(face: Any, pid: str) -> list[Any]:
    face.set_options(trap_links=True)
    face.link(pid)
    return [await next_event(face), await more_events(face)]


@both
async def link_twice(face: Any) -> list[Any]:
    face.set_options(trap_links=True)
    pid = face.spawn_linked(mortal)
    face.link(pid)
    face.link(pid.replace("local@", ""))
    await end(face, pid, "raise")
    await gone(face, pid)
    return [event["kind"] for event in await more_events(face)]


@both
async def link_and_outlive(face: Any) -> str:
    """A partner that ends normally takes nobody along, trapped or not."""
    pid = face.spawn_linked(mortal)
    await end(face, pid, "return")
    await gone(face, pid)
    return "outlived"


@both
async def unlink_and_outlive(face: Any) -> str:
    pid = face.spawn_linked(mortal)
    face.unlink(pid)
    face.unlink(pid)
    await end(face, pid, "raise")
    await gone(face, pid)
    face.unlink(pid)
    return "outlived"


def unlink_from(pid: str) -> None:
    """Undo the link that the other side has made, then end with an error."""
    process.inbox().receive(timeout=WAIT)
    process.unlink(pid)
    crash()


@both
async def unlinked_by_partner(face: Any) -> str:
    pid = face.spawn_linked(unlink_from, None, face.pid())
    await now(face.send(pid, "go"))
    await gone(face, pid)
    return "outlived"


@both
async def untrap(face: Any, report_to: str) -> None:
    """Trap links, then not any more: the second end is one's own."""
    seen = [face.get_options()]
    face.set_options(trap_links=True)
    seen.append(face.get_options())
    first = face.spawn_linked(crash)
    event = await next_event(face)
    seen.append(event["kind"])
    face.set_options(trap_links=False)
    seen.append(face.get_options())
    assert event["sender"] == first
    await now(face.send(report_to, "seen", seen))
    face.spawn_linked(crash)
    await next_event(face)
