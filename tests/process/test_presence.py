"""Groups whose members have metadata, and processes that watch them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import presence_handlers as handlers
import pytest
from exits import Exits
from one_node import BOTH, connection, front_of, left_as_found, one_node, seen_by, starts
from relating import Face, mortal
from support import until

from wsrelay import PID, Member, Node, NotAProcess, PayloadError, Presence, process, wire
from wsrelay.aio import process as aio_process
from wsrelay.kernel import PresenceEffect
from wsrelay.node import requests
from wsrelay.node.process import _frames

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def shared() -> AsyncIterator[Node]:
    async with one_node() as node:
        yield node


@pytest.fixture(scope="module")
async def front(shared: Node) -> AsyncIterator[str]:
    async with front_of(shared) as url:
        yield url


@pytest.fixture
async def node(shared: Node) -> AsyncIterator[Node]:
    async with left_as_found(shared):
        yield shared


# Watches


@BOTH
async def test_a_watch_begins_with_who_is_there_and_shows_each_change_once_in_order(
    node: Node, face: Face
) -> None:
    *seen, nothing = await seen_by(node, face(handlers.watched))
    assert seen == [
        ["joined", "one", {"n": [1, 2]}],
        ["joined", "two", None],
        ["joined", "me", "me"],
        ["changed", "one", {"n": 3}],
        ["left", "two", None],
        ["joined", "two", None],
    ]
    starts([nothing], "TimeoutError")


def test_what_a_watch_shows_is_of_types_that_are_exported() -> None:
    pid = PID("{local@processes|1}")
    shown, member = Presence("changed", pid, {"n": 1}), Member(pid)
    assert (shown.kind, shown.pid, shown.meta) == ("changed", pid, {"n": 1})
    assert (member.pid, member.meta) == (pid, None)
    with pytest.raises(AttributeError):
        shown.kind = "left"  # type: ignore[misc]


@BOTH
async def test_who_ends_in_whatever_way_has_left_with_its_last_metadata(
    node: Node, face: Face
) -> None:
    seen, members = await seen_by(node, face(handlers.watch_the_dying))
    ways = ["return", "raise", "kill", "cancel", "terminate"]
    assert seen == [["left", True, way] for way in ways]
    assert members == []


@BOTH
async def test_what_a_member_has_sent_is_in_the_inbox_before_it_has_left(
    node: Node, face: Face
) -> None:
    kinds, numbers = await seen_by(node, face(handlers.watch_one_who_says), 300)
    assert kinds == ["joined", "left"]
    assert numbers == list(range(300))


@BOTH
async def test_watches_that_begin_amid_changes_miss_and_double_none(node: Node, face: Face) -> None:
    rounds, is_roster, nothing = await seen_by(node, face(handlers.watch_in_the_middle), 3, 302)
    for number, shown in enumerate(rounds):
        here: dict[str, Any] = {}
        for kind, pid, meta in shown:
            assert (pid in here) is (kind != "joined"), (number, shown)
            if kind == "left":
                assert here.pop(pid) == meta, (number, shown)
            else:
                assert here.get(pid, "none") != meta, (number, shown)
                here[pid] = meta
    assert is_roster
    starts([nothing], "TimeoutError")


@BOTH
async def test_unlisten_ends_a_watch_and_a_later_one_begins_anew(node: Node, face: Face) -> None:
    seen = await seen_by(node, face(handlers.unwatch))
    assert seen[:4] == [True, True, True, [True]]
    starts([seen[4]], "ChannelClosed")
    assert seen[5] == [["joined", 3], ["left", 3]]
    assert not node.kernel.groups._watchers


@BOTH
async def test_a_watch_ends_with_cancel_behind_what_is_queued(node: Node, face: Face) -> None:
    shown, *closed = await seen_by(node, face(handlers.watch_until_cancelled))
    assert shown == [["joined", 1]]
    starts(closed, "ChannelClosed", "ChannelClosed")


@BOTH
async def test_a_watch_is_received_from_and_selected_as_other_channels_are(
    node: Node, face: Face
) -> None:
    late, message, shown = await seen_by(node, face(handlers.watch_beside_messages))
    starts([late], "TimeoutError")
    assert [message, shown] == [[True, "message"], [True, "meta"]]


@BOTH
async def test_a_watcher_that_reads_nothing_ends_as_one_that_reads_no_messages(
    node: Node, face: Face
) -> None:
    assert await seen_by(node, face(handlers.overflow)) == [
        True, "mailbox_overflow", "killed: its mailbox held more than 100000 bytes",
    ]  # fmt: skip


@BOTH
async def test_a_connection_leaves_what_is_watched_by_its_end(
    node: Node, front: str, face: Face
) -> None:
    exits = Exits(node)
    watcher = node.spawn(face(handlers.watch_one))
    await until(lambda: node.kernel.groups._watchers, "it watches")
    async with connection(node, front) as (_, pid):
        node.join_group("clients", pid, {"name": "Ada"})
    shown = await exits.of(watcher)
    assert shown.value == [["joined", pid, {"name": "Ada"}], ["left", pid, {"name": "Ada"}]]


# Rosters


@BOTH
async def test_a_roster_has_members_in_order_with_what_they_joined_with_last(
    node: Node, face: Face
) -> None:
    nobody, members = await seen_by(node, face(handlers.rostered))
    assert nobody == []
    assert members == [[True, [1, None]], [True, {"name": "me"}]]


@BOTH
async def test_large_metadata_is_shown_in_several_frames_and_a_roster_has_a_bound(
    node: Node, face: Face, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "_MOST_METADATA", 150_000)
    pids = [node.spawn(mortal) for _ in range(4)]
    all_of_it, refused = await seen_by(node, face(handlers.watch_large), pids, 40_000)
    assert all_of_it
    assert refused == "TooMany: roster (metadata of the members) limit of 150000B reached"


@pytest.mark.parametrize(("members", "size"), [(10_000, 10), (10, 40_000), (1, 1), (40, 2_000)])
def test_a_frame_shows_as_many_members_as_fit_into_a_part_of_the_window(
    members: int, size: int
) -> None:
    told = [
        (PID.trusted(f"{{local@processes|{number}}}"), bytes(size)) for number in range(members)
    ]
    frames = list(_frames(PresenceEffect(told[0][0], "g", 1, "joined", told)))
    assert [one for frame in frames for one in frame.members] == told
    sizes = [len(wire.pack(frame)) for frame in frames]
    assert max(sizes) < wire.WINDOW
    assert all(size > wire.WINDOW // 8 for size in sizes[:-1])


@BOTH
async def test_misuse_of_presence_is_told_at_the_caller_and_changes_nothing(
    node: Node, face: Face
) -> None:
    told = await seen_by(node, face(handlers.misuse))
    starts(
        told,
        "PayloadError: meta['a'][1]: builtins.complex is not data",
        "PayloadError: meta: 65541 bytes are more than the metadata of a member may have, 64KB",
        "InvalidPID: '{nonsense'",
        "InvalidName: '' is not a name",
        "InvalidName: '{a}' is not a name",
        "InvalidName: 3 is not a name",
        "InvalidName: '\\ud800' is not a name: it has surrogates",
        "InvalidName: 'xxx",
        "PayloadError: Roster cannot be sent to the node",
        "ValueError: unlisten() takes only a channel that listen(), ticks() or groups.watch() ",
        "True right",
    )


# On the node


@pytest.mark.usefixtures("node")
async def test_rosters_and_metadata_work_on_the_node_and_watches_do_not() -> None:
    one, two = (process.spawn(mortal) for _ in range(2))
    process.groups.join("g", one, meta={"n": 1})
    process.groups.join("g", two)
    process.groups.join("g", one, meta={"n": 2})
    roster = [Member(one, {"n": 2}), Member(two)]
    assert process.groups.roster("g") == await aio_process.groups.roster("g") == roster
    with pytest.raises(PayloadError, match=r"meta: builtins\.complex is not data"):
        process.groups.join("g", two, meta=3j)
    with pytest.raises(NotAProcess, match="only a process can do this"):
        process.groups.watch("g")
