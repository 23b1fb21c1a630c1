"""The process behind a page, against real nodes: what it tells, and what it obeys."""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
import rooms
import troubled
from consoles import Console, Viewer, console_on, named, viewing
from one_node import left_as_found, running_node
from support import ROOMS, client, closed, processes, received, relay_to, room, serving, until
from troubled import idle
from websockets.asyncio.client import ClientConnection

from wsrelay import PID, Node, WebSocketRelay
from wsrelay.console.pages import VIEW

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def shared() -> AsyncIterator[Node]:
    """A node that is looked at; on it, the pages' processes run as well."""
    async with running_node(processes(targets=(room(rooms.echo), VIEW))) as node:
        yield node


@pytest.fixture
async def node(shared: Node) -> AsyncIterator[Node]:
    async with left_as_found(shared):
        yield shared


@pytest.fixture
async def console(node: Node) -> AsyncIterator[Console]:
    async with console_on(node) as console:
        yield console


@pytest.fixture
async def writing(node: Node) -> AsyncIterator[Console]:
    async with console_on(node, write=True) as console:
        yield console


@pytest.fixture
async def viewer(console: Console) -> AsyncIterator[Viewer]:
    async with viewing(console) as viewer:
        yield viewer


@contextlib.asynccontextmanager
async def visited(node: Node) -> AsyncIterator[tuple[PID, ClientConnection]]:
    """A process that talks, and its client."""
    pid = node.spawn(f"{troubled.__file__}:talking")
    async with serving(WebSocketRelay(relay_to(pid), node=node)) as url, client(url) as one:
        assert await received(one) == "welcome"
        yield pid, one


async def test_the_first_page_has_each_process_with_what_it_takes(
    node: Node, viewer: Viewer
) -> None:
    pid = node.get_or_spawn("room:blue", room(rooms.echo))
    await viewer.look("home")
    row = await viewer.sees(
        lambda state: (row := named(state).get("room:blue")) and "cpu" in row and row
    )
    assert row["pid"] == pid
    assert row["memory"] > 1_000_000
    assert (row["clients"], row["mailbox"], row["state"]) == (0, 0, "running")
    assert next(iter(viewer.state["nodes"].values()))["name"] == "local"
    assert viewer.state["findings"]["order"] == []
    await viewer.sees(lambda state: len(state["series"]["cpu"]) > 1)
    assert viewer.state["series"]["processes"].popitem()[1] == 2


async def test_a_search_and_a_page_are_what_is_told(node: Node, viewer: Viewer) -> None:
    for name in ("quartz red", "quartz green", "blue"):
        node.get_or_spawn(f"room:{name}", room(rooms.echo))
    # Targets are searched as well, and may be anywhere: no other path has this in it.
    await viewer.look("home", search="ROOM: quartz", sort="name", descending=False)
    await viewer.sees(lambda state: list(named(state)) == ["room:quartz green", "room:quartz red"])
    assert viewer.state["table"]["total"] == 4
    await viewer.look("home", search="nothing of that name")
    await viewer.sees(lambda state: state["table"]["match"] == 0)


async def test_a_process_is_told_with_its_clients_its_kin_and_its_log(
    node: Node, viewer: Viewer
) -> None:
    async with visited(node) as (pid, visitor):
        await viewer.look("process", of=pid)
        await viewer.sees(
            lambda state: "cpu" in state.get("process", ()) and state["table"]["rows"]
        )
        about = viewer.state["process"]
        assert about["names"] == ["talker"]
        assert "talking" in about["full_target"]
        [child] = about["children"]
        [row] = viewer.state["table"]["rows"].values()
        assert row["client"] == ":".join(map(str, visitor.local_address))
        assert row["target_name"] == "talker"
        node.send(pid, "say", "<b>bold</b>")
        line = await viewer.hears(lambda line: "saying" in line["text"])
        assert (line["pid"], line["level"]) == (pid, "warning")
        assert line["text"].endswith("saying <b>bold</b>")
        await viewer.look("process", of=child)
        await viewer.sees(lambda state: state.get("process", {}).get("parent") == {pid: "talker"})
        await viewer.look("connections")
        await viewer.sees(lambda state: row["pid"] in state["table"]["rows"])
        assert viewer.state["table"]["total"] == 2, "that of the page itself is one, too"


def _gone(node: Node, pid: PID) -> bool:
    return pid not in node.workers


async def test_the_log_of_all_is_searched_and_filtered(node: Node, viewer: Viewer) -> None:
    async with visited(node) as (pid, _):
        await viewer.look("logs", level="warning", search="needle")
        await viewer.sees(lambda state: state["page"] == "logs")
        node.send(pid, "say", "hay")
        node.send(pid, "say", "a NEEDLE")
        await viewer.hears(lambda line: "NEEDLE" in line["text"])
        assert all("NEEDLE" in line["text"] for line in viewer.lines)


async def test_how_a_process_ended_is_told_on_its_page_and_among_the_ends(
    node: Node, viewer: Viewer
) -> None:
    pid = node.get_or_spawn("room:odd", f"{troubled.__file__}:failing")
    await viewer.look("process", of=pid)
    await viewer.sees(lambda state: "process" in state or "ended" in state)
    node.send(pid, "fail", "<script>")
    await viewer.sees(lambda state: "ended" in state)
    ended = viewer.state["ended"]
    assert (ended["name"], ended["how"]) == ("room:odd", "raised")
    [end] = (one for one in node.engine.ends.processes() if one.pid == pid)
    assert ended["ended"] == math.floor(end.ended), "never later than what the log says"
    assert ended["lived"] == math.floor(end.ended - end.started)
    assert ended["message"] == "ValueError: <script>"
    assert ended["traceback"].startswith("Traceback (most recent call last):")
    await viewer.look("ends", search="odd")
    await viewer.sees(lambda state: named(state).get("room:odd", {}).get("pid") == pid)
    assert "traceback" not in named(viewer.state)["room:odd"]
    await viewer.look("home")
    found = await viewer.sees(lambda state: state["findings"]["rows"].values())
    assert [one["text"].partition(",")[0] for one in found] == ["crashed once"]


async def test_a_process_is_told_in_full_and_its_messages_are_followed(
    node: Node, viewer: Viewer
) -> None:
    async with visited(node) as (pid, _):
        await viewer.look("process", of=pid, trace=True, payload=True)
        about = await viewer.sees(lambda state: "code" in (one := state.get("process", {})) and one)
        assert about["code"].startswith(f"{troubled.__file__}:")
        assert about["mail_limit"] > 0
        assert about["options"]["stop_timeout"] == "2.0"
        await viewer.hears(lambda line: "note" in line or _again(node, pid, line))
        line = await viewer.hears(lambda line: _again(node, pid, line))
        assert (line["direction"], line["payload"]) == ("in", '"traced"')


def _again(node: Node, pid: PID, line: dict[str, Any]) -> bool:
    """Whether it is the message, which is sent again where it came before the trace had begun."""
    node.send(pid, "say", "traced")
    return line.get("topic") == "say"


async def test_a_console_that_may_write_closes_a_client_and_is_named_for_it(
    node: Node, writing: Console
) -> None:
    async with visited(node) as (_, visitor), viewing(writing) as viewer:
        await viewer.look("connections")
        client_of = ":".join(map(str, visitor.local_address))
        row = await viewer.sees(lambda state: named(state).get(client_of))
        order = {"type": "act", "what": "close", "of": row["pid"], "code": 4001, "reason": "out"}
        assert "error" not in await viewer.ask(order)
        assert await closed(visitor) == (4001, "out")
        await viewer.look("ends", kind="connection")
        end = await viewer.sees(lambda state: named(state).get(client_of))
        assert (end["code"], end["reason"], end["by"]) == (4001, "out", "console")


async def test_where_a_process_is_in_its_code_is_told(node: Node, viewer: Viewer) -> None:
    async with visited(node) as (pid, _):
        await viewer.look("process", of=pid)
        await viewer.sees(lambda state: "process" in state)
        answer = await viewer.ask({"type": "stack", "of": pid})
        assert "troubled.py" in answer["value"]
        assert "in talking" in answer["value"]


async def test_a_process_that_ends_while_it_is_looked_at_is_missed(
    node: Node, viewer: Viewer
) -> None:
    pid = node.spawn(idle)
    await viewer.look("process", of=pid)
    await viewer.sees(lambda state: "process" in state)
    node.terminate(pid)
    await viewer.sees(lambda state: "process" not in state)
    assert viewer.state.get("missing") == pid or viewer.state["ended"]["pid"] == pid


@pytest.mark.parametrize(
    "order",
    [
        {"what": "kill"},
        {"what": "cancel"},
        {"what": "close"},
        {"what": "send", "topic": "x"},
        {"what": "call", "topic": "x"},
    ],
    ids=lambda order: str(order["what"]),
)
async def test_a_console_that_may_not_write_refuses_every_order(
    node: Node, viewer: Viewer, order: dict[str, str]
) -> None:
    pid = node.spawn(f"{ROOMS}:answer")
    await viewer.look("process", of=pid)
    await viewer.sees(lambda state: "process" in state)
    assert viewer.state["write"] is False
    answer = await viewer.ask({"type": "act", "of": pid, **order})
    assert answer["error"] == "this console is read-only: start it with --write to change anything"
    assert pid in node.workers


async def test_a_console_that_may_write_sends_calls_cancels_and_kills(
    node: Node, writing: Console
) -> None:
    answering, idling = node.spawn(f"{ROOMS}:answer"), node.spawn(idle)
    async with viewing(writing) as viewer:
        await viewer.look("home")
        await viewer.sees(lambda state: {answering, idling} <= state["table"]["rows"].keys())
        assert viewer.state["write"] is True
        call = {"type": "act", "what": "call", "of": answering, "topic": "x", "payload": [1, "ä"]}
        assert (await viewer.ask(call))["value"] == [1, "ä"]
        send = {"type": "act", "what": "send", "of": idling, "topic": "x"}
        assert "error" not in await viewer.ask(send)
        nothing = await viewer.ask({**send, "topic": ""})
        assert nothing["error"] == "a message needs a topic"
        reserved = await viewer.ask({**send, "topic": "@x"})
        assert "@x" in reserved["error"]
        for what, pid in (("kill", answering), ("cancel", idling)):
            assert "error" not in await viewer.ask({"type": "act", "what": what, "of": pid})
            await until(partial(_gone, node, pid), f"{pid} has ended")
        await viewer.sees(lambda state: not {answering, idling} & state["table"]["rows"].keys())
        over = await viewer.ask({"type": "act", "what": "kill", "of": answering})
        assert over["error"] == f"no node has {answering}: it has ended"


async def test_what_is_no_question_is_answered_with_what_is_wrong(viewer: Viewer) -> None:
    for wrong in (
        "no object",
        {"type": "look", "number": 1, "page": "nonsense"},
        {"type": "look", "number": 1, "page": "home", "start": -1},
        {"type": "look", "number": 1, "page": "home", "search": "x" * 201},
        {"type": "act", "id": 1, "what": "drain", "of": "x"},
    ):
        await viewer.send(wrong)
        with pytest.raises(AssertionError):
            await viewer.sees(lambda _: False)


async def test_a_page_that_goes_takes_its_process_with_it(node: Node, console: Console) -> None:
    async with viewing(console) as viewer:
        await viewer.look("home")
        await viewer.sees(lambda state: state["table"]["total"] == 1)
    await until(lambda: not node.workers, "nothing is left of the page")
