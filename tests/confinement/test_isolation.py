"""A handler tries to break out of what its host gives up, and cannot."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from isolated import (
    Host,
    as_root,
    by,
    on_linux,
    own_user,
    reachable_script,
    refusal,
    unused_uid,
    walls,
)
from msgspec import structs
from support import client, received, relay_to, serving, until

from wsrelay import Filesystem, HostOptions, Isolation, Limits, Node, Result, WebSocketRelay
from wsrelay.confinement import isolation as isolating
from wsrelay.confinement import landlock

pytestmark = pytest.mark.anyio


@pytest.fixture
def stranger() -> str:
    return unused_uid()


@pytest.fixture(autouse=True)
def script() -> Iterator[Path]:
    with reachable_script() as script:
        yield script


@contextlib.contextmanager
def sleeping(uid: int | None) -> Iterator[int]:
    """A process of a user (None: the node's)."""
    command = ["sleep", "60"]
    with subprocess.Popen(command, user=uid, group=uid, start_new_session=True) as running:
        try:
            yield running.pid
        finally:
            running.kill()


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the node's own user."""
    with subprocess.Popen(["sleep", "60"]) as running:
        yield running
        running.kill()


# Always


@on_linux
async def test_a_worker_inherits_no_descriptor_of_the_node(script: Path, tmp_path: Path) -> None:
    with (tmp_path / "secret").open("w") as secret, socket.create_server(("127.0.0.1", 0)) as door:
        os.set_inheritable(secret.fileno(), True)
        os.set_inheritable(door.fileno(), True)
        found = await Host(script, Isolation()).value("descriptors")
    assert not [link for link in found.values() if link.startswith("socket:")], found
    own = "/memfd:wsrelay-tallies"  # of the host: see `wire/tally.py`
    files = {link for n, link in found.items() if int(n) > 2 and link.startswith("/")}
    files = {link for link in files if not link.startswith(own)}
    assert files <= {"/dev/null"}
    assert found["0"] == "/dev/null"


async def test_a_worker_leads_a_session_of_its_own(script: Path) -> None:
    pid, session, group = await Host(script, Isolation()).value("session")
    assert pid == session == group


async def test_core_dumps_are_off_unless_wanted(script: Path) -> None:
    assert await Host(script, Isolation()).value("core_limit") == [0, 0]
    before = list(resource.getrlimit(resource.RLIMIT_CORE))
    assert await Host(script, Isolation(core_dumps=True)).value("core_limit") == before


# Where it runs


async def test_the_umask_and_the_working_directory_are_those_of_the_host(
    script: Path, tmp_path: Path
) -> None:
    isolation = Isolation(umask=0o077, working_directory=str(tmp_path))
    assert await Host(script, isolation).value("written", "new") == [str(tmp_path), "0o600"]
    assert (tmp_path / "new").exists()


async def test_relative_scripts_are_those_that_the_node_sees(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(script.parent)
    isolation = Isolation(working_directory=str(tmp_path))
    assert await Host(Path("breakouts.py"), isolation).value("double", 2) == 4


async def test_a_working_directory_that_is_none_is_refused(tmp_path: Path) -> None:
    said = await refusal(Isolation(working_directory=str(tmp_path / "gone")))
    assert said == f"working_directory {tmp_path / 'gone'}: No such file or directory"


# Environment


@on_linux
async def test_only_listed_variables_are_seen_also_in_the_memory_of_the_process(
    script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    monkeypatch.setenv("LC_TEST", "C")
    host = Host(script, Isolation(environment=("LC_T*", "PATH")))
    seen, started_with = await host.value("environment")
    assert seen == {"LC_TEST": "C", "PATH": os.environ["PATH"]}
    assert not started_with


@on_linux
async def test_without_a_list_all_variables_are_seen(
    script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    seen, started_with = await Host(script, Isolation()).value("environment")
    assert seen["SECRET_TOKEN"] == "hunter2"  # noqa: S105
    assert "SECRET_TOKEN=hunter2" in started_with


# Another user


@on_linux
@as_root
async def test_another_user_is_a_boundary(
    script: Path, tmp_path: Path, victim: subprocess.Popen[bytes], stranger: str
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    secret.chmod(0o600)
    host = Host(script, Isolation(user=stranger, group=stranger))
    tries = await host.value("harm", str(secret), victim.pid)
    assert victim.poll() is None
    assert tries.pop("ids") == [int(stranger)] * 5
    assert tries == {
        "read": errno.EACCES,
        "signal": errno.EPERM,
        "environment": errno.EACCES,
        "become root": errno.EPERM,
    }


@on_linux
@as_root
async def test_a_worker_of_another_user_serves_and_dies_with_its_template(script: Path) -> None:
    async with Node(hosts=[Host(script, Isolation(user="nobody")).options]) as node:
        pid = node.spawn(f"{script}:echo")
        async with serving(WebSocketRelay(relay_to(pid), node=node)) as url, client(url) as one:
            await one.send("over the fence")
            assert await received(one) == "over the fence"
            template = node.templates["processes"]
            assert template is not None
            os.kill(template, signal.SIGKILL)
            await until(lambda: not node.workers, "the worker is gone with its template")


@as_root
async def test_unknown_users_and_groups_are_refused(stranger: str) -> None:
    assert await refusal(Isolation(user="no-such-user")) == "there is no user 'no-such-user'"
    said = await refusal(Isolation(user="nobody", group="no-such-group"))
    assert said == "there is no group 'no-such-group'"
    said = await refusal(Isolation(user=stranger))
    assert said == f"user {stranger} is not in the user database: name a group, too"


@pytest.mark.skipif(os.getuid() == 0, reason="root can change users")
async def test_only_root_can_change_users() -> None:
    assert "only a node that runs as root" in await refusal(Isolation(user="root"))


def test_a_group_without_a_user_a_wild_umask_and_an_unknown_network_are_refused() -> None:
    with pytest.raises(ValueError, match="group 'games' needs a user"):
        Isolation(group="games")
    with pytest.raises(ValueError, match="umask is 0o1000 and must be 0 to 0o777"):
        Isolation(umask=0o1000)
    with pytest.raises(ValueError, match="network is 'off' and must be 'host' or 'none'"):
        Isolation(network="off")


# Processes


@on_linux
@as_root
async def test_a_fork_bomb_ends_at_the_limit_of_its_user(script: Path, stranger: str) -> None:
    isolation = Isolation(user=stranger, group=stranger)
    made = await Host(script, isolation, Limits(processes=20)).value("bomb")
    assert made == 18  # the template and the worker count too


@on_linux
@as_root
async def test_other_workers_start_also_when_one_took_all_processes(
    script: Path, stranger: str
) -> None:
    isolation = Isolation(user=stranger, group=stranger)
    host = Host(script, isolation, Limits(processes=10))
    async with Node(hosts=[host.options]) as node:
        crowd = node.spawn(f"{script}:crowd")
        await until(
            lambda: "processes/crowd" in node.kernel.names.of(crowd), "all processes are taken"
        )
        assert await host.ending(node, "double", 2) == Result(4)


@as_root
async def test_a_limit_of_processes_is_refused_for_root() -> None:
    said = await refusal(Isolation(), limits=Limits(processes=20))
    assert said.startswith("limit of 20 processes: the system does not count those of root")


# Privileges


@on_linux
@pytest.mark.parametrize(
    "isolation",
    [
        Isolation(no_new_privs=True),
        Isolation(network="none"),
        Isolation(filesystem=Filesystem()),
        pytest.param(Isolation(user="nobody"), marks=as_root),
    ],
)
async def test_no_privileges_are_gained_any_more(script: Path, isolation: Isolation) -> None:
    assert await Host(script, isolation).value("privileges") == "NoNewPrivs:\t1"


@on_linux
@as_root
@pytest.mark.parametrize(
    "isolation",
    [
        Isolation(network="none"),
        Isolation(filesystem=Filesystem(read=("/bin", "/usr/bin"))),
        Isolation(user="nobody"),
    ],
)
async def test_a_walled_host_has_no_capabilities(script: Path, isolation: Isolation) -> None:
    assert not any((await Host(script, isolation).value("capabilities")).values())


@on_linux
@as_root
async def test_an_ordinary_host_keeps_the_node_s_capabilities(script: Path) -> None:
    mine = Path("/proc/self/status").read_text()
    there = await Host(script, Isolation()).value("capabilities")
    assert f"CapEff:\t{there['CapEff']:016x}" in mine
    assert f"CapBnd:\t{there['CapBnd']:016x}" in mine


@on_linux
@as_root
@pytest.mark.parametrize("isolation", [Isolation(network="none"), Isolation(user="nobody")])
async def test_walls_do_not_keep_a_host_from_its_niceness(
    script: Path, isolation: Isolation
) -> None:
    host = HostOptions(isolation=isolation, nice=-5)
    async with Node(hosts=[host]) as node:
        assert await Host(script, isolation).ending(node, "niceness") == Result(-5)


# Other processes


@on_linux
@walls
@own_user
async def test_processes_of_a_walled_host_do_nothing_to_others_of_their_user(
    script: Path, isolation: Isolation, user: bool, stranger: str
) -> None:
    if landlock.version() < 4 and isolation.filesystem is None:
        pytest.skip("this kernel's Landlock knows files alone")
    with sleeping(int(stranger) if user else None) as victim:
        before = Path(f"/proc/{victim}/limits").read_text()
        walled = structs.replace(isolation, **by(stranger, user))
        tries = await Host(script, walled).value("reach_processes", victim)
        assert Path(f"/proc/{victim}/limits").read_text() == before
        assert os.getpriority(os.PRIO_PROCESS, victim) == os.getpriority(os.PRIO_PROCESS, 0)
    did = {name for name, result in tries.items() if result not in (errno.EPERM, errno.EACCES)}
    assert not did


@on_linux
@walls
@own_user
async def test_the_calls_of_breakouts_are_refused_in_a_walled_host(
    script: Path, isolation: Isolation, user: bool, stranger: str
) -> None:
    walled = structs.replace(isolation, **by(stranger, user))
    tries = await Host(script, walled).value("reach_the_kernel")
    not_there = {tries.pop(name) for name in ("clone3", "io_uring", "x32", "newer")}
    assert not_there == {errno.ENOSYS}
    assert set(tries.values()) == {errno.EPERM}, tries


@on_linux
@walls
@own_user
async def test_a_process_of_a_walled_host_manages_itself(
    script: Path, isolation: Isolation, user: bool, stranger: str
) -> None:
    walled = structs.replace(isolation, **by(stranger, user))
    tries = await Host(script, walled).value("manage_itself")
    if user:
        # Who has changed users is not dumpable, so that these files are root's.
        tries = {name: result for name, result in tries.items() if name not in ("environ", "maps")}
    assert set(tries.values()) == {"did"}, tries


# Network


@on_linux
async def test_without_a_network_there_are_no_sockets(script: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "sock"))
        unix.listen()
        there = tcp.getsockname()[1], str(tmp_path / "sock")
        tries = await Host(script, Isolation(network="none")).value("reach_out", *there)
        free = await Host(script, Isolation()).value("reach_out", *there)
    assert tries.pop("pair") == "did"
    assert (tries.pop("io_uring"), tries.pop("x32")) == (errno.ENOSYS, errno.ENOSYS)
    assert set(tries.values()) == {errno.EACCES}
    assert free["tcp"] == free["unix"] == free["datagram pair"] == free["packet pair"] == "did"


@on_linux
async def test_asynchronous_handlers_work_without_a_network(script: Path) -> None:
    assert await Host(script, Isolation(network="none")).value("doze") == "done"


# What there is to be told


@on_linux
@pytest.mark.parametrize(
    ("isolation", "left"),
    [
        (Isolation(), None),
        (Isolation(no_new_privs=True, environment=()), None),
        (Isolation(filesystem=Filesystem(), network="none"), None),
        (Isolation(filesystem=Filesystem()), "connect to its Unix sockets"),
        (Isolation(network="none"), "write the files of the node's user"),
        pytest.param(Isolation(user="nobody", network="none"), None, marks=as_root),
        pytest.param(Isolation(user="nobody", filesystem=Filesystem()), None, marks=as_root),
    ],
)
async def test_what_needs_a_user_is_told_once_at_the_start(
    isolation: Isolation, left: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    if landlock.version() < landlock.KNOWS_SCOPES:
        pytest.skip("this kernel leaves more open")
    host = HostOptions(name="jail", isolation=isolation)
    async with Node(hosts=[host]) as node:
        await node.reconfigure([host], {}, renew=["jail"])
        told = [record for record in caplog.records if "no `user` of its own" in record.message]
        assert len(told) == (left is not None)
        if left is not None:
            assert told[0].levelname == "WARNING"
            assert told[0].message.startswith("process host jail has no `user` of its own")
            assert left in told[0].message


@on_linux
def test_what_older_kernels_leave_open_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "version", lambda: 3)
    both = isolating.doubts(Isolation(filesystem=Filesystem(), network="none"))
    assert both == ["signal its processes (before Linux 6.12)"]
    left = isolating.doubts(Isolation(network="none"))
    assert "read and change its processes' memory (before Linux 6.7)" in left
