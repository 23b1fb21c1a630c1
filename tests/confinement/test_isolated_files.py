"""Which files a handler reaches, and what older kernels cannot keep from it."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from isolated import Host, by, on_linux, own_user, reachable_script, refusal, unused_uid, walls

from wsrelay import Filesystem, Isolation, Limits
from wsrelay.confinement import isolation as isolating
from wsrelay.confinement import landlock
from wsrelay.values import linux

pytestmark = pytest.mark.anyio


@pytest.fixture
def stranger() -> str:
    return unused_uid()


@pytest.fixture(autouse=True)
def script() -> Iterator[Path]:
    with reachable_script() as script:
        yield script


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the node's own user."""
    with subprocess.Popen(["sleep", "60"]) as running:
        yield running
        running.kill()


# Files


@on_linux
async def test_only_listed_files_are_reached(script: Path, tmp_path: Path) -> None:
    allowed, readable, outside = (tmp_path / name for name in ("allowed", "readable", "outside"))
    for folder in (allowed, readable, outside):
        folder.mkdir()
        (folder / "file").write_text("content")
    there = str(allowed), str(readable), str(outside)
    files = Filesystem(read=(str(readable), "/bin", "/usr/bin"), write=(str(allowed),))
    tries = await Host(script, Isolation(filesystem=files)).value("meddle", *there)
    did = [name for name, result in tries.items() if result == "did"]
    assert did == ["write allowed", "read allowed", "list readable", "read readable"]
    assert (readable / "file").read_text() == (outside / "file").read_text() == "content"
    assert not (outside / "new").exists()


@on_linux
async def test_preloaded_code_is_inside_too(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2")
    script = tmp_path / "room.py"
    script.write_text(f"open({str(tmp_path / 'secret')!r})\ndef handler(): pass\n")
    said = await refusal(Isolation(filesystem=Filesystem()), targets=(str(script),))
    assert "PermissionError" in said


@on_linux
async def test_a_path_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    said = await refusal(Isolation(filesystem=Filesystem(write=(str(tmp_path / "gone"),))))
    assert said == f"filesystem.write: {tmp_path / 'gone'}: No such file or directory"


@on_linux
@walls
async def test_workers_of_a_walled_host_signal_nobody_outside(
    script: Path, isolation: Isolation, victim: subprocess.Popen[bytes]
) -> None:
    if landlock.version() < 6:
        pytest.skip("this kernel's Landlock knows no scopes")
    tries = await Host(script, isolation).value("signal_other", victim.pid)
    assert victim.poll() is None
    assert tries == {"signal": errno.EPERM}


@on_linux
async def test_workers_of_a_host_with_listed_files_reach_no_abstract_socket_outside(
    script: Path,
) -> None:
    if landlock.version() < 6:
        pytest.skip("this kernel's Landlock knows no scopes")
    name = f"wsrelay-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as outside:
        outside.bind(f"\0{name}")
        outside.listen()
        tries = await Host(script, Isolation(filesystem=Filesystem())).value("connect", name)
        free = await Host(script, Isolation()).value("connect", name)
    assert (tries, free) == ({"connect": errno.EPERM}, {"connect": "did"})


@on_linux
async def test_what_all_users_see_of_processes_and_files_stays_visible(
    script: Path, tmp_path: Path, victim: subprocess.Popen[bytes]
) -> None:
    (tmp_path / "outside").write_text("content")
    host = Host(script, Isolation(filesystem=Filesystem(), network="none"))
    seen = await host.value("look", victim.pid, str(tmp_path / "outside"))
    assert seen.pop("content") == errno.EACCES
    assert set(seen.values()) == {"did"}


@on_linux
@own_user
async def test_nothing_is_changed_of_files_that_are_not_listed_for_writing(
    script: Path, user: bool, stranger: str
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        allowed, readable, outside = (folder / name for name in ("allowed", "readable", "outside"))
        allowed.mkdir()
        readable.touch(0o644)
        outside.touch(0o644)
        with contextlib.suppress(OSError):  # not every file system has them
            os.setxattr(outside, "user.there", b"1")
        if user:
            for path in (allowed, readable, outside, folder):
                os.chown(path, int(stranger), int(stranger))
        before = [outside.stat(), readable.stat()]
        files = Filesystem(read=(str(readable),), write=(str(allowed),))
        isolation = Isolation(filesystem=files, **by(stranger, user))
        paths = str(outside), str(readable), str(allowed)
        tries = await Host(script, isolation).value("change_what_is_not_listed", *paths)
        assert (tries.pop("pipe"), tries.pop("socket")) == ("did", "did")
        devices = {tries.pop(name) for name in ("character device", "whiteout", "block device")}
        assert devices <= {errno.EACCES, errno.EPERM}
        attributes = {name for name in tries if "attribute" in name or name.endswith("one")}
        assert {tries.pop(name) for name in attributes} == {errno.EOPNOTSUPP}
        assert set(tries.values()) == {errno.EPERM}, tries
        for path, was in zip((outside, readable), before, strict=True):
            there = path.stat()
            assert (there.st_mode, there.st_uid, there.st_gid, there.st_ctime_ns) == (
                was.st_mode,
                was.st_uid,
                was.st_gid,
                was.st_ctime_ns,
            )
        assert {path.name for path in allowed.iterdir()} == {"pipe", "socket"}


@on_linux
async def test_a_device_takes_orders_only_where_it_is_listed_itself(script: Path) -> None:
    if landlock.version() < 5:
        pytest.skip("this kernel's Landlock knows no ioctl")
    terminals = "/dev/ptmx"
    if not os.access(terminals, os.R_OK | os.W_OK):
        pytest.skip(f"there is no {terminals}")
    results = {}
    for listed in ("/dev", terminals):
        isolation = Isolation(filesystem=Filesystem(write=(listed,)))
        tries = await Host(script, isolation).value("order_a_device", terminals)
        results[listed] = tries["ioctl"]
    assert results == {"/dev": errno.EACCES, terminals: "did"}


@on_linux
async def test_everything_together_still_works(script: Path) -> None:
    isolation = Isolation(
        user="nobody" if os.getuid() == 0 else None,
        umask=0o027,
        working_directory=str(script.parent),
        environment=("PATH",),
        filesystem=Filesystem(read=(str(script.parent),)),
        network="none",
    )
    limits = Limits(memory=500 * 1024 * 1024, cpu_time=10, open_files=64)
    assert await Host(script, isolation, limits).value("double", 21) == 42


# What there is not


@on_linux
def test_a_kernel_without_landlock_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(linux, "system_call", missing)
    with pytest.raises(landlock.LandlockError, match="this kernel has no Landlock"):
        landlock.restrict([], [])


@on_linux
def test_a_landlock_that_lets_files_be_truncated_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linux, "system_call", lambda *_: 2)
    with pytest.raises(landlock.LandlockError, match=r"is version 2 and needs to be 3"):
        landlock.restrict([], [])


def test_what_only_linux_has_is_refused_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    wanted = Isolation(filesystem=Filesystem(), network="none")
    with pytest.raises(isolating.IsolationError, match=r"filesystem, network: only Linux has that"):
        isolating.enter(wanted, ())
