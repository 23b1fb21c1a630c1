"""What a node's log and commands say of the processes of other nodes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from circles import Shared
from commands import run_here
from one_node import connection, front_of
from support import until

from wsrelay.control import ControlSocket

pytest_plugins = ["sharing"]
pytestmark = pytest.mark.anyio


async def wsrelay(*arguments: str) -> str:
    done = await asyncio.to_thread(run_here, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_what_the_log_says_of_a_process_elsewhere_has_its_pid_and_its_names(
    cluster: Shared,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("WSRELAY_RUNTIME_DIR", str(tmp_path / "run"))
    ann, ben = cluster["ann"], cluster["ben"]
    async with (
        ControlSocket(ann, tmp_path / "run"),
        front_of(ann) as front,
        connection(ann, front) as (_, pid),
    ):
        there = await ben.get_or_spawn_async("odd", "misuse", None, str(pid))
        await until(lambda: cluster.seat("ann").find("odd") == there, "the name is known")
        await until(lambda: f"{there} sent ws.control to {pid}" in caplog.text, "it is told")
        [record] = [one for one in caplog.records if "which cannot use it" in one.message]
        about = {"pid": there, "names": ["odd"], "host": "processes"}
        assert {key: getattr(record, f"wsrelay_{key}") for key in about} == about
        for which in ("odd", str(there), str(there)[1:-1]):
            assert f"{there} sent ws.control" in await wsrelay("logs", which)


async def test_clients_of_processes_elsewhere_are_shown_with_the_node(
    cluster: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WSRELAY_RUNTIME_DIR", str(tmp_path / "run"))
    ann, ben = cluster["ann"], cluster["ben"]
    there = ben.spawn("room")
    async with ControlSocket(ann, tmp_path / "run"), front_of(ann) as front:
        async with connection(ann, front, there) as (_, pid):
            lines = (await wsrelay("tree")).splitlines()
            at = next(i for i, line in enumerate(lines) if "processes of other nodes" in line)
            assert there in lines[at + 1]
            assert pid in lines[at + 2]
            monkeypatch.setenv("COLUMNS", "80")
            assert there in await wsrelay("connections")
        assert "other nodes" not in await wsrelay("tree")
