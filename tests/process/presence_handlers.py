"""Handlers that watch groups; each returns what it saw."""

from __future__ import annotations

from typing import Any

from relating import WAIT, both, end, error_of, mortal, next_payload, now, rest

from wsrelay import Presence, process


def plain(one: Presence) -> list[Any]:
    return [one.kind, one.pid, one.meta]


async def take(channel: Any, count: int) -> list[Any]:
    return [plain(await now(channel.receive(timeout=WAIT))) for _ in range(count)]


@both
async def watched(face: Any) -> list[Any]:
    """Each change of a group, by names that the test knows."""
    one, two = face.spawn(mortal), face.spawn(mortal)
    groups = face.groups
    groups.join("g", one, meta={"n": (1, 2)})
    groups.join("g", two)
    watch = groups.watch("g")
    groups.join("g", meta="me")
    groups.join("g", one, meta={"n": 3})
    groups.join("g", one, meta={"n": 3})
    groups.join("g", one)
    groups.join("h", one, meta="elsewhere")
    groups.leave("g", two)
    groups.join("g", two)
    names = {one: "one", two: "two", face.pid(): "me"}
    seen = [[kind, names[pid], meta] for kind, pid, meta in await take(watch, 6)]
    await now(groups.members(""))  # by now whatever else there is has arrived
    return [*seen, await error_of(watch.receive, timeout=0)]


@both
async def rostered(face: Any) -> list[Any]:
    one, groups = face.spawn(mortal), face.groups
    seen = [await now(groups.roster("g"))]
    groups.join("g", one)
    groups.join("g", meta={"name": "me"})
    groups.join("g", one, meta=[1, None])
    members = await now(groups.roster("g"))
    assert members[0] == type(members[0])(one, [1, None])
    seen.append(
        [
            [member.pid == pid, member.meta]
            for member, pid in zip(members, (one, face.pid()), strict=True)
        ]
    )
    return seen


@both
async def watch_the_dying(face: Any) -> list[Any]:
    """Members that end in every way have left with their last metadata."""
    groups, watch = face.groups, face.groups.watch("g")
    seen = []
    for way, argument in (
        ("return", 1),
        ("raise", "why"),
        ("kill", "SIGKILL"),
        ("cancel", None),
        ("terminate", None),
    ):
        pid = face.spawn(mortal)
        groups.join("g", pid, meta="first")
        groups.join("g", pid, meta=way)
        await take(watch, 2)
        await end(face, pid, way, argument)
        [[kind, who, meta]] = await take(watch, 1)
        seen.append([kind, who == pid, meta])
    return [seen, await now(groups.members("g"))]


def say_and_leave(to: str, count: int) -> None:
    process.groups.join("g")
    for number in range(count):
        process.send(to, "number", number)


@both
async def watch_one_who_says(face: Any, count: int) -> list[Any]:
    """What a member said is in the inbox once it has left."""
    watch = face.groups.watch("g")
    face.spawn(say_and_leave, None, face.pid(), count)
    kinds = [kind for kind, _, _ in await take(watch, 2)]
    inbox = face.inbox()
    return [kinds, [(await now(inbox.receive(timeout=0))).payload for _ in range(count)]]


@both
async def unwatch(face: Any) -> list[Any]:
    groups, me = face.groups, face.pid()
    watch = groups.watch("g")
    seen: list[Any] = [groups.watch("g") == watch, groups.watch("h") != watch]
    groups.join("g", meta=1)
    groups.join("g", meta=2)
    await take(watch, 1)
    await now(groups.members(""))  # by now the other is there too
    face.unlisten(watch)
    face.unlisten(watch)
    groups.join("g", meta=3)
    again = groups.watch("g")
    seen += [again != watch, [plain(one)[1:] == [me, 2] for one in await rest(watch)]]
    seen.append(await error_of(watch.receive, timeout=WAIT))
    groups.leave("g")
    seen.append([[kind, meta] for kind, _, meta in await take(again, 2)])
    return seen


@both
async def watch_until_cancelled(face: Any) -> list[Any]:
    watch = face.groups.watch("g")
    face.groups.join("g", meta=1)
    face.cancel(face.pid())
    seen = [[one.kind, one.meta] for one in await rest(watch)]
    late = face.groups.watch("h")
    return [seen, await error_of(watch.receive), await error_of(late.receive)]


@both
async def watch_beside_messages(face: Any) -> list[Any]:
    """A watch is a channel as the others are: with a deadline, and for `select`."""
    watch, inbox = face.groups.watch("g"), face.inbox()
    seen: list[Any] = [await error_of(watch.receive, timeout=0)]
    await now(face.send(face.pid(), "x", "message"))
    channel, item = await now(face.select(watch, inbox, timeout=WAIT))
    seen.append([channel == inbox, item.payload])
    face.groups.join("g", meta="meta")
    channel, item = await now(face.select(watch, inbox, timeout=WAIT))
    return [*seen, [channel == watch, item.meta]]


@both
async def misuse(face: Any) -> list[str]:
    groups = face.groups
    groups.join("g", meta="right")
    told = [
        await error_of(groups.join, "g", meta={"a": [1, 3j]}),
        await error_of(groups.join, "g", meta=bytes(64 * 1024)),
        await error_of(groups.join, "g", "{nonsense", meta=1),
        await error_of(groups.watch, ""),
        await error_of(groups.watch, "{a}"),
        await error_of(groups.watch, 3),
        await error_of(groups.watch, "\ud800"),
        await error_of(groups.watch, "x" * 1001),
        await error_of(groups.roster, 3),
        await error_of(face.unlisten, face.inbox()),
    ]
    [[_, pid, meta]] = await take(groups.watch("g"), 1)
    return [*told, f"{pid == face.pid()} {meta}"]


@both
async def watch_one(face: Any) -> list[Any]:
    return await take(face.groups.watch("clients"), 2)


@both
async def watch_large(face: Any, pids: list[str], size: int) -> list[Any]:
    """Metadata of which one frame holds that of few members."""
    for pid in pids:
        face.groups.join("g", pid, meta=pid + "x" * size)
    shown = await take(face.groups.watch("g"), len(pids))
    seen = [[kind, pid, meta == pid + "x" * size] for kind, pid, meta in shown]
    return [
        seen == [["joined", pid, True] for pid in pids],
        await error_of(face.groups.roster, "g"),
    ]


def come_and_go(times: int) -> None:
    for number in range(times):
        process.groups.join("g", meta=number)
        process.groups.join("g", meta=-number)
        if number % 3 == 0:
            process.groups.leave("g")
    next(iter(process.inbox()))


@both
async def watch_in_the_middle(face: Any, members: int, times: int) -> list[Any]:
    """Begin watches again and again while members come, change and go; gives what they showed."""
    groups, rounds = face.groups, []
    pids = [face.spawn(come_and_go, None, times) for _ in range(members)]
    for _ in range(20):
        watch = groups.watch("g")
        rounds.append(await take(watch, members))  # at the end, each of them has joined
        face.unlisten(watch)
    watch = groups.watch("g")
    here: dict[str, Any] = {}
    last = dict.fromkeys(pids, 1 - times)
    rounds.append([])
    while here != last:
        [[kind, pid, meta]] = await take(watch, 1)
        rounds[-1].append([kind, pid, meta])
        here[pid] = meta
        if kind == "left":
            del here[pid]
    roster = {member.pid: member.meta for member in await now(groups.roster("g"))}
    return [rounds, roster == last, await error_of(watch.receive, timeout=0)]


def watch_and_read_nothing(tell: str) -> None:
    process.groups.watch("g")
    process.send(tell, "watches")
    process.events().receive()


@both
async def overflow(face: Any) -> list[Any]:
    """Change metadata until a watcher that reads nothing has ended."""
    idle = face.spawn_monitored(watch_and_read_nothing, "small", face.pid())
    await next_payload(face)
    for number in range(10):
        face.groups.join("g", meta=bytes([number]) * 60_000)
    event = await now(face.events().receive(timeout=WAIT))
    return [event.sender == idle, event.result.error.kind, event.result.error.message]
