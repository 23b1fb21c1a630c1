"""The commands for a cluster, over a real NATS."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import relating
from commands import run_here
from nats_servers import NatsServer
from operating import ENTRIES, wsrelay
from peers_over_nats import clustered
from support import client, relay_to, serving, until

from wsrelay import Node, WebSocketRelay
from wsrelay.cluster.frames import PeerControlFrame
from wsrelay.cluster.link import WINDOW
from wsrelay.control import ControlSocket
from wsrelay.errors import InvalidPID, WsrelayError
from wsrelay.peers.clustered import ClusteredNode

pytest_plugins = ["operated"]
pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("directory")]


def hook(node: Node) -> ClusteredNode:
    elsewhere: Any = node.engine.elsewhere
    assert isinstance(elsewhere._member, ClusteredNode)
    return elsewhere._member


async def members() -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in json.loads(await wsrelay("nodes", "--json"))}


# nodes


async def test_nodes_lists_the_cluster_s_nodes(two: list[Node]) -> None:
    b = two[1]
    pid = b.spawn("answer")
    app = WebSocketRelay(relay_to(pid), node=b)
    async with serving(app) as url, client(url):
        await until(lambda: hook(two[0]).members()[1].clients == 1, "b has told it")
        shown = await members()
        there, here = shown["b"], shown["a"]
        assert (there["state"], there["asked"], there["hosts"]["processes"][0]) == ("up", False, 1)
        assert (here["state"], here["asked"], here["clients"]) == ("up", True, 0)
        assert here["version"] == there["version"] != ""
        assert here["protocol"] == there["protocol"] == 1
        assert here["link"] is None
        assert there["link"]["connected"] is True
        assert there["incarnation"] == hook(b).member.me.incarnation  # type: ignore[union-attr]
        lines = (await wsrelay("nodes")).splitlines()
    assert [line.split()[0] for line in lines] == ["NODE", "a", "b"]
    assert " 1/" in lines[2]


async def test_a_node_in_no_cluster_says_so(shared: Node, directory: Path) -> None:
    async with ControlSocket(shared, directory):
        for command in (["nodes"], ["ps", "--cluster"]):
            said = await wsrelay(*command, code=1)
            assert said.startswith(f"wsrelay: node {shared.name} is in no cluster; --cluster of ")
            assert len(said.splitlines()) == 1
        said = await wsrelay("drain", "b", code=1)
        assert said == "wsrelay: this node is in no cluster, so there is no node 'b'\n"
        said = await wsrelay("kill", "{b@processes|0-1}", code=1)
        assert said == "wsrelay: this node is in no cluster, so there is no node 'b'\n"
        assert await wsrelay("kill", "nobody", "--cluster", code=1) == (
            f"wsrelay: node {shared.name} has no process 'nobody'\n"
        )


async def test_nodes_tells_what_waits_for_a_node(own_nats: NatsServer) -> None:
    async with clustered(own_nats, ENTRIES, "a", "b") as [a, b]:
        there = b.spawn("answer")
        own_nats.pause()
        try:
            a.send(there, "noise", b"x" * (WINDOW // 2))
            await until(lambda: hook(a).members()[1].link.delay > 0, "it waits")  # type: ignore[union-attr]
            link = (await members())["b"]["link"]
            assert link["unacknowledged"] + link["backlog"] > WINDOW // 2
            assert link["delay"] > 0
            assert "MB behind for " in await wsrelay("nodes")
        finally:
            own_nats.resume()
        await until(lambda: hook(a).members()[1].link.delay == 0, "it has arrived")  # type: ignore[union-attr]


async def test_nodes_tells_a_node_that_has_left(two: list[Node]) -> None:
    await two[1].aclose()
    await until(lambda: hook(two[0]).members()[1].state == "gone", "it is noticed")
    assert "gone" in (await wsrelay("nodes")).splitlines()[2].split()


# Processes of other nodes


async def test_a_pid_of_another_node_is_sent_to_called_cancelled_and_killed(
    two: list[Node],
) -> None:
    b = two[1]
    one, other = b.spawn("answer"), b.spawn(relating.deaf)
    assert await wsrelay("call", one, "double", "4") == "8\n"
    assert await wsrelay("call", one[1:-1], "double", "5") == "10\n"
    await wsrelay("send", one, "greeting")
    await wsrelay("cancel", one, "--reason", "enough")
    await until(lambda: one not in b.workers, "it ends")
    await wsrelay("kill", other)
    await until(lambda: other not in b.workers, "it ends")
    for command in (["send", other, "x"], ["call", other, "x"], ["cancel", other], ["kill", other]):
        assert await wsrelay(*command, code=1) == f"wsrelay: node b has no process '{other}'\n"
    said = await wsrelay("kill", "{c@processes|0-1}", code=1)
    assert said == "wsrelay: there is no node 'c' in the cluster: its nodes are a, b\n"


async def test_a_name_is_found_on_the_node_that_has_it(two: list[Node]) -> None:
    a, b = two
    await b.get_or_spawn_async("room", "answer")
    await until(lambda: a.engine.elsewhere.find("room") is not None, "it is told")
    assert await wsrelay("call", "room", "double", "4") == "8\n"


async def test_logs_that_another_node_has_are_said_to_be_there(two: list[Node]) -> None:
    there = two[1].spawn("answer")
    done = await asyncio.to_thread(run_here, "logs", there, "--node", "a")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == (
        f"wsrelay: node a has no log records of {there} yet; --cluster shows those of all nodes\n"
    )


async def test_cluster_looks_on_all_nodes(two: list[Node]) -> None:
    a, b = two
    pid = b.spawn("answer")
    b.register("local/mine", pid)
    short = pid.rpartition("|")[2].removesuffix("}")
    for text in (short, "local/mine"):
        said = await wsrelay("call", text, "double", "4", code=1)
        assert said == f"wsrelay: node a has no process {text!r}; --cluster looks on all nodes\n"
        assert await wsrelay("call", text, "double", "4", "--cluster") == "8\n"
    own = a.spawn("answer")
    a.register("local/mine", own)
    await wsrelay("cancel", "local/mine", "--cluster")
    await until(lambda: own not in a.workers, "that of the node itself is meant")
    assert pid in b.workers
    await wsrelay("send", short, "greeting", "--cluster")
    await wsrelay("kill", short, "--cluster")
    await until(lambda: pid not in b.workers, "it ends")
    said = await wsrelay("kill", short, "--cluster", code=1)
    assert said == f"wsrelay: no node has a process {short!r}\n"


async def test_what_several_nodes_have_must_be_said_by_its_pid(nats: NatsServer) -> None:
    async with clustered(nats, ENTRIES, "a", "b", "c") as [_, b, c]:
        pids = []
        for node in (b, c):
            pids.append(node.spawn("answer"))
            node.register("local/mine", pids[-1])
        said = await wsrelay("kill", "local/mine", "--cluster", code=1)
        assert said == (
            f"wsrelay: 'local/mine' may be any of {pids[0]}, {pids[1]}: say which by its PID\n"
        )


# ps --cluster


async def test_ps_lists_the_processes_of_all_nodes(
    two: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = two
    own, there = a.spawn("answer"), [b.spawn("answer") for _ in range(5)]
    for node in two:
        await until(lambda: all(node.workers.values()), "they run")  # noqa: B023 - used at once
    monkeypatch.setattr("wsrelay.node.snapshot._MOST_AT_ONCE", 2)
    shown = json.loads(await wsrelay("ps", "--cluster", "--json"))
    assert [one["pid"] for one in shown][:1] == [own]
    assert sorted(one["pid"] for one in shown[1:]) == sorted(there)
    assert shown[0]["memory"] > 0
    assert {one["memory"] for one in shown[1:]} == {None}
    monkeypatch.setattr("wsrelay.node.snapshot._PORTION", 1)
    lines = (await wsrelay("ps", "--cluster")).splitlines()
    assert sorted(line.split()[0] for line in lines[2:]) == sorted(there)


async def test_ps_names_the_nodes_that_do_not_answer(
    two: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = two
    a.spawn("answer")

    def silent(*_: object) -> asyncio.Future[None]:
        return asyncio.get_running_loop().create_future()

    hook(b).exchange.answer(PeerControlFrame, silent)
    monkeypatch.setattr("wsrelay.control.forwarding.PATIENCE", 0.3)
    said = await wsrelay("ps", "--cluster", code=1)
    assert said == (
        "wsrelay: the processes of node b are not known: node b does not answer within 0.3 s\n"
    )


async def test_a_question_that_is_none_is_refused_and_ends_no_link(two: list[Node]) -> None:
    a, b = two
    asked = a.engine.elsewhere
    with pytest.raises(InvalidPID):
        await asked.locate("b", "{no pid")
    status, _ = await asked.ask_control("b", "GET", "/no such path?%ff", b"\xff")
    assert status == 404
    assert await asked.locate("b", b.spawn("answer")) in b.workers


async def test_commands_show_other_nodes_and_all_of_them(two: list[Node]) -> None:
    a, b = two
    here, there = a.spawn("answer"), b.spawn("answer")
    await until(lambda: b.workers[there], "it has an OS process")
    asked, other = json.loads(await wsrelay("tree", "--cluster", "--json"))
    assert [one["pid"] for one in asked["processes"]] == [here]
    assert [one["pid"] for one in other["processes"]] == [there]
    lines = (await wsrelay("tree", "--cluster")).splitlines()
    assert [line for line in lines if line.startswith("node ")] == [
        f"node {name} (OS pid {os.getpid()}, wsrelay {asked['version']})" for name in ("a", "b")
    ]
    both = json.loads(await wsrelay("top", "--cluster", "--json"))
    assert {one["pid"] for one in both["processes"]} == {here, there}
    assert [host["name"] for host in both["hosts"]] == ["processes@a", "processes@b"]
    assert json.loads(await wsrelay("connections", "--cluster", "--json")) == []
    async with ControlSocket(a, path := Path(os.environ["WSRELAY_RUNTIME_DIR"]).parent / "alone"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("WSRELAY_RUNTIME_DIR", str(path))
            done = await asyncio.to_thread(run_here, "ps", "--json", "--node", "b")
    [shown] = json.loads(done.stdout)
    assert (shown["pid"], shown["memory"]) == (there, None)


async def test_logs_of_all_nodes_are_in_the_order_of_time(two: list[Node]) -> None:
    for node in two * 2:
        logging.getLogger("wsrelay.test").info(
            "of %s", node.name, extra={"wsrelay_node": node.name}
        )
    shown = [
        json.loads(line) for line in (await wsrelay("logs", "--cluster", "--json")).splitlines()
    ]
    assert [one["time"] for one in shown] == sorted(one["time"] for one in shown)
    pid = two[1].spawn("answer")
    two[1].terminate(pid)
    await until(lambda: pid not in two[1].workers, "it ends")
    assert f"{pid} ended: terminated" in await wsrelay("logs", pid, "--cluster")


async def test_a_node_without_a_control_socket_says_so(two: list[Node]) -> None:
    a, b = two
    assert b.control is not None
    await b.control.stop()
    b.control = None
    with pytest.raises(WsrelayError, match="node b has no control socket"):
        await a.engine.elsewhere.ask_control("b", "GET", "/node", b"")


async def test_an_answer_that_is_too_large_to_pass_on_is_refused(
    two: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsrelay.peers.operators._MOST_BYTES", 100)
    said = await wsrelay("tree", "--cluster", code=1)
    assert "node b answers with" in said
    assert "more than can be passed on to node a: 100B; ask there" in said
    with pytest.raises(ValueError, match="more than can be passed on to node b"):
        await two[0].engine.elsewhere.ask_control("b", "POST", "/send", b"x" * 101)


# drain


async def test_a_node_is_drained_from_another_one(two: list[Node]) -> None:
    a, b = two
    ended: list[str] = []
    b.on_retire = lambda: ended.append("b")
    room = await b.get_or_spawn_async("room", "answer")
    a.kernel.set_hosts({"processes": 0})
    await until(lambda: a.engine.choose("processes") == "b", "b has room")
    said = await wsrelay("drain", "b")
    assert said == "node b drains, and ends when its clients and processes have\n"
    await until(lambda: bool(ended), "it ends")
    await until(lambda: hook(a).members()[1].state == "draining", "it is told")
    assert "draining" in (await wsrelay("nodes")).splitlines()[2].split()
    assert b.unready == "it is shutting down"
    # What is there goes on; nothing comes there any more.
    assert await a.call_async(room, "double", 2) == 4
    await until(lambda: a.engine.choose("processes") == "a", "nothing is placed there")
    a.kernel.set_hosts({"processes": 10})
    b.cancel(room)
    assert (await a.get_or_spawn_async("room", "answer")).node == "a"
    assert (await b.get_or_spawn_async("other", "answer")).node == "a"
    await wsrelay("drain", "b")
    assert ended == ["b"]


async def test_a_node_that_cannot_be_reached_drains_when_it_can(
    own_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with clustered(own_nats, ENTRIES, "a", "b") as [_, b]:
        ended = asyncio.Event()
        b.on_retire = ended.set
        monkeypatch.setattr("wsrelay.control.forwarding.PATIENCE", 0.3)
        own_nats.pause()
        try:
            said = await wsrelay("drain", "b", code=1)
            assert said == (
                "wsrelay: node b does not answer within 0.3 s; "
                "it obeys as soon as it gets to know\n"
            )
        finally:
            own_nats.resume()
        await asyncio.wait_for(ended.wait(), 20)


async def test_a_node_drains_itself(two: list[Node]) -> None:
    a, b = two
    ends: list[asyncio.Task[None]] = []
    a.on_retire = lambda: ends.append(asyncio.ensure_future(a.aclose()))
    assert (await wsrelay("drain")).startswith("node a drains")
    await until(lambda: bool(ends), "it ends")
    await ends[0]
    await until(lambda: hook(b).members()[1].state == "gone", "it has left")


async def test_a_node_that_is_not_there_is_not_drained(two: list[Node]) -> None:
    said = await wsrelay("drain", "c", code=1)
    assert said == "wsrelay: there is no node 'c' in the cluster: its nodes are a, b\n"
    await two[1].aclose()
    await until(lambda: hook(two[0]).members()[1].state == "gone", "it is noticed")
    said = await wsrelay("drain", "b", code=1)
    assert said == "wsrelay: node b cannot be asked: it is gone\n"
