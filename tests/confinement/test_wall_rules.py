"""The table of what a process of a walled-in host may do, row by row."""

from __future__ import annotations

import sys
import typing
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec import Raw

from wsrelay import PID, Filesystem, HostOptions, Isolation, Node, NotAllowed, wire
from wsrelay.node import walls
from wsrelay.values.bounds import InvalidOptions
from wsrelay.values.rights import Rights
from wsrelay.wire import payload

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux has walls"),
]

NO_NETWORK = Isolation(network="none")


# The table

HERE, THERE = "{local@jail|1}", "{local@trusted|2}"
CLIENT = "{local@gateway|3}"
NOBODY = "{local@trusted|4}"
RUN = "{local@trusted|5}"
HELD = "jail/held"


class World:
    """What the rules see: a process in each host, one that runs for an `exec`, and a client.

    The process in the jail has been cancelled and holds a name whose successor is in the other.
    """

    def __init__(self) -> None:
        there = dict.fromkeys((THERE, CLIENT, "lobby", RUN, HELD), "trusted")
        self.hosts = {HERE: "jail", **there}

    def host_of(self, to: str) -> str | None:
        return self.hosts.get(to)

    def is_connection(self, to: str) -> bool:
        return to == CLIENT

    def home(self, target: str | None) -> str | None:
        return {"app:room": "trusted"}.get(target or "")

    def is_registered(self, name: str) -> bool:
        return name == "lobby"

    def holds(self, caller: PID, name: str) -> bool:
        return (caller, name) == (HERE, HELD)

    def awaits(self, caller: PID, pid: str) -> bool:
        return (caller, pid) == (HERE, RUN)


def spawn(host: str, target: str | None = None, *, plain: bool = False) -> wire.SpawnFrame:
    return wire.SpawnFrame("{local@x|1}", host, target, b"", plain=plain)


def content(value: Any) -> Raw:
    return Raw(payload.encode(value))


# Of each kind of frame those that are allowed, and those that are not; None: there are none.
FRAMES: dict[type[wire.Frame], tuple[list[wire.Frame], list[wire.Frame] | None]] = {
    wire.ReadyFrame: ([wire.ReadyFrame()], None),
    wire.AckFrame: ([wire.AckFrame(1)], None),
    wire.LogFrame: ([wire.LogFrame(20, "x", "y")], None),
    wire.DoneFrame: ([wire.DoneFrame(Raw(b"\xc0"), None, 0, [])], None),
    wire.OptionsFrame: ([wire.OptionsFrame(trap_links=True, end_when_empty=0.0)], None),
    wire.JoinReadFrame: ([wire.JoinReadFrame(CLIENT)], None),
    wire.LookupFrame: ([wire.LookupFrame(1, "lobby")], None),
    wire.MembersFrame: ([wire.MembersFrame(1, "all")], None),
    wire.DrainFrame: ([wire.DrainFrame(1, CLIENT)], None),
    wire.RosterFrame: ([wire.RosterFrame(1, "all")], None),
    wire.FenceFrame: ([wire.FenceFrame(1, None), wire.FenceFrame(2, "lobby")], None),
    wire.WatchFrame: ([wire.WatchFrame("all", 1)], None),
    wire.UnwatchFrame: ([wire.UnwatchFrame("all", 1)], None),
    wire.CallFrame: ([wire.CallFrame(1, to, "x", b"\xc0") for to in (THERE, CLIENT)], None),
    wire.AnswerFrame: ([wire.AnswerFrame(1, b"\xc0"), wire.AnswerFrame(2, b"", "no")], None),
    wire.ForgetFrame: ([wire.ForgetFrame(1)], None),
    wire.SendFrame: (
        [
            wire.SendFrame([HERE, THERE, CLIENT, "lobby"], "ws.send", content(1)),
            wire.SendFrame([HERE, THERE, NOBODY], "ws.close", content(None)),
            wire.SendFrame(THERE, "ws.control", content({"target_pid": THERE})),
        ],
        [
            wire.SendFrame(CLIENT, "ws.close", content(None)),
            wire.SendFrame([HERE, CLIENT], "ws.control", content({})),
            wire.SendFrame(CLIENT, "ws.control", Raw(b"\xc1")),
        ],
    ),
    wire.BroadcastFrame: (
        [
            wire.BroadcastFrame("all", "ws.send", content(1)),
            wire.BroadcastFrame("all", "x", content(1)),
        ],
        [wire.BroadcastFrame("all", topic, content({})) for topic in ("ws.close", "ws.control")],
    ),
    wire.SpawnFrame: (
        [spawn("jail"), spawn("jail", "os:getpid")],
        [spawn("trusted", "app:room", plain=True), spawn("trusted"), spawn("nowhere")],
    ),
    wire.ExecFrame: ([wire.ExecFrame(1, spawn("jail"))], [wire.ExecFrame(1, spawn("trusted"))]),
    wire.GetOrSpawnFrame: (
        [
            wire.GetOrSpawnFrame(1, "jail/x", spawn("jail")),
            wire.GetOrSpawnFrame(1, "lobby", spawn("trusted")),
        ],
        [
            wire.GetOrSpawnFrame(1, "x", spawn("jail")),
            wire.GetOrSpawnFrame(1, "jail/x", spawn("trusted")),
        ],
    ),
    wire.CancelFrame: (
        [wire.CancelFrame(HERE, ""), wire.CancelFrame(NOBODY, "")],
        [
            wire.CancelFrame(RUN, ""),
            wire.CancelFrame(THERE, ""),
            wire.CancelFrame(CLIENT, ""),
            wire.CancelFrame("lobby", ""),
        ],
    ),
    wire.TerminateFrame: (
        [wire.TerminateFrame(HERE), wire.TerminateFrame(NOBODY), wire.TerminateFrame(RUN)],
        [wire.TerminateFrame(THERE), wire.TerminateFrame(CLIENT), wire.TerminateFrame("lobby")],
    ),
    wire.RelateFrame: (
        [
            *[wire.RelateFrame("link", to) for to in (HERE, NOBODY)],
            *[wire.RelateFrame("monitor", to) for to in (HERE, THERE, CLIENT, NOBODY)],
            *[wire.RelateFrame("unmonitor", to) for to in (HERE, THERE, CLIENT, NOBODY)],
        ],
        [
            wire.RelateFrame("link", THERE),
            wire.RelateFrame("unlink", THERE),
            wire.RelateFrame("link", CLIENT),
        ],
    ),
    wire.JoinGroupFrame: (
        [wire.JoinGroupFrame("all", HERE)],
        [wire.JoinGroupFrame("all", to) for to in (THERE, CLIENT)],
    ),
    wire.LeaveGroupFrame: (
        [wire.LeaveGroupFrame("all", HERE)],
        [wire.LeaveGroupFrame("all", to) for to in (THERE, CLIENT)],
    ),
    wire.RegisterFrame: (
        [wire.RegisterFrame(1, "jail/x", HERE)],
        [wire.RegisterFrame(1, "x", HERE), wire.RegisterFrame(1, "jail/x", THERE)],
    ),
    wire.UnregisterFrame: (
        [wire.UnregisterFrame(1, "nobody's"), wire.UnregisterFrame(1, HELD)],
        [wire.UnregisterFrame(1, "lobby")],
    ),
    wire.SendAfterFrame: (
        [wire.SendAfterFrame("(local@jail|1-1)", 1, CLIENT, "ws.close", content(None))],
        None,
    ),
    wire.CancelTimerFrame: (
        [wire.CancelTimerFrame("(local@jail|1-1)")],
        [wire.CancelTimerFrame("(local@trusted|1-1)")],
    ),
}


def kinds(hint: Any) -> Iterator[type[wire.Frame]]:
    arguments = typing.get_args(hint)
    if not arguments:
        yield hint
    for one in arguments:
        yield from kinds(one)


def is_refused(frame: wire.Frame, rights: Rights) -> bool:
    """Whether it is refused, or kept from one of those whom it is for."""
    rule = walls.RULES[type(frame)]
    try:
        reach = rule(frame, PID(HERE), rights, World()) if rule is not None else None
        if reach is not None:
            to: Any = [HERE, CLIENT] if isinstance(frame, wire.BroadcastFrame) else frame.to  # type: ignore[attr-defined]
            for one in [to] if isinstance(to, str) else to:
                reach(one)
    except NotAllowed:
        return True
    return False


def test_each_frame_that_a_worker_can_write_has_its_rule() -> None:
    written = set(kinds(wire.FromWorker))
    assert set(walls.RULES) == written
    assert set(FRAMES) == written
    assert {kind for kind, rule in walls.RULES.items() if rule is None} == {
        kind for kind, (_, refused) in FRAMES.items() if refused is None
    }


@pytest.mark.parametrize("kind", FRAMES, ids=lambda kind: kind.__name__)
def test_a_rule_refuses_what_reaches_into_another_host(kind: type[wire.Frame]) -> None:
    allowed, refused = FRAMES[kind]
    rights = Rights("jail")
    assert [frame for frame in allowed if is_refused(frame, rights)] == []
    assert [frame for frame in refused or [] if not is_refused(frame, rights)] == []
    for frame in [*allowed, *(refused or [])]:
        assert type(frame) is kind


def test_a_receiver_is_looked_at_when_its_turn_comes() -> None:
    """Of many that is later than the frame, and clients move and targets start meanwhile."""
    moving = wire.SendFrame([CLIENT], "ws.control", content({"target_pid": NOBODY}))
    for frame in (wire.SendFrame([CLIENT], "ws.close", content(None)), moving):
        world = World()
        world.hosts[CLIENT] = "jail"
        rule = walls.RULES[wire.SendFrame]
        assert rule is not None
        reach = rule(frame, PID(HERE), Rights("jail"), world)
        assert reach is not None
        reach(CLIENT)
        world.hosts[NOBODY if frame is moving else CLIENT] = "trusted"
        with pytest.raises(NotAllowed):
            reach(CLIENT)


def test_the_host_that_may_do_something_to_one_may_not_do_it_to_another() -> None:
    others = Rights("jail", ("other",), ("other",), ("other",))
    everything = Rights("jail", ("trusted",), ("trusted",), ("*",))
    for _, refused in FRAMES.values():
        for frame in refused or []:
            assert is_refused(frame, others), frame
    still = [
        f for _, refused in FRAMES.values() for f in refused or [] if is_refused(f, everything)
    ]
    assert still == [
        spawn("trusted"),
        spawn("nowhere"),
        wire.ExecFrame(1, spawn("trusted")),
        wire.GetOrSpawnFrame(1, "jail/x", spawn("trusted")),
    ]


# Options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"may_spawn": ("b",)}, "may_spawn needs user, filesystem or network"),
        ({"may_control": ("b",)}, "may_control needs user, filesystem or network"),
        ({"may_name": ("b",)}, "may_name needs user, filesystem or network"),
        (
            {"may_spawn": "b", "isolation": NO_NETWORK},
            "may_spawn is 'b' and must be texts in a tuple",
        ),
        (
            {"may_control": (1,), "isolation": NO_NETWORK},
            "may_control is (1,) and must be texts in a tuple",
        ),
        (
            {"may_name": ("",), "isolation": NO_NETWORK},
            "may_name is ('',) and must be texts in a tuple",
        ),
    ],
)
def test_rights_that_cannot_be_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidOptions) as refused:
        HostOptions(name="a", **options)
    assert said in str(refused.value)


@pytest.mark.parametrize("option", ["may_spawn", "may_control"])
async def test_rights_over_a_host_that_there_is_not_are_refused(option: str) -> None:
    rights: dict[str, Any] = {option: ("typo",)}
    hosts = [HostOptions(name="a", isolation=NO_NETWORK, **rights)]
    said = f"host a: {option} names 'typo'; there is a"
    with pytest.raises(InvalidOptions, match=said):
        Node(hosts=hosts)
    async with Node() as node:
        with pytest.raises(InvalidOptions, match=said):
            await node.reconfigure(hosts, {})


def test_no_walled_in_host_is_named_as_what_another_may_name() -> None:
    outer, inner = (HostOptions(name=name, isolation=NO_NETWORK) for name in ("a", "a/b"))
    with pytest.raises(InvalidOptions, match="host a/b: name begins with a/"):
        Node(hosts=[outer, inner])
    Node(hosts=[outer, HostOptions(name="ab", isolation=NO_NETWORK)])


@pytest.mark.parametrize(
    ("walls_", "walled"),
    [
        (Isolation(), False),
        (Isolation(no_new_privs=True, umask=0o077, environment=()), False),
        (Isolation(user="nobody"), True),
        (Isolation(filesystem=Filesystem()), True),
        (NO_NETWORK, True),
    ],
)
def test_a_host_is_walled_in_by_user_filesystem_or_network(walls_: Isolation, walled: bool) -> None:
    rights = HostOptions(name="a", isolation=walls_).rights
    assert rights == (Rights("a") if walled else None)
