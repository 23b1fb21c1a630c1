"""Limits of a host as a whole. What needs a cgroup v2 of our own is skipped where there is none."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from support import end_of, until, value_of

from wsrelay import ExitKind, HostFailed, HostOptions, Isolation, Limits, Node
from wsrelay.confinement import check_cgroup
from wsrelay.confinement.cgroup import CgroupError, Place, _remove, find, settings
from wsrelay.values.bounds import InvalidOptions

MB = 1024 * 1024
ALL = Limits(cpus=0.5, memory_total=256 * MB, processes_total=50)


def why_not() -> str:
    try:
        find(ALL)
    except CgroupError as error:
        return str(error)
    return ""


real = pytest.mark.skipif(bool(why_not()), reason=why_not())
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can do that")


# What is read and written, on a folder that looks like the kernel's


class Tree:
    """A folder that looks like /proc and the mounts of cgroups."""

    def __init__(self, folder: Path) -> None:
        self.proc = folder / "proc"
        self.systemd = folder / "systemd"
        self.mount = folder / "the cgroup"
        (self.proc / "self").mkdir(parents=True)
        self.mounts()
        self.group("", root=True)

    def mounts(self, root: str = "/") -> None:
        point = str(self.mount).replace(" ", "\\040")
        (self.proc / "self/mountinfo").write_text(
            "22 1 0:20 / / rw - ext4 /dev/sda1 rw\n"
            f"30 22 0:28 / {point}/cpu rw,relatime - cgroup cgroup rw,cpu\n"
            f"31 22 0:29 {root} {point} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
        )

    def group(self, path: str, has: str = "cpu memory pids", *, root: bool = False) -> Path:
        folder = self.mount / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cgroup.controllers").write_text(f"{has}\n")
        for name in ("cgroup.procs", "cgroup.subtree_control", *(() if root else ["cgroup.type"])):
            (folder / name).touch()
        return folder

    def node_in(self, path: str) -> None:
        (self.proc / "self/cgroup").write_text(f"4:memory:/other\n1:name=systemd:/x\n0::{path}\n")

    def find(self, limits: Limits = ALL) -> Place:
        return find(limits, self.proc, self.systemd)

    def refusal(self, limits: Limits = ALL) -> str:
        with pytest.raises(CgroupError) as refused:
            self.find(limits)
        return str(refused.value)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_limits_are_what_is_written_into_the_files_of_a_cgroup() -> None:
    assert settings(Limits(cpus=1.5, memory_total=2 * 1024**3, processes_total=500)) == {
        "cpu.max": "150000 100000",
        "memory.max": "2147483648",
        "memory.swap.max": "0",
        "pids.max": "500",
    }
    assert settings(Limits(cpus=0.01)) == {"cpu.max": "1000 100000"}
    assert settings(Limits(memory=1, processes=1)) == {}


def test_in_the_root_hosts_stand_beside_the_node(tree: Tree) -> None:
    tree.node_in("/")
    assert tree.find() == Place(tree.mount, occupied=False)


def test_elsewhere_the_node_has_to_step_into_a_leaf_and_finds_the_place_again(tree: Tree) -> None:
    folder = tree.group("service")
    tree.node_in("/service")
    assert tree.find() == Place(folder, occupied=True)
    tree.group("service/wsrelay.node", "")
    tree.node_in("/service/wsrelay.node")
    assert tree.find() == Place(folder, occupied=False)


def test_a_container_sees_a_part_of_the_tree_as_the_whole(tree: Tree) -> None:
    tree.mounts(root="/docker/1f")
    tree.group("")
    tree.node_in("/docker/1f")
    assert tree.find() == Place(tree.mount, occupied=True)
    inner = tree.group("inner")
    tree.node_in("/docker/1f/inner")
    assert tree.find() == Place(inner, occupied=True)
    tree.node_in("/docker/1f0")
    assert "no cgroup v2 is available" in tree.refusal()
    tree.node_in("/../1f")
    assert "no cgroup v2 is available" in tree.refusal()
    tree.mounts(root="/..")
    tree.node_in("/")
    assert "no cgroup v2 is available" in tree.refusal()


def test_under_systemd_the_cgroup_must_be_delegated(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    delegated: list[Path] = []

    def mark(path: Path, name: str) -> bytes:
        if path in delegated and name == "user.delegate":
            return b"1"
        raise OSError

    monkeypatch.setattr(os, "getxattr", mark)
    tree.systemd.mkdir()
    service, main = tree.group("a.service"), tree.group("a.service/main")
    tree.node_in("/a.service")
    assert "Write `Delegate=yes` into the [Service] of its unit" in tree.refusal()
    delegated.append(service)
    assert tree.find() == Place(service, occupied=True)
    tree.node_in("/a.service/main")
    assert tree.find() == Place(service, occupied=False)
    delegated[:] = [main]
    assert tree.find() == Place(main, occupied=True)


def test_a_controller_that_is_not_there_is_named_with_what_to_do(tree: Tree) -> None:
    tree.group("service", "memory pids")
    tree.node_in("/service")
    assert tree.find(Limits(memory_total=64 * MB, processes_total=9)).folder.name == "service"
    assert "has no controller cpu (it has: memory pids). The node's unit needs" in tree.refusal()
    (tree.proc / "cgroups").write_text("#subsys_name hierarchy\ncpu 2 1 1\nmemory 0 1 1\n")
    assert "The system has it in cgroup v1: start it with" in tree.refusal()


def test_without_cgroup_v2_it_says_how_to_get_it(tree: Tree, tmp_path: Path) -> None:
    (tree.proc / "self/cgroup").write_text("4:memory:/\n")
    assert "start the system with systemd.unified_cgroup_hierarchy=1" in tree.refusal()
    tree.node_in("/hidden")
    assert tree.refusal() == f"the node's cgroup {tree.mount}/hidden: No such file or directory"
    with pytest.raises(CgroupError, match="only Linux has cgroups"):
        find(ALL, tmp_path / "nothing")


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_cgroup_of_somebody_else_is_refused(tree: Tree) -> None:
    tree.group("service").chmod(0o555)
    tree.node_in("/service")
    assert "the node may not write to its cgroup" in tree.refusal()


def test_a_check_names_the_first_of_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Limits) -> None:
        raise CgroupError("there is none")

    monkeypatch.setattr("wsrelay.confinement.cgroup.find", refuse)
    check_cgroup(Limits(memory=5, processes=5))
    with pytest.raises(InvalidOptions) as refused:
        check_cgroup(Limits(memory_total=64 * MB, processes_total=5))
    assert refused.value.problems == [("limits.memory_total", "cannot be kept: there is none")]


@pytest.mark.anyio
async def test_a_host_whose_limits_the_system_cannot_keep_does_not_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: Limits) -> None:
        raise CgroupError("there is none")

    monkeypatch.setattr("wsrelay.confinement.cgroup.find", refuse)
    async with Node(hosts=[HostOptions(limits=ALL)]) as node:
        with pytest.raises(HostFailed, match="of the host as a whole cannot be kept: there is no"):
            await node.loaded()


# The real thing


def where() -> Path:
    """Return the cgroup that this process is in."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    path = next(line for line in lines if line.startswith("0::")).removeprefix("0::/")
    folder = find(ALL).folder
    while not (folder / path).exists():
        folder = folder.parent
    return folder / path


def hosts_there() -> set[Path]:
    return set(find(ALL).folder.glob("wsrelay.*.*.*.*"))


@pytest.fixture
def nothing_left() -> Iterator[None]:
    before = hosts_there()
    yield
    assert hosts_there() == before


def crowd(handler: str) -> str:
    return f"{Path(__file__).with_name('crowds.py')}:{handler}"


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def host(limits: Limits = ALL, **options: Any) -> HostOptions:
    return HostOptions(name="app:all", limits=limits, stop_timeout=2.0, **options)


@real
@pytest.mark.anyio
@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("user", [None, pytest.param("nobody", marks=as_root)])
async def test_all_of_a_host_is_in_a_cgroup_that_has_its_limits(user: str | None) -> None:
    before = hosts_there()
    options = host(isolation=Isolation(user=user))
    async with Node(hosts=[options]) as node:
        with tempfile.TemporaryDirectory() as open_to_all:
            Path(open_to_all).chmod(0o755)
            script = shutil.copy(crowd("").rstrip(":"), open_to_all)
            worker, daemon = await value_of(node, f"{script}:settle")
        (folder,) = hosts_there() - before
        assert folder.name.startswith("wsrelay.app-all.")
        for name, text in settings(ALL).items():
            if (folder / name).exists():
                assert (folder / name).read_text().strip() == text
        assert worker.strip().endswith(f"/{folder.name}")
        assert daemon == worker
        assert where() != folder
        template = node.templates["app:all"]
        assert str(template) in (folder / "cgroup.procs").read_text().split()


@real
@as_root
@pytest.mark.anyio
@pytest.mark.usefixtures("nothing_left")
async def test_a_process_of_another_user_cannot_leave_its_cgroup() -> None:
    before = hosts_there()
    with tempfile.TemporaryDirectory() as open_to_all:
        Path(open_to_all).chmod(0o755)
        script = shutil.copy(crowd("").rstrip(":"), open_to_all)
        walled = host(isolation=Isolation(user="nobody"), targets=(f"{script}:leave",))
        async with Node(hosts=[walled]) as node:
            await node.loaded()
            (folder,) = hosts_there() - before
            assert await value_of(node, f"{script}:leave", str(folder)) == []


@real
@pytest.mark.anyio
@pytest.mark.usefixtures("nothing_left")
async def test_a_process_that_the_system_kills_for_the_memory_of_its_host_is_told_so() -> None:
    limits = Limits(memory_total=128 * MB)
    async with Node(hosts=[host(limits)]) as node:
        neighbour = node.spawn(crowd("wait"))
        error = (await end_of(node, crowd("hungry"), 256 * MB)).error
        assert error is not None
        said = "memory limit of 128MB of its host reached"
        assert (error.kind, error.message) == (ExitKind.LIMIT, said)
        assert neighbour in node.workers
        assert await value_of(node, crowd("hungry"), 16 * MB) == 16 * MB
        pid = node.spawn(crowd("wait"))
        ended: list[Any] = []
        node.when_ended(pid, ended.append)
        os_pid = await until(lambda: node.workers[pid])
        os.kill(os_pid, signal.SIGKILL)
        await until(lambda: ended)
        assert ended[0].error.kind is ExitKind.KILLED


@real
@pytest.mark.anyio
@pytest.mark.usefixtures("nothing_left")
async def test_memory_that_belongs_to_no_process_counts_too() -> None:
    async with Node(hosts=[host(Limits(memory_total=128 * MB))]) as node:
        error = (await end_of(node, crowd("fill_memfd"), 256 * MB)).error
        assert error is not None
        assert error.kind is ExitKind.LIMIT
        assert await value_of(node, crowd("hungry"), 16 * MB) == 16 * MB


@real
@pytest.mark.anyio
@pytest.mark.usefixtures("nothing_left")
async def test_a_limit_that_holds_not_even_the_loading_is_told(tmp_path: Path) -> None:
    script = tmp_path / "large.py"
    script.write_text("table = bytearray(b'.') * (128 << 20)\ndef handler(): pass\n")
    limits, targets = Limits(memory_total=64 * MB), (f"{script}:handler",)
    async with Node(hosts=[host(limits, targets=targets)]) as node:
        with pytest.raises(HostFailed, match="memory limit of 64MB of its host reached by what"):
            await node.loaded()


@real
@pytest.mark.anyio
@pytest.mark.usefixtures("nothing_left")
async def test_a_fork_bomb_ends_at_the_processes_of_its_host_also_for_root() -> None:
    async with Node(hosts=[host(Limits(processes_total=20))]) as node:
        assert 10 < await value_of(node, crowd("fork_all")) < 20
    async with Node(hosts=[host(Limits(processes_total=5))]) as node:
        pids = [node.spawn(crowd("wait")) for _ in range(8)]
        await until(lambda: len(node.workers) <= 4)
        error = (await end_of(node, crowd("settle"))).error
        assert error is not None
        assert "the host may have 5 processes and threads" in error.message
        assert len(pids) > 4


@real
@pytest.mark.anyio
@pytest.mark.usefixtures("nothing_left")
async def test_a_host_computes_no_more_than_its_share() -> None:
    before = hosts_there()
    async with Node(hosts=[host(Limits(cpus=0.1))]) as node:
        for _ in range(2):
            node.spawn(crowd("spin"))

        def throttled() -> bool:
            (folder,) = hosts_there() - before
            return "nr_throttled 0" not in (folder / "cpu.stat").read_text()

        await until(throttled)


@real
@pytest.mark.anyio
@pytest.mark.usefixtures("nothing_left")
async def test_a_lost_template_leaves_no_daemon_and_the_next_has_a_cgroup_of_its_own(
    tmp_path: Path,
) -> None:
    before = hosts_there()
    async with Node(hosts=[host()]) as node:
        node.spawn(crowd("hide"), None, str(tmp_path / "pid"))
        await until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        (first,) = hosts_there() - before
        template = node.templates["app:all"]
        assert template is not None
        os.kill(template, signal.SIGKILL)
        await until(lambda: not node.workers, "it is seen that the template is lost")
        worker, _ = await value_of(node, crowd("settle"))
        assert not worker.strip().endswith(first.name)
        await until(lambda: not first.exists(), "the former cgroup is gone")
        assert gone(int((tmp_path / "pid").read_text()))


NODE = """
import asyncio, sys
from test_cgroup import crowd, host
from wsrelay import Node

async def main():
    async with Node(hosts=[host()]) as node:
        node.spawn(crowd("hide"), None, sys.argv[1])
        await node.loaded()
        print(node.templates["app:all"], flush=True)
        print(open("/proc/self/cgroup").read().splitlines()[-1], flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


def started(told: Path, folder: Path) -> subprocess.Popen[str]:
    """A node in a process and cgroup of its own, that ends with its standard input."""
    entering = f"echo $$ > '{folder}/cgroup.procs'; exec '{sys.executable}' \"$@\""
    return subprocess.Popen(
        ["sh", "-c", entering, "sh", "-c", NODE, str(told)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )


@pytest.fixture
def service() -> Iterator[Path]:
    """A cgroup beside this process's, as systemd makes one for a service."""
    place = find(ALL).folder
    (place / "cgroup.subtree_control").write_text("+cpu +memory +pids")
    folder = place / f"test.{os.getpid()}"
    folder.mkdir()
    yield folder
    _remove(folder)
    assert not folder.exists()


@pytest.fixture
def beside(service: Path) -> Iterator[int]:
    """A process in that cgroup."""
    with subprocess.Popen(["sleep", "600"]) as running:
        (service / "cgroup.procs").write_text(str(running.pid))
        yield running.pid
        running.kill()


@real
@pytest.mark.anyio
@pytest.mark.usefixtures("nothing_left")
async def test_what_a_killed_node_has_left_is_removed_by_the_next(tmp_path: Path) -> None:
    before = hosts_there()
    told = tmp_path / "pid"
    with started(told, where()) as node:
        assert node.stdout is not None
        template = int(node.stdout.readline())
        await until(lambda: told.exists() and told.read_text())
        daemon = int(told.read_text())
        os.kill(template, signal.SIGSTOP)  # so that it kills nobody when the node is gone
        node.kill()
        os.kill(template, signal.SIGKILL)
    (left,) = hosts_there() - before
    assert not gone(daemon)
    async with Node(hosts=[host()]) as other:
        assert (await value_of(other, crowd("settle")))[0]
        assert not left.exists()
        assert gone(daemon)
        assert len(hosts_there() - before) == 1


@real
@as_root
@pytest.mark.anyio
async def test_a_node_steps_into_a_leaf_with_what_is_beside_it(
    tmp_path: Path, service: Path, beside: int
) -> None:
    told = tmp_path / "pid"
    with started(told, service) as node:
        assert node.stdout is not None
        node.stdout.readline()
        assert node.stdout.readline().strip().endswith(f"{service.name}/wsrelay.node")
        await until(lambda: told.exists() and told.read_text())
        assert len([*service.glob("wsrelay.app-all.*")]) == 1
        inside = (service / "wsrelay.node/cgroup.procs").read_text().split()
        assert {str(node.pid), str(beside)} <= {*inside}
    assert node.returncode == 0
    assert not [*service.glob("wsrelay.app-all.*")]
