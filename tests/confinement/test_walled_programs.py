"""Ordinary programs work in a walled host, but for what the documentation names."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import until

from wsrelay import Filesystem, HostOptions, Isolation, Node, Result

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux has these walls"),
]

WALLS = {
    "ordinary": Isolation(),
    "network": Isolation(network="none"),
    "filesystem": Isolation(filesystem=Filesystem()),
    "both": Isolation(filesystem=Filesystem(), network="none"),
    "all": Isolation(user="nobody", filesystem=Filesystem(), network="none"),
}

_FOUND = ["all.tar", "file", "linked", "packed", "packed/b", "packed/b/moved", "symbolic"]

PROGRAMS: dict[str, tuple[tuple[Any, ...], Any]] = {
    "in_children": ((), {"run": b"hello\n", "shell": b"21\n", "python": b"42\n", "pid": 0}),
    "in_processes fork": (("fork",), [["by a queue", "by a pipe"], 0, [2, 4, 6]]),
    "in_processes spawn": (("spawn",), [["by a queue", "by a pipe"], 0, [2, 4, 6]]),
    "in_threads": ((), ["a thread", 0, 2, 4]),
    "in_tasks": ((), [b"by cat", 8, [0, 1, 2]]),
    "in_databases": ((), [3, 3]),
    "in_tls": ((), True),
    "in_files": ((), ["con", _FOUND]),
}


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files that all users may write, with the programs in it."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o1777)
        shutil.copy(Path(__file__).with_name("programs.py"), name)
        monkeypatch.setenv("TMPDIR", name)
        yield Path(name)


async def came_to(folder: Path, isolation: Isolation, program: str, *args: Any) -> Result:
    """How a program ends in a host that may write temporary files and shared memory."""
    if isolation.user is not None and os.getuid() != 0:
        pytest.skip("only root can change users")
    if isolation.user is not None and not _all_may_execute(Path(sys.executable)):
        pytest.skip(f"other users cannot reach {sys.executable}")
    if isolation.filesystem is not None:
        shared = "/dev/shm"  # noqa: S108 - where the semaphores of multiprocessing are
        files = Filesystem(read=("/bin", "/usr/bin", "/etc/ssl"), write=(str(folder), shared))
        isolation = Isolation(user=isolation.user, filesystem=files, network=isolation.network)
    results: list[Result] = []
    async with Node(hosts=[HostOptions(isolation=isolation)]) as node:
        pid = node.spawn(f"{folder}/programs.py:{program}", None, *args)
        node.when_ended(pid, results.append)
        await until(lambda: results, "the program has ended")
    return results[0]


def _all_may_execute(path: Path) -> bool:
    real = path.resolve()
    return all(part.stat().st_mode & 0o001 for part in (real, *real.parents, *path.parents))


@pytest.mark.parametrize("walls", WALLS)
@pytest.mark.parametrize("program", PROGRAMS)
async def test_ordinary_programs_work_in_a_walled_host(
    folder: Path, walls: str, program: str
) -> None:
    args, expected = PROGRAMS[program]
    ended = await came_to(folder, WALLS[walls], program.partition(" ")[0], *args)
    assert ended == Result(expected)


@pytest.mark.parametrize("walls", WALLS)
async def test_only_a_host_with_listed_files_sets_no_modes(folder: Path, walls: str) -> None:
    isolation = WALLS[walls]
    refused = isolation.filesystem is not None
    expected = os.strerror(1) if refused else "did"
    assert await came_to(folder, isolation, "copy") == Result(expected)
