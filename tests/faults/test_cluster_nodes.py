"""Nodes of a cluster die, stand still and are cut off; each is an OS process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from clusters import Failed, NodeCluster, NodeProgram, nodes_over
from gate import Gate, gate_to
from msgspec import Struct
from nats_servers import NatsServer
from running import gone
from support import TIMEOUT, closed, received, until
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def cluster(
    nats: NatsServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[NodeCluster]:
    folder = tmp_path_factory.mktemp("nodes")
    # On a busy machine it may take long until a node is dead for which a claim waits.
    async with nodes_over(nats.url, folder, "a", "b", "c", start_timeout=30.0) as running:
        yield running


@pytest.fixture
async def nodes(cluster: NodeCluster) -> AsyncIterator[NodeCluster]:
    """The nodes a, b and c, on which nothing runs before and after a test."""
    await cluster.clear()
    yield cluster
    await cluster.clear()


async def told(websocket: ClientConnection) -> Any:
    """What a room sends, which is JSON."""
    return json.loads(await received(websocket))


# A node dies


class Death(Struct):
    """What was on a node that has been killed, and what others saw of its end."""

    cluster: NodeCluster
    dying: str
    """A room of it, with a name; there are a process without one and a client of it besides."""
    nameless: str
    client: str
    staying: str
    """A room of another node, of which that client was one."""
    linked: str
    """A process of another node that was linked to `dying`."""
    watchers: dict[str, str]
    """A process on each other node that monitored all of them, and was linked to them."""
    journal: list[list[Any]]
    """Who came to `staying`, and who left it."""
    closes: list[tuple[int, str]]
    """How the clients of `dying` at other nodes were closed."""
    unanswered: Failed
    """What a call of `dying` has raised."""
    visits: list[Any]
    """Who has the name at which node, and with which fence, as clients of the others saw it."""
    fence: int
    left: list[psutil.Process]
    """Processes of the dead node that were still there when its death was known."""

    async def seen(self, node: str) -> dict[str, list[Any]]:
        """What the watcher on that node has seen."""
        seen: dict[str, list[Any]] = await self.cluster[node].do(
            "call_async", self.watchers[node], "what have you seen?"
        )
        return seen


@pytest.fixture(scope="module")
async def death(
    cluster: NodeCluster, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Death]:
    """The node d has been killed, and runs again as a new incarnation."""
    a, b = cluster["a"], cluster["b"]
    [d] = await cluster.start("d")
    journal = tmp_path_factory.mktemp("death") / "journal"
    dying = await d.do("get_or_spawn_async", "dying", "room")
    nameless = await d.do("spawn", "deaf")
    await d.do("register_async", "alias", nameless)
    staying = await a.do("get_or_spawn_async", "staying", "room", None, str(journal))
    async with contextlib.AsyncExitStack() as stack:

        async def client_of(node: NodeProgram, name: str) -> ClientConnection:
            return await stack.enter_async_context(node.client(target="room", name=name))

        clients = [await client_of(a, "dying"), await client_of(b, "dying")]
        fences = [await told(one) for one in clients]
        assert fences[0][0] == dying
        for node in (b, d):
            assert (await told(await client_of(node, "staying")))[0] == staying
        [client] = (await d.state())["connections"]
        linked = await b.do("spawn", "linked", None, dying)
        assert await b.do("call_async", linked, "hello") == "linked"
        watchers = {}
        for node in (a, b):
            watchers[node.name] = await node.do(
                "spawn", "watcher", None, dying, nameless, client, linked
            )
            await node.do("call_async", watchers[node.name], "are you there?")
        unanswered = asyncio.create_task(b.do("call_async", dying, "never answered", timeout=60.0))
        for node in (a, b):
            assert await node.do("lookup", "alias") == nameless
            assert set(await node.do("members", "rooms")) == {dying, staying}
            await node.do("call_async", dying, "so it has got what was sent to it before")
        family = d.family()
        workers = (await d.state())["workers"]
        assert {workers[dying], workers[nameless]} < {one.pid for one in family}

        d.kill()

        visits = await asyncio.gather(client_of(a, "dying"), client_of(b, "dying"))
        with pytest.raises(Failed) as caught:
            await unanswered
        left = [process for process in family if not gone(process)]
        [d] = await cluster.start("d")  # what might be told twice has been told twice by then
        yield Death(
            cluster=cluster,
            dying=dying,
            nameless=nameless,
            client=client,
            staying=staying,
            linked=linked,
            watchers=watchers,
            journal=await _left(journal, client),
            closes=[await closed(one) for one in clients],
            unanswered=caught.value,
            visits=[await told(one) for one in visits],
            fence=fences[0][1],
            left=left,
        )
    await d.stop()


async def _left(journal: Path, client: str) -> list[list[Any]]:
    """Wait until that client has left, and return all who came and left."""
    lines: list[list[Any]] = []

    def read() -> bool:
        lines[:] = [json.loads(line) for line in journal.read_text().splitlines()]
        return any(line[:2] == ["ws.leave", client] for line in lines)

    await until(read, "the client of the dead node has left")
    return lines


async def test_nothing_of_a_killed_node_runs_when_others_know_of_its_death(death: Death) -> None:
    assert not death.left


async def test_every_monitor_and_link_is_told_once_of_the_death_of_a_node(death: Death) -> None:
    for node in death.watchers:
        events = Counter(map(tuple, (await death.seen(node))["events"]))
        ends = dict.fromkeys([death.dying, death.nameless, death.client], "node_down")
        ends[death.linked] = "link_down"
        assert events == {
            (kind, pid, error): 1 for pid, error in ends.items() for kind in ("EXIT", "LINK_DOWN")
        }


async def test_calls_end_with_the_node(death: Death) -> None:
    assert death.unanswered.kind == "node_down"


async def test_clients_of_a_killed_node_s_rooms_are_closed_with_1012(death: Death) -> None:
    assert death.closes == [(1012, "target's node is gone")] * 2


async def test_a_killed_node_s_clients_leave_rooms_elsewhere_once(death: Death) -> None:
    [_, came, left] = death.journal
    assert came[:2] == ["ws.join", death.client]
    assert left == ["ws.leave", death.client, 1006, "client's node is gone"]


async def test_members_of_a_killed_node_have_left_their_groups(death: Death) -> None:
    [heir, _] = death.visits[0]
    for name in ("a", "b", "c"):
        assert set(await death.cluster[name].do("members", "rooms")) == {death.staying, heir}
    for node in death.watchers:
        left = [pid for kind, pid in (await death.seen(node))["presence"] if kind == "left"]
        assert left == [death.dying]


async def test_names_of_a_killed_node_pass_on_with_a_greater_fence(death: Death) -> None:
    [[heir, fence], other] = death.visits
    assert other == [heir, fence]
    assert heir != death.dying
    assert fence > death.fence
    for name in ("a", "b", "c"):
        assert await death.cluster[name].do("lookup", "dying") == heir
        with pytest.raises(Failed, match="NameNotFound"):
            await death.cluster[name].do("lookup", "alias")
    async with asyncio.timeout(TIMEOUT):
        while await death.cluster["a"].names() != ["dying", "staying"]:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


# A node stands still, or is cut off


class Line(Struct, array_like=True):
    """What `writer` has written."""

    fence: int
    pid: str
    number: int
    at: int
    """The machine's monotonic time in nanoseconds from just before it was written."""


def written(path: Path) -> list[Line]:
    whole, _, _ = path.read_text().rpartition("\n")  # the last one may be in the making
    return [msgspec.convert(line.split(), Line, strict=False) for line in whole.splitlines()]


class Handover:
    """A file into which the process of a name writes all the time, whichever node that is on."""

    def __init__(self, path: Path, node: NodeProgram) -> None:
        path.touch()
        self.path = path
        self.node = node

    async def begin(self) -> None:
        """Start the one who writes on that node."""
        self.first = await self.ask(self.node)
        await until(lambda: written(self.path), "it writes")
        self.process = psutil.Process((await self.node.state())["workers"][self.first])

    async def ask(self, node: NodeProgram) -> str:
        """Get the process with the name, and start one if there is none."""
        pid: str = await node.do("get_or_spawn_async", "writer", "writer", None, str(self.path))
        return pid

    @property
    def stands_still(self) -> bool:
        """Whether the one who wrote first is stopped by SIGSTOP."""
        return self.process.status() == psutil.STATUS_STOPPED

    async def is_taken_over(self, node: NodeProgram) -> str:
        """Have the next one write, on another node, until it has written for a while."""
        second = await self.ask(node)
        assert second.partition("@")[0] != self.first.partition("@")[0]
        assert self.stands_still
        at_first = len(written(self.path))
        await until(lambda: len(written(self.path)) > at_first + 50, "the next one writes")
        assert self.stands_still
        return second

    def check(self, second: str) -> list[Line]:
        """Check that no line was written once the second had begun; returns the first's lines."""
        lines = written(self.path)
        mine = [line for line in lines if line.pid == self.first]
        theirs = [line for line in lines if line.pid == second]
        assert lines == [*mine, *theirs]
        assert mine[-1].at < theirs[0].at
        assert {line.fence for line in mine} < {line.fence for line in lines}
        assert max(line.fence for line in mine) < min(line.fence for line in theirs)
        for part in (mine, theirs):
            assert [line.number for line in part] == [*range(len(part))]
        return mine


async def joins_again(node: NodeProgram, before: dict[str, Any]) -> None:
    await node.until(
        lambda state: state["status"]["incarnation"] not in {"", before["status"]["incarnation"]},
        f"{node.name} has joined again",
    )


async def lives_again(node: NodeProgram, before: dict[str, Any], others: NodeCluster) -> None:
    """Wait until a node that was declared dead has joined again, and see that it serves."""
    await joins_again(node, before)
    await others.until_complete()
    assert not (await node.state())["draining"]
    fresh = await node.do("get_or_spawn_async", "fresh", "room")
    assert fresh.startswith(f"{{{node.name}@")
    async with others["a"].client(target="room", name="fresh") as websocket:
        assert (await told(websocket))[0] == fresh


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


def go_on(pid: int) -> None:
    os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("template_too", [False, True], ids=["", "with_its_template"])
async def test_a_node_that_is_stopped_has_its_rooms_frozen_before_others_run_them(
    nodes: NodeCluster, tmp_path: Path, template_too: bool
) -> None:
    a, c = nodes["a"], nodes["c"]
    handover = Handover(tmp_path / "written", c)
    await handover.begin()
    room = await a.do("get_or_spawn_async", "room", "room")
    before = await c.state()
    template = before["templates"]["processes"]
    async with (
        c.client(target_pid=handover.first) as client,
        c.client(target_pid=room) as elsewhere,
        a.client(target_pid=handover.first) as visitor,
    ):
        for websocket in (client, elsewhere, visitor):
            await told(websocket)
        with contextlib.ExitStack() as stopped:
            if template_too:
                stop(template)
                stopped.callback(go_on, template)
            c.pause()
            stopped.callback(c.resume)
            paused = time.monotonic_ns()
            second = await handover.is_taken_over(a)
            assert await closed(visitor) == (1012, "target's node is gone")
        assert [(await closed(one))[0] for one in (client, elsewhere)] == [1012, 1012]
    assert handover.check(second)[-1].at > paused, "it was frozen by its guardian, not by the stop"
    await lives_again(c, before, nodes)
    await until(lambda: gone(handover.process), "it has been killed")
    handover.check(second)


@pytest.fixture
async def gate(nats: NatsServer) -> AsyncIterator[Gate]:
    async with gate_to(nats.port) as way:
        yield way


@pytest.fixture
async def behind(nodes: NodeCluster, gate: Gate) -> AsyncIterator[NodeProgram]:
    """A node that reaches NATS through the gate."""
    [node] = await nodes.start("e", url=gate.url)
    yield node
    await node.stop()


@pytest.mark.parametrize("how", ["shut", "refuse", "shut, and its template is stopped"])
async def test_a_node_that_is_cut_off_freezes_its_rooms_before_others_run_them(
    nodes: NodeCluster, gate: Gate, behind: NodeProgram, tmp_path: Path, how: str
) -> None:
    handover = Handover(tmp_path / "written", behind)
    await handover.begin()
    before = await behind.state()
    template = before["templates"]["processes"]
    async with behind.client(target_pid=handover.first) as client:
        await told(client)
        with contextlib.ExitStack() as stopped:
            if "template" in how:
                stop(template)
                stopped.callback(go_on, template)
                count = len(written(handover.path))
                await until(lambda: len(written(handover.path)) > count + 50, "it goes on")
            getattr(gate, how.partition(",")[0])()
            state = await behind.until(lambda state: state["frozen"], "it is frozen")
            assert state["status"]["state"] == "frozen"
            assert {line.pid for line in written(handover.path)} == {handover.first}
            second = await handover.is_taken_over(nodes["b"])
            gate.open()
            assert (await closed(client))[0] == 1012
            await until(lambda: gone(handover.process), "it has been killed")
            await joins_again(behind, before)
    await lives_again(behind, before, nodes)
    handover.check(second)


async def test_a_node_that_is_back_within_its_lease_goes_on_and_nothing_is_lost(
    nodes: NodeCluster, gate: Gate, behind: NodeProgram, tmp_path: Path
) -> None:
    ways = {
        "held": (gate.shut, gate.open),
        "cut": (gate.refuse, gate.open),
        "stopped": (behind.pause, behind.resume),
    }
    for how, (away, back) in ways.items():
        # A busy machine may be too slow to be back within the third of a lease that there is.
        for attempt in range(5):
            if await goes_on(nodes, behind, tmp_path / f"{how} {attempt}", away, back):
                break
            await nodes.until_complete()
            await nodes.clear()
        else:
            raise AssertionError(f"{how}: it was declared dead each time")
        await nodes.clear()


async def goes_on(
    nodes: NodeCluster,
    node: NodeProgram,
    path: Path,
    away: Callable[[], None],
    back: Callable[[], None],
) -> bool:
    """Have a node away until its rooms are frozen; returns whether it was not declared dead."""
    handover = Handover(path, node)
    await handover.begin()
    there = await nodes["b"].do("get_or_spawn_async", "room", "room")
    before = await node.state()
    async with (
        nodes["a"].client(target_pid=handover.first) as visitor,
        node.client(target_pid=there) as client,
    ):
        for websocket in (visitor, client):
            await told(websocket)
        away()
        sent = 0
        with contextlib.suppress(ConnectionClosed):
            while not handover.stands_still:
                for websocket in (visitor, client):
                    await websocket.send(str(sent))
                sent += 1
                await asyncio.sleep(0.01)
        back()
        state = await node.until(lambda state: state["status"]["state"] == "holding", "it holds")
        if state["status"]["incarnation"] != before["status"]["incarnation"]:
            return False
        for websocket in (visitor, client):
            assert [int(await told(websocket)) for _ in range(sent)] == [*range(sent)]
    at_first = written(path)
    await until(lambda: len(written(path)) > len(at_first) + 50, "it writes again")
    lines = written(path)
    assert {(line.pid, line.fence) for line in lines} == {(handover.first, lines[0].fence)}
    assert [line.number for line in lines] == [*range(len(lines))]
    assert await handover.ask(nodes["b"]) == handover.first
    return True


# A room crashes

FAILURES = 15


@pytest.mark.parametrize("way", ["header", "get_or_spawn"])
async def test_a_room_that_crashes_at_its_start_has_its_successor_at_once(
    nodes: NodeCluster, tmp_path: Path, way: str
) -> None:
    """Whoever comes next, to whichever node, finds the next one, until one does not crash."""
    starts = tmp_path / "starts"
    order = ("fails_in_the_beginning", str(starts), FAILURES)
    visited = itertools.cycle([nodes["a"], nodes["b"], nodes["c"]])
    visit = by_header if way == "header" else by_call
    async with asyncio.timeout(TIMEOUT / 2):  # it is far less if nobody waits for a timeout
        for count in range(1, FAILURES + 1):
            # It may crash before the call comes, or before the client is bound to it.
            assert await visit(next(visited), *order) in {"error", "noproc", 1011, 503}
            assert len(starts.read_text().splitlines()) == count
        for _ in range(3):
            assert await visit(next(visited), *order) is None
    fences = [int(line) for line in starts.read_text().splitlines()]
    assert fences == sorted(set(fences))
    assert len(fences) == FAILURES + 1


async def by_call(node: NodeProgram, target: str, *args: Any) -> str | None:
    """Call the process of the name; returns the kind of its error."""
    pid = await node.do("get_or_spawn_async", "crashing", target, None, *args)
    try:
        await node.do("call_async", pid, "who?", timeout=TIMEOUT)
    except Failed as error:
        return error.kind
    return None


async def by_header(node: NodeProgram, target: str, *args: Any) -> int | None:
    """Be a client of the process of the name; returns with which code or status that failed."""
    try:
        async with node.client(target=target, name="crashing", args=args) as websocket:
            await told(websocket)
    except ConnectionClosed as error:
        return error.rcvd.code if error.rcvd else 1006
    except InvalidStatus as error:
        return error.response.status_code
    return None
