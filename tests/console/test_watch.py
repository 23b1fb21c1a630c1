"""What the console knows of nodes that come, answer, do not, and go."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from made_up import PORTION, answering, look, node_of, process_info

from wsrelay.console.merge_patch import difference
from wsrelay.console.node_socket import NodeAway
from wsrelay.console.states import state_of
from wsrelay.console.watch import NodesWatch
from wsrelay.console.watched_node import WatchedNode

pytestmark = pytest.mark.anyio

MANY = 2_000


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The runtime directory."""
    directory = tmp_path / "run"
    directory.mkdir(mode=0o700)
    monkeypatch.setenv("WSRELAY_RUNTIME_DIR", str(directory))
    return directory


def states(watch: NodesWatch) -> dict[str, str]:
    return {key: node.state for key, node in watch.nodes.items()}


async def test_of_thousands_of_processes_the_node_tells_portions_and_the_page_gets_a_page(
    folder: Path,
) -> None:
    every = [
        process_info(number, names=[f"room:{number}", "x" * 1000], os_pid=os.getpid())
        for number in range(MANY)
    ]
    async with answering(folder / "many-1.sock", node_of(lambda: every)) as asked:
        watch, home = NodesWatch(), look()
        await watch.look()
        portions = [one for one in asked if one.startswith("/processes")]
        assert len(portions) == MANY // PORTION + 1
        assert "/node?brief=1" in asked
        first = state_of(watch, home, write=False)
        assert first["table"]["total"] == MANY
        assert len(first["table"]["rows"]) == 50
        assert len(msgspec.json.encode(first)) < 40_000
        # All of them change: what is not visible makes no difference.
        every[:] = [{**one, "mailbox": 100, "connections": 7} for one in every]
        asked.clear()
        await watch.look()
        assert len(watch.nodes["many-1"].processes) == MANY
        second = state_of(watch, home, write=False)
        assert 0 < len(msgspec.json.encode(difference(first, second))) < 15_000
        third = state_of(watch, home, write=False)
        assert difference(second, third) == {}


async def test_what_is_not_asked_for_is_not_asked(folder: Path) -> None:
    async with answering(folder / "a-1.sock", node_of(list)) as asked:
        NodesWatch()
        await asyncio.sleep(0)
        assert asked == []


async def test_a_node_that_goes_is_shown_as_it_was_and_one_that_comes_appears(
    folder: Path,
) -> None:
    watch = NodesWatch()
    async with answering(
        folder / "a-1.sock", node_of(lambda: [process_info(mailbox=64, connections=9)])
    ):
        await watch.look()
        assert states(watch) == {"a-1": "up"}
    async with answering(folder / "a-2.sock", node_of(lambda: [process_info(7)])):
        await watch.look()
        assert states(watch) == {"a-1": "gone", "a-2": "up"}
        shown = state_of(watch, look(), write=False)
        assert {name: row.get("gone") for name, row in shown["table"]["rows"].items()} == {
            process_info()["pid"]: True,
            process_info(7)["pid"]: None,
        }
        assert shown["findings"]["rows"][shown["findings"]["order"][0]]["name"] == "local"
        for sort in ("mailbox", "clients"):
            shown = state_of(watch, look(sort=sort), write=False)
            assert shown["table"]["order"] == [process_info(number)["pid"] for number in (7, 0)]
        watch.nodes["a-1"].since = time.monotonic() - 1000
        await watch.look()
        assert states(watch) == {"a-2": "up"}


async def test_a_socket_of_a_node_that_has_long_gone_is_not_shown(folder: Path) -> None:
    async with answering(folder / "a-1.sock", node_of(list)):
        pass
    (folder / "a-1.sock").touch()
    watch = NodesWatch()
    await watch.look()
    assert watch.nodes == {}


async def test_an_older_node_is_shown_with_what_it_knows(folder: Path) -> None:
    async with answering(folder / "a-1.sock", node_of(lambda: [process_info()])) as asked:
        watch = NodesWatch()
        watch.choose(process_info()["pid"])
        await watch.look()
        node = watch.nodes["a-1"]
        assert node.unknown == {"/cluster", "/connections", "/ends", "/process"}
        shown = state_of(watch, look("process", of=watch.of), write=False)
        assert shown["process"]["unknown"] == ["/ends", "/process"]
        assert state_of(watch, look("ends"), write=False)["unknown"] == ["local"]
        asked.clear()
        await watch.look()
        assert not any(one.startswith(("/ends", "/cluster")) for one in asked)


async def test_ends_are_asked_for_from_the_last_one_that_is_known(folder: Path) -> None:
    kept: list[dict[str, Any]] = [{"number": number, "pid": str(number)} for number in (1, 2)]

    def answer(path: str, query: dict[str, str]) -> Any:
        if path == "/ends":
            after = int(query.get("after") or 0)
            return [one for one in kept if one["number"] > after and query["kind"] == "process"]
        return node_of(list)(path, query)

    async with answering(folder / "a-1.sock", answer):
        watch = NodesWatch()
        await watch.look()
        kept.append({"number": 3, "pid": "3"})
        await watch.look()
        ends = watch.nodes["a-1"].ends
        assert [one["number"] for one in ends["process"]] == [1, 2, 3]
        assert list(ends["connection"]) == []


async def test_nodes_of_the_cluster_on_other_machines_are_asked_through_one_that_is_here(
    folder: Path,
) -> None:
    link = {"connected": True}
    members = [
        {"name": "a", "state": "up", "asked": True, "link": None},
        {"name": "b", "state": "up", "link": link},
        {"name": "c", "state": "dead", "link": {"connected": False}},
    ]

    def answer(path: str, query: dict[str, str]) -> Any:
        if path == "/cluster":
            return members
        at = query.get("at", "a")
        every = [process_info(5, os_pid=os.getpid())] if at == "b" else []
        return node_of(lambda: every, name=at)(path, query)

    async with answering(folder / "a-1.sock", answer):
        watch = NodesWatch()
        await watch.look()
        await watch.look()
        assert states(watch) == {"a-1": "up", "a-1/b": "up"}
        [process] = watch.processes()
        assert (process.node, process.usage.cpu) == ("a-1/b", None), "its OS PID is of elsewhere"
        link["connected"] = False
        await watch.look()
        await watch.look()
        assert states(watch) == {"a-1": "up", "a-1/b": "gone"}


async def test_a_node_that_does_not_answer_in_time_is_silent_until_it_does(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    async with answering(folder / "a-1.sock", node_of(lambda: [process_info()])):
        watch = NodesWatch()
        await watch.look()

        async def silent(*_: object) -> None:
            raise NodeAway("it does not answer within 3 s", is_over=False)

        with monkeypatch.context() as patch:
            patch.setattr(WatchedNode, "_ask", silent)
            await watch.look()
        assert states(watch) == {"a-1": "silent"}
        assert [process.pid for process in watch.processes()] == [process_info()["pid"]]
        await watch.look()
        assert states(watch) == {"a-1": "up"}


async def test_a_runtime_directory_that_others_can_open_is_refused_in_a_line(folder: Path) -> None:
    folder.chmod(0o755)
    watch = NodesWatch()
    await watch.look()
    assert "is not safe: others can open it" in state_of(watch, look(), write=False)["problem"]


async def test_one_node_alone_may_be_shown(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.sock"
    async with (
        answering(own, node_of(list, name="own")),
        answering(folder / "a-1.sock", node_of(list)),
    ):
        watch = NodesWatch(str(own))
        await watch.look()
        assert [node.name for node in watch.nodes.values()] == ["own"]
