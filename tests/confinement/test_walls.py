"""Processes of a walled-in host reach for those of others, by calls and by frames of their own."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import Journal, client, closed, received, relay_to, serving, until
from websockets.asyncio.client import ClientConnection

from wsrelay import PID, Filesystem, HostOptions, Isolation, Node, WebSocketRelay, wire
from wsrelay.values.targets import TargetEntry

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux has walls"),
]

as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can change users")

NO_NETWORK = Isolation(network="none")
WALLS = [
    pytest.param("network", id="no network"),
    pytest.param("user", id="another user, no network, no files", marks=as_root),
]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user can reach."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        yield folder


class Scene:
    """A node with the hosts `jail` and `trusted`, and a puppet in each."""

    def __init__(self, node: Node, folder: Path) -> None:
        self.node = node
        self.script = folder / "trespassers.py"
        self.journals = {name: Journal(folder / name) for name in node.hosts}
        self.pids = {
            name: node.spawn(f"{self.script}:puppet", name, str(folder / name))
            for name in node.hosts
        }
        self.jailed, self.trusted = self.pids["jail"], self.pids["trusted"]
        self.journal = self.journals["jail"]

    async def do(self, *order: Any, host: str = "jail") -> Any:
        """Let a puppet do something; gives what it came to."""
        journal = self.journals[host]
        count = len(journal.lines("did")) + 1
        self.node.send(self.pids[host], "do", order)
        return (await journal.line("did", count))["payload"]

    async def refusal(self, *order: Any) -> str:
        """Let the one in jail do something, and wait for the `ws.error` that it gets."""
        count = len(self.journal.lines("ws.error")) + 1
        await self.do(*order)
        return str((await self.journal.line("ws.error", count))["payload"]["error"])

    async def victim(self, host: str = "trusted", function: str = "idle") -> PID:
        pid = self.node.spawn(f"{self.script}:{function}", host)
        assert await self.node.started(pid) is None
        return pid


@contextlib.asynccontextmanager
async def scene(
    folder: Path, walls_: Isolation = NO_NETWORK, **rights: Any
) -> AsyncIterator[Scene]:
    script = shutil.copy(Path(__file__).with_name("trespassers.py"), folder)
    targets = (f"{script}:puppet",)
    jail = HostOptions(name="jail", targets=targets, isolation=walls_, stop_timeout=2, **rights)
    hosts = [HostOptions(name="trusted", targets=targets, stop_timeout=2), jail]
    entries = {
        "app:double": TargetEntry(f"{script}:double", "trusted"),
        "app:give": TargetEntry(f"{script}:give"),
        "app:take": TargetEntry(f"{script}:take", "trusted"),
        "app:deaf": TargetEntry(f"{script}:deaf", "trusted"),
        "app:eval": TargetEntry(f"{script}:note", "jail"),
        "app:note": TargetEntry(f"{script}:note", "trusted"),
    }
    async with Node(hosts=hosts, entries=entries) as node:
        there = Scene(node, folder)
        for pid in there.pids.values():
            assert await node.started(pid) is None
        yield there


def isolation(kind: str, folder: Path) -> Isolation:
    if kind == "network":
        return NO_NETWORK
    files = Filesystem(write=(str(folder),))
    return Isolation(user="54321", group="54321", filesystem=files, network="none")


# Starting processes

HOWS = ["spawn", "spawn_monitored", "spawn_linked", "spawn_linked_monitored", "exec"]
FORGED = ["spawn", "exec", "get_or_spawn"]


@pytest.mark.parametrize("kind", WALLS)
async def test_code_of_a_walled_in_host_runs_in_no_other(folder: Path, kind: str) -> None:
    ran = folder / "ran"
    script = folder / "trespassers.py"
    targets = [None, f"{script}:note", "trespassers:note", "app:note"]
    async with scene(folder, isolation(kind, folder)) as there:
        for target in targets:
            for how in [*HOWS, "get_or_spawn"]:
                said = await there.do("start", how, target, "trusted", str(ran))
                assert said == (
                    "NotAllowed: a process of host 'jail', which is walled in, may not start one "
                    "in host 'trusted', unless jail has may_spawn: [trusted]"
                )
            for how in FORGED:
                said = await there.do("forge", how, target, "trusted", str(ran))
                assert "unless jail has may_spawn: [trusted]" in said
        assert set(there.node.workers) == {there.jailed, there.trusted}
        assert not ran.exists()
        # What is refused there runs here.
        assert await there.do("forge", "exec", None, "jail", str(ran)) is None
    assert len(ran.read_text().split()) == 1


async def test_asynchronous_calls_start_nothing_elsewhere_either(folder: Path) -> None:
    async with scene(folder) as there:
        script = folder / "trespassers.py"
        said = await there.do("call", "exec", f"{script}:reach", "jail", "trusted")
        assert [one.partition(":")[0] for one in said] == ["NotAllowed"] * 3


async def test_may_spawn_opens_entries_of_that_host_with_data_alone(folder: Path) -> None:
    ran = folder / "ran"
    script = folder / "trespassers.py"
    async with scene(folder, may_spawn=("trusted",)) as there:
        assert await there.do("call", "exec", "app:double", "trusted", 21) == 42
        given = [1, ["x", None], {"y": 2.5}]
        assert await there.do("call", "exec", "app:give", "trusted", *given) == [given, {}]
        pid = await there.do("call", "get_or_spawn", "jail/idle", "app:deaf", "trusted")
        assert PID(pid).host == "trusted"
        for target in (None, f"{script}:note", "trespassers:note", "app:missing"):
            said = await there.do("start", "exec", target, "trusted", str(ran))
            assert "may start nothing but declared entries in host 'trusted'" in said
            for how in FORGED:
                said = await there.do("forge", how, target, "trusted", str(ran))
                assert "may start nothing but declared entries in host 'trusted'" in said
        for order in ("start", "forge"):
            said = await there.do(order, "exec", "app:eval", "trusted", str(ran))
            assert "'app:eval' belongs to host 'jail', not to 'trusted'" in said
        for how in FORGED:
            said = await there.do("forge", how, "app:note", "trusted", str(ran))
            assert "with arguments that are data, not with a pickle" in said
    assert not ran.exists()


async def test_what_may_spawn_starts_has_the_rights_of_its_host(folder: Path) -> None:
    async with scene(folder, may_spawn=("trusted",)) as there:
        pid = await there.do("call", "exec", "app:take", "trusted", "lobby")
        assert PID(pid).host == "trusted"


async def test_arguments_that_are_no_data_are_refused_where_they_are_handed_over(
    folder: Path,
) -> None:
    async with scene(folder, may_spawn=("trusted",)) as there:
        said = await there.do("start", "exec", "app:note", "trusted", "code")
        assert said.startswith("PayloadError: a walled-in host can pass only data to what it")


async def test_what_exec_runs_elsewhere_ends_at_its_timeout(folder: Path) -> None:
    async with scene(folder, may_spawn=("trusted",)) as there:
        assert await there.do("exec_too_long", "app:deaf", "trusted") == "TimeoutError"
        await until(lambda: len(there.node.workers) == 2, "it was terminated")


async def test_a_link_at_the_start_needs_the_right_to_control(folder: Path) -> None:
    async with scene(folder, may_spawn=("trusted",)) as there:
        said = await there.do("start", "spawn_linked", "app:note", "trusted", "x")
        assert "may not be linked to what it starts, whose host is 'trusted'" in said
    both = ("trusted",)
    async with scene(folder, may_spawn=both, may_control=both) as there:
        pid = await there.do("call", "spawn_linked", "app:deaf", "trusted")
        assert there.node.kernel.relations
        assert PID(pid).host == "trusted"


# Control


async def test_a_walled_in_process_ends_links_and_groups_nobody_elsewhere(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with scene(folder) as there:
        node, victim = there.node, await there.victim()
        node.register("lobby", victim)
        node.join_group("members", victim)
        short = f"{{{victim.partition('@')[2]}"
        for to in (victim, short, "lobby"):
            for call in ("cancel", "terminate"):
                said = await there.refusal("call", call, to)
                assert f"may not {call}" in said
                assert "unless jail has may_control: [trusted]" in said
        for to in (victim, short):
            for call, what in (
                ("link", "link to"),
                ("unlink", "unlink"),
            ):
                assert f"may not {what} {to}" in await there.refusal("call", call, to)
            said = await there.refusal("call", "groups.join", "mine", to)
            assert f"may not put into groups {to}" in said
            said = await there.refusal("call", "groups.leave", "members", to)
            assert f"may not take out of groups {to}" in said
            said = await there.do("call", "registry.register", "jail/lobby", to)
            assert (
                f"NotAllowed: a process of host 'jail', which is walled in, may not name {to}"
                in said
            )
        said = await there.do("call", "registry.unregister", "lobby")
        assert "NotAllowed" in said
        assert "may not unregister 'lobby'" in said
        assert await node.started(victim) is None
        assert node.members("members") == [victim]
        assert node.members("mine") == []
        assert node.lookup("lobby") == victim
        assert not node.kernel.relations
        error = there.journal.lines("ws.error")[0]
        assert error["sender"] == node.pid()
        assert error["payload"]["topic"] == "process.cancel"
        told = [one for one in caplog.records if "called process.cancel" in one.getMessage()]
        assert len(told) == 1
        assert vars(told[0])["wsrelay_pid"] == there.jailed


async def test_the_frames_themselves_are_refused(folder: Path) -> None:
    """Whatever hostile code writes to its pipe."""
    async with scene(folder) as there:
        victim = await there.victim()
        frames: list[tuple[Any, ...]] = [
            ("Cancel", victim, "because"),
            ("Terminate", victim),
            ("Relate", "link", victim),
            ("Relate", "unlink", victim),
            ("JoinGroup", "group", victim),
            ("LeaveGroup", "group", victim),
        ]
        for frame in frames:
            assert "unless jail has may_control" in await there.refusal("frame", *frame)
        for asked in (("jail/x", victim), ("x", there.jailed)):
            assert "NotAllowed" in await there.do("ask", "Register", *asked)
        assert await there.node.started(victim) is None


async def test_a_refused_start_is_looked_at_like_others(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What stands in the log of it is no text that its frame has made up."""
    spawn = wire.SpawnFrame("{local@trusted|1}", "\x1b[2J", None, b"")
    for frame in (spawn, wire.ExecFrame(1, spawn), wire.GetOrSpawnFrame(1, "x", spawn)):
        async with scene(folder) as there:
            there.node.send(there.jailed, "do", ["raw", wire.pack(frame)])
            await until(lambda: there.jailed not in there.node.workers, "it was ended for that")
    assert caplog.text.count("it wrote garbage on its pipe") == 3
    assert "\x1b" not in caplog.text


async def test_its_own_host_s_processes_are_its_own(folder: Path) -> None:
    async with scene(folder) as there:
        node = there.node
        for call in ("cancel", "terminate"):
            victim = await there.victim("jail")
            await there.do("call", "monitor", victim)
            await there.do("call", "groups.join", "mine", victim)
            await there.do("call", "registry.register", "jail/victim", victim)
            assert node.members("mine") == [victim]
            assert node.lookup("jail/victim") == victim
            await there.do("call", call, victim)
            assert (await there.do("event"))[:2] == ["EXIT", victim]
        assert not there.journal.lines("ws.error")


async def test_monitors_and_messages_reach_everybody(folder: Path) -> None:
    async with scene(folder) as there:
        victim = await there.victim()
        await there.do("call", "monitor", victim)
        await there.do("call", "send", there.trusted, "hello", 1)
        assert (await there.journals["trusted"].line("hello"))["payload"] == 1
        there.node.terminate(victim)
        assert (await there.do("event"))[:2] == ["EXIT", victim]
        # What is asked of the dead concerns who asks alone.
        await there.do("trap_links")
        await there.do("call", "link", victim)
        assert await there.do("event") == ["LINK_DOWN", victim, "noproc"]


async def test_names_and_groups_can_be_looked_at_and_groups_joined_by_everybody(
    folder: Path,
) -> None:
    async with scene(folder) as there:
        there.node.register("lobby", there.trusted)
        assert await there.do("call", "registry.lookup", "lobby") == there.trusted
        await there.do("call", "groups.join", "all", host="trusted")
        await there.do("call", "groups.join", "all")
        members = [there.trusted, there.jailed]
        assert await there.do("call", "groups.members", "all") == members
        roster = [{"pid": pid, "meta": None} for pid in members]
        assert await there.do("call", "groups.roster", "all") == roster
        await there.do("call", "groups.watch", "all")
        assert there.jailed in there.node.kernel.groups._watchers["all"]
        await there.do("call", "groups.broadcast", "all", "news", 1, host="trusted")
        await there.journal.line("news")


async def test_may_control_opens_all_of_it(folder: Path) -> None:
    async with scene(folder, may_control=("trusted",)) as there:
        node, victim = there.node, await there.victim()
        await there.do("call", "groups.join", "mine", victim)
        assert node.members("mine") == [victim]
        await there.do("call", "registry.register", "jail/victim", victim)
        assert node.lookup("jail/victim") == victim
        await there.do("call", "registry.unregister", "jail/victim")
        await there.do("call", "terminate", victim)
        await until(lambda: victim not in node.workers, "it was terminated")
        assert not there.journal.lines("ws.error")


async def test_an_ordinary_host_may_do_what_it_likes_to_a_walled_in_one(folder: Path) -> None:
    async with scene(folder) as there:
        victim, ran = await there.victim("jail"), folder / "ran"
        await there.do("start", "exec", None, "jail", str(ran), host="trusted")
        assert ran.exists()
        await there.do("call", "registry.register", "jail/x", victim, host="trusted")
        await there.do("call", "terminate", victim, host="trusted")
        await until(lambda: victim not in there.node.workers, "it was terminated")


async def test_rights_are_those_of_the_start_whatever_is_reloaded(folder: Path) -> None:
    """A process keeps the walls that it was started within."""
    async with scene(folder) as there:
        hosts = [HostOptions(name="trusted"), HostOptions(name="jail")]
        await there.node.reconfigure(hosts, there.node.entries)
        victim = await there.victim()
        assert "may not cancel" in await there.refusal("call", "cancel", victim)


# Clients


@contextlib.asynccontextmanager
async def joined(there: Scene, host: str) -> AsyncIterator[tuple[ClientConnection, PID]]:
    """A client of the puppet in a host, and its PID."""
    app = WebSocketRelay(relay_to(there.pids[host]), node=there.node)
    async with serving(app) as url, client(url) as websocket:
        join = await there.journals[host].line("ws.join")
        yield websocket, PID(join["sender"])


CLOSE = {"code": 4000, "reason": "gone"}


async def test_clients_of_other_hosts_are_neither_closed_nor_controlled(folder: Path) -> None:
    async with scene(folder) as there, joined(there, "trusted") as (websocket, me):
        node = there.node
        node.register("client", me)
        node.join_group("clients", me)
        for to in (me, "client", [me, there.trusted]):
            said = await there.refusal("call", "send", to, "ws.close", CLOSE)
            assert "may not send ws.close to" in said
            assert "unless jail has may_control: [trusted]" in said
            contents: list[Any] = [{"metadata": {}}, {"target_pid": there.jailed}, {"x": 1}]
            for content in contents:
                said = await there.refusal("call", "send", to, "ws.control", content)
                assert "may not send ws.control to" in said
        for topic in ("ws.close", "ws.control"):
            said = await there.refusal("call", "groups.broadcast", "clients", topic, {})
            assert f"may not send {topic} to" in said
            said = await there.refusal("call", "send_after", 0, [me], topic, {})
            assert f"may not send {topic} to" in said, "when it is sent"
        for call in ("cancel", "terminate", "link"):
            assert "whose host is 'trusted'" in await there.refusal("call", call, me)
        assert "whose host is 'trusted'" in await there.refusal(
            "frame", "CancelTimer", "(local@trusted|1-1)"
        )
        # A worker may be told anything, and a client anything that it shows.
        await there.journals["trusted"].line("ws.close")
        await there.do("call", "send", [me], "ws.send", {"type": "text", "data": "open"})
        assert await received(websocket) == "open"
        await there.do("call", "groups.broadcast", "clients", "news", 1)
        assert await received(websocket) == '{"topic":"news","data":1}'
        connection = node.connection(me)
        assert connection is not None
        assert connection.target == there.trusted


async def test_its_own_clients_it_closes_and_controls(folder: Path) -> None:
    async with scene(folder) as there, joined(there, "jail") as (websocket, me):
        other = await there.victim("jail")
        for to in (there.jailed, other):
            await there.do("call", "send", me, "ws.control", {"target_pid": to})
        connection = there.node.connection(me)
        assert connection is not None
        assert connection.target == other
        await there.do("call", "send", me, "ws.close", CLOSE)
        assert await closed(websocket) == (4000, "gone")
        assert not there.journal.lines("ws.error")


async def test_no_client_is_moved_to_another_host(folder: Path) -> None:
    """It would bring metadata that the walled-in host has made up, and its new target believes."""
    async with scene(folder) as there, joined(there, "jail") as (_, me):
        moved = {"target_pid": there.trusted, "metadata": {"user": "root"}}
        said = await there.refusal("call", "send", me, "ws.control", moved)
        assert f"may not transfer clients to {there.trusted}, whose host is 'trusted'" in said
        connection = there.node.connection(me)
        assert connection is not None
        assert connection.target == there.jailed
        assert not there.journals["trusted"].lines("ws.join")


async def test_what_was_done_to_a_client_stays_when_others_move_it(folder: Path) -> None:
    async with scene(folder) as there, joined(there, "jail") as (websocket, me):
        await there.do("call", "link", me)
        await there.do("call", "send", me, "ws.control", {"metadata": {"user": "root"}})
        there.node.send(me, "ws.control", {"target_pid": there.trusted})
        join = await there.journals["trusted"].line("ws.join")
        assert join["payload"]["metadata"] == {"user": "root"}
        there.node.terminate(there.jailed)
        assert await closed(websocket) == (1011, "linked process ended")


async def test_may_control_lets_clients_be_moved(folder: Path) -> None:
    async with (
        scene(folder, may_control=("trusted",)) as there,
        joined(there, "jail") as (_, me),
    ):
        await there.do("call", "send", me, "ws.control", {"target_pid": there.trusted})
        assert (await there.journals["trusted"].line("ws.join"))["sender"] == me


async def test_of_many_receivers_those_of_its_host_are_reached(folder: Path) -> None:
    async with (
        scene(folder) as there,
        joined(there, "jail") as (mine, me),
        joined(there, "trusted") as (others, other),
    ):
        await there.refusal("call", "send", [other, me], "ws.close", CLOSE)
        assert await closed(mine) == (4000, "gone")
        assert other in there.node.connections
        there.node.send(other, "ws.send", {"type": "text", "data": "still here"})
        assert await received(others) == "still here"


# Names


async def test_a_walled_in_process_takes_names_of_its_host_alone(folder: Path) -> None:
    async with scene(folder, may_name=("room:*", "hall")) as there:
        for name in ("jail/x", "room:1", "hall"):
            await there.do("call", "registry.register", name)
            assert there.node.lookup(name) == there.jailed
        await there.do("call", "registry.unregister", "hall")
        for name in ("lobby", "jail", "jailx", "trusted/x", "hall2", "a room:1"):
            said = await there.do("call", "registry.register", name)
            assert said == (
                "NotAllowed: a process of host 'jail', which is walled in, may not take the name "
                f"{name!r}, which does not begin with 'jail/', unless jail has a pattern for it "
                "in may_name"
            )
            said = await there.do("call", "get_or_spawn", name, f"{folder}/trespassers.py:idle")
            assert "NotAllowed: a process of host 'jail', which is walled in, may not take" in said
        pid = await there.do("call", "get_or_spawn", "room:2", f"{folder}/trespassers.py:idle")
        assert there.node.lookup("room:2") == pid
        # Who has a name already is found, whoever that is.
        there.node.register("lobby", there.trusted)
        said = await there.do("call", "get_or_spawn", "lobby", f"{folder}/trespassers.py:idle")
        assert said == there.trusted
