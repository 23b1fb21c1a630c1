"""What `ps`, `top` and `htop` show of our processes."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest
import rooms
from support import processes, room, until

from wsrelay import Node, process
from wsrelay.confinement import Isolation

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="the tests read /proc"),
]


def title(os_pid: int | None) -> str:
    return Path(f"/proc/{os_pid}/cmdline").read_bytes().rstrip(b"\0").decode()


def busy() -> None:
    from setproctitle import setproctitle  # noqa: PLC0415 - as a handler of a user may do it

    setproctitle("my own title")
    process.registry.register("busy")
    for _ in process.inbox():
        pass


async def test_a_worker_has_its_name_pid_and_target_as_title(node: Node) -> None:
    named = node.get_or_spawn("room:blue", room(rooms.echo))
    unnamed = node.spawn(room(rooms.echo))
    for pid in (named, unnamed):
        assert await node.started(pid) is None
    assert title(node.workers[named]).startswith(f"wsrelay: room:blue {named} /")
    assert title(node.workers[unnamed]).startswith(f"wsrelay: {unnamed} /")
    assert psutil.Process(node.workers[named]).name() == "wsrelay: room:b"


def renamed() -> None:
    process.registry.register("lobby")
    process.registry.register("second")
    for message in process.inbox():
        process.registry.unregister(message.topic)


async def test_a_worker_that_registers_a_name_shows_it_until_it_has_it_no_more(
    node: Node,
) -> None:
    pid = node.spawn(renamed)
    await until(lambda: {"lobby", "second"} == {*node.kernel.names.of(pid)})
    assert title(node.workers[pid]).startswith(f"wsrelay: lobby {pid} ")
    node.send(pid, "second")
    await until(lambda: {"lobby"} == {*node.kernel.names.of(pid)})
    assert title(node.workers[pid]).startswith(f"wsrelay: lobby {pid} ")
    node.send(pid, "lobby")
    await until(lambda: title(node.workers[pid]).startswith(f"wsrelay: {pid} "))


async def test_a_name_can_neither_forge_a_title_nor_push_the_pid_out_of_it(node: Node) -> None:
    pid = node.get_or_spawn("room\n\x1b\0" + "x" * 500, room(rooms.echo))
    assert await node.started(pid) is None
    shown = title(node.workers[pid])
    assert shown.startswith(r"wsrelay: room\n\x1b\x00xxx")
    assert f"x {pid}" in shown


async def test_templates_and_processes_that_wait_say_what_they_are() -> None:
    async with Node(hosts=[processes(warm=1)]) as node:
        await node.loaded()
        template = psutil.Process(node.templates["processes"])
        assert title(template.pid) == "wsrelay: template of processes"
        await until(
            lambda: [title(p.pid) for p in template.children()] == ["wsrelay: waiting in processes"]
        )
        pid = node.spawn(room(rooms.echo))
        assert await node.started(pid) is None
        await until(lambda: node.workers[pid], "the template has told which process it is")
        assert str(pid) in title(node.workers[pid])


async def test_a_handler_may_set_a_title_of_its_own(node: Node) -> None:
    pid = node.spawn(busy)
    await until(
        lambda: node.workers[pid] and title(node.workers[pid]) == "my own title", "it has it"
    )


async def test_the_environment_stays_where_operators_read_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WSRELAY_TEST_OPERATOR", "looks")
    async with Node(hosts=[processes()]) as node:
        pid = node.spawn(room(rooms.echo))
        assert await node.started(pid) is None
        environment = psutil.Process(node.workers[pid]).environ()
        assert environment["WSRELAY_TEST_OPERATOR"] == "looks"
        assert "SPT_NOENV" not in environment


async def test_a_host_that_forgets_its_environment_has_titles_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WSRELAY_TEST_SECRET", "hunter2")
    isolated = processes(isolation=Isolation(environment=("PATH", "HOME")))
    async with Node(hosts=[isolated]) as node:
        pid = node.spawn(busy)
        await until(
            lambda: node.workers[pid] and title(node.workers[pid]) == "my own title", "it has it"
        )
        assert b"hunter2" not in Path(f"/proc/{node.workers[pid]}/environ").read_bytes()
