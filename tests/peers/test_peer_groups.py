"""Groups of processes of several nodes."""

from __future__ import annotations

import functools

import group_handlers as handlers
import pytest
from exits import Exits
from one_node import BOTH
from pair import Cluster, cluster
from relating import Face
from support import processes, until

from wsrelay import PID
from wsrelay.cluster import memberships
from wsrelay.cluster.frames import (
    AddMemberFrame,
    GroupMessageFrame,
    Membership,
    MembershipsFrame,
    PeerFrame,
    RemoveMemberFrame,
)
from wsrelay.cluster.framing import pack
from wsrelay.node import Mail
from wsrelay.wire.payload import pack as pack_payload

pytestmark = pytest.mark.anyio
pytest_plugins = ["sharing"]

MEMBER = f"{handlers.__file__}:member"
MANY = f"{handlers.__file__}:let_many_join"


HOSTS = (processes(targets=(MEMBER,)), processes(name="small", mailbox=100_000))
CLUSTER = functools.partial(cluster, *HOSTS, names=("a", "b", "c"))


async def joins(nodes: Cluster, node: str, *args: object, host: str | None = None) -> PID:
    """A member, of which all nodes know."""
    pid = nodes[node].spawn(MEMBER, host, *args)
    for one in nodes.nodes.values():
        await until(lambda one=one: pid in one.members(str(args[0])), "it is told")  # type: ignore[misc]
    return pid


async def watches(nodes: Cluster, node: str, target: object, group: str, count: int) -> PID:
    pid = nodes[node].spawn(target, None, group, count)
    await until(lambda: pid in nodes[node].members(f"watchers of {group}"), "it watches")
    return pid


@BOTH
async def test_a_group_s_members_of_all_nodes_are_told_the_message_that_crosses_once_each(
    nodes: Cluster, face: Face
) -> None:
    exits = {name: Exits(nodes[name]) for name in "abc"}
    there = [await joins(nodes, node, "g", n) for n, node in enumerate("abba")]
    for way in nodes.ways.values():
        way.seen.clear()
    sender = nodes["a"].spawn(face(handlers.tell), None, "g", 3)
    members, roster = (await exits["a"].of(sender)).value
    assert members == there
    assert roster == [[pid, number] for number, pid in enumerate(there)]
    for pid in there:
        seen = (await exits[str(pid.node)].of(pid)).value
        assert seen == [[sender, number] for number in range(3)]
    assert nodes.ways["a", "b"].seen.count("GroupMessageFrame") == 4
    assert {"GroupMessageFrame", "PeerSendFrame"}.isdisjoint(nodes.ways["a", "c"].seen)
    assert "PeerSendFrame" not in nodes.ways["a", "b"].seen


@BOTH
async def test_a_watch_shows_members_of_other_nodes_who_come_change_leave_and_end(
    nodes: Cluster, face: Face
) -> None:
    exits = Exits(nodes["a"])
    first = await joins(nodes, "b", "g", "one")
    watcher = await watches(nodes, "a", face(handlers.watch), "g", 6)
    second = await joins(nodes, "c", "g")
    nodes["b"].send(first, "change", {"n": 2})
    await nodes["b"].call_async(first, "done")
    await nodes.quiet()
    nodes["c"].send(second, "leave")
    await nodes["c"].call_async(second, "done")
    await nodes.quiet()
    nodes["c"].send(second, "change", "again")
    await nodes["c"].call_async(second, "done")
    await nodes.quiet()
    nodes["b"].terminate(first)
    assert (await exits.of(watcher)).value == [
        ["joined", first, "one"],
        ["joined", second, None],
        ["changed", first, {"n": 2}],
        ["left", second, None],
        ["joined", second, "again"],
        ["left", first, {"n": 2}],
    ]


@BOTH
async def test_whoever_is_made_to_join_on_another_node_gets_what_is_sent_right_after(
    nodes: Cluster, face: Face
) -> None:
    there, here = Exits(nodes["b"]), Exits(nodes["a"])
    other = nodes["b"].spawn(MEMBER, None, "own")
    assert await nodes["b"].started(other) is None
    asker = nodes["a"].spawn(face(handlers.let_join), None, "g", other)
    assert (await there.of(other)).value == [[asker, 1], [asker, None]]
    roster = (await here.of(asker)).value
    assert roster == [[other, {"by": "me"}]], "an answer comes after what was told before it"


async def test_http_handlers_use_groups_of_all_nodes(nodes: Cluster) -> None:
    exits, a = Exits(nodes["b"]), nodes["a"]
    pid = nodes["b"].spawn(MEMBER, None, "own")
    assert await nodes["b"].started(pid) is None
    a.join_group("g", pid, {"n": 1})
    a.broadcast("g", "number", 1)
    await until(lambda: a.members("g") == [pid], "it is told")
    assert [(one.pid, one.meta) for one in a.roster("g")] == [(pid, {"n": 1})]
    a.leave_group("g", pid)
    a.broadcast("g", "number", 2)
    a.join_group("g", "{b@processes|none}")
    a.leave_group("g", "{b@processes|none}")
    a.join_group("g", "{d@processes|1}")
    a.send(pid, "return")
    assert (await exits.of(pid)).value == [[a.pid(), 1]]
    assert a.members("g") == []


async def test_members_of_a_node_that_is_gone_have_left_and_come_again_with_it(
    nodes: Cluster,
) -> None:
    exits = Exits(nodes["a"])
    pid = await joins(nodes, "c", "g", "there")
    watcher = await watches(nodes, "a", handlers.watch.sync, "g", 3)
    nodes.lose("c")
    assert nodes["a"].members("g") == nodes["b"].members("g") == []
    nodes["a"].broadcast("g", "number", 1)
    nodes.meet_again("c")
    assert (await exits.of(watcher)).value == [
        [kind, pid, "there"] for kind in ("joined", "left", "joined")
    ]
    await until(lambda: nodes["b"].members("g") == [pid], "all are told again")


async def test_what_is_too_large_for_one_member_s_mailbox_is_sent_to_the_others(
    nodes: Cluster,
) -> None:
    exits = Exits(nodes["b"])
    large = await joins(nodes, "b", "g")
    small = await joins(nodes, "b", "g", host="small")
    sender = nodes["a"].spawn(MEMBER, None, "senders")
    elsewhere = nodes["a"].engine.elsewhere
    mail = Mail(sender, "x", pack_payload("x" * 200_000))
    members = nodes["a"].kernel.groups.members("g")
    assert elsewhere.broadcast(mail, "g", members) == []
    for pid in (large, small):
        nodes["a"].send(pid, "return")
    assert [len(one[1]) for one in (await exits.of(large)).value] == [200_000]
    assert (await exits.of(small)).value == []


async def test_who_makes_others_join_too_much_is_ended_as_on_one_node(
    nodes: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    exits, other = Exits(nodes["a"]), await joins(nodes, "b", "own")
    monkeypatch.setattr("wsrelay.kernel.ledger.MOST_FOR_OTHERS", 3_000)
    asker = nodes["a"].spawn(MANY, None, 100, other)
    error = await exits.error(asker)
    assert error.kind == "limit"
    assert "group (of others, host peer)" in error.message
    assert other in nodes["b"].workers


@pytest.mark.parametrize(
    "frame",
    [
        MembershipsFrame([Membership("g", "{a@processes|1}", b"")]),
        MembershipsFrame([Membership("g", "nobody", b"")]),
        GroupMessageFrame("g", "{a@processes|1}", "x", b"\xc0"),
        AddMemberFrame(1, "g", "{b@processes|1}", b""),
        RemoveMemberFrame("g", "{b@processes|1}"),
    ],
)
async def test_what_no_node_says_of_groups_ends_its_link_and_harms_nobody(
    nodes: Cluster, frame: PeerFrame
) -> None:
    mine, theirs = await joins(nodes, "a", "g"), await joins(nodes, "b", "g")
    nodes.ways["b", "a"].write(pack(frame))
    await until(lambda: nodes["a"].members("g") == [mine], "its link is ended")
    assert nodes.ways["b", "a"].ended
    nodes.meet_again("b")
    await until(lambda: nodes["a"].members("g") == [mine, theirs], "it is as it was")


async def test_a_node_that_tells_of_too_many_members_is_ended(
    nodes: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memberships, "MOST_OF_A_NODE", 10_000)
    told = [Membership(f"g{number}", "{b@processes|x}", b"") for number in range(100)]
    nodes.ways["b", "a"].write(pack(MembershipsFrame(told)))
    await until(lambda: nodes.ways["b", "a"].ended, "its link is ended")
    assert "take more than" in str(nodes.ways["b", "a"].ended)
    assert not nodes["a"].kernel.groups
    nodes.meet_again("b")
