from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import tempfile
import types
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import cloudpickle
import psutil
import pytest
import uvicorn.server
from nats_servers import nats, own_nats  # noqa: F401 - fixtures
from one_node import running_node
from support import Journal, processes

from wsrelay import Node


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": os.environ.get("WSRELAY_TEST_LOOP") != "asyncio"}


def pytest_configure() -> None:
    """Take SIGINT as it is in a terminal, and so let the programs that tests start take it.

    A suite that a shell runs in the background begins with it ignored, and passes that on.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def runtime_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Control sockets are made where no other node's are."""
    directory = tmp_path_factory.mktemp("run")
    directory.chmod(0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WSRELAY_RUNTIME_DIR", str(directory))
        yield directory


@pytest.fixture(autouse=True, scope="session")
def byte_code_is_cached() -> Iterator[None]:
    """Programs write byte code as they do by default, also where the suite is told not to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        patch.setattr(sys, "dont_write_bytecode", False)
        yield


@pytest.fixture(autouse=True, scope="session")
def temporary_directory() -> Iterator[None]:
    """Whatever the tests' programs make in their temporary directory, they remove it, too."""
    with tempfile.TemporaryDirectory(prefix="wsrelay-tests-") as directory:
        folder = Path(directory)
        folder.chmod(0o1777)  # those of other users need it as well
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TMPDIR", directory)
            yield
        left = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
        assert not left, f"files left behind: {left}"


@pytest.fixture(autouse=True, scope="session")
def servers_end_at_once() -> Iterator[None]:
    """Servers in the tests' process end within 10 ms.

    uvicorn looks every 0.1 s whether it shall end, and waits as long once more when it does: for
    hundreds of servers that is more than a minute.
    """

    async def nap(seconds: float) -> None:
        await asyncio.sleep(seconds / 20)

    impatient = types.ModuleType("asyncio")
    vars(impatient).update(vars(asyncio), sleep=nap)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uvicorn.server, "asyncio", impatient)
        yield


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    """A running node with one host, `processes`, and the tests' handlers in it."""
    async with Node(hosts=[processes()]) as running:
        yield running


@pytest.fixture(autouse=True, scope="module")
def functions_of_tests_travel_by_value(request: pytest.FixtureRequest) -> Iterator[None]:
    """No worker imports a test's module, and with it pytest and three servers: half a second each.

    Handlers that stand in a module of their own are imported by it, as users' are.
    """
    cloudpickle.register_pickle_by_value(request.module)
    yield
    cloudpickle.unregister_pickle_by_value(request.module)


@pytest.fixture(scope="module")
async def shared() -> AsyncIterator[Node]:
    """Such a node for all tests of a file, which use it within `one_node.left_as_found`."""
    async with running_node(processes()) as running:
        yield running


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


def _offspring() -> list[psutil.Process]:
    """All descendants but multiprocessing's resource tracker, which lives as long as we do."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if "resource_tracker" not in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def _descriptors() -> dict[str, str]:
    links = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            links[entry.name] = str(entry.readlink())
        except OSError:
            continue
    return links


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Every test ends with the processes and descriptors that it began with."""
    before = set(_offspring())
    descriptors = _descriptors() if sys.platform == "linux" else {}
    yield
    left = set(_offspring()) - before
    _, alive = psutil.wait_procs(left, timeout=5)
    names = [" ".join(process.cmdline()) for process in alive]
    for process in alive:
        process.kill()
    assert not alive, f"processes left behind: {names}"
    if sys.platform == "linux" and _more(descriptors):
        gc.collect()
        assert not _more(descriptors), f"descriptors left behind: {_more(descriptors)}"


def _more(before: dict[str, str]) -> dict[str, str]:
    """The descriptors that were not there before.

    Pipes and epolls are left out: the event loop and multiprocessing's resource tracker come with
    the first test that needs them, and stay.
    """
    return {
        number: link
        for number, link in _descriptors().items()
        if number not in before and not link.startswith(("/proc/", "pipe:", "anon_inode"))
    }
