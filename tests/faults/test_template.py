"""A template runs user code: what it writes to the node costs its host that template, no more."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest
import rooms
from one_node import left_as_found, running_node
from running import gone
from support import processes, room, until, value_of

from wsrelay import ExitKind, HostFailed, Node, Result

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="the node looks into /proc"),
]

SCRIPT = """
import os, socket, sys, threading
from wsrelay import wire
from wsrelay.template import main as template

honest = template.Template._fork
NODE, OTHER = {node}, {other}

def to_the_node():
    # Where a script finds it that wants to write there.
    frame = sys._getframe()
    while "telling" not in frame.f_locals:
        frame = frame.f_back
    return frame.f_locals["telling"].fileno()

def forked(self, frame, descriptors):
    honest(self, frame, descriptors)
    return next(pid for pid, other in self._refs.items() if other == frame.ref)

def lie(self, frame, descriptors):
    ref = frame.ref
    {lie}

template.Template._fork = lie
{top}

def handler():
    from wsrelay import process
    for _ in process.inbox():
        pass
"""

HANDS_OVER = """
import os, socket, stat, sys

frame = sys._getframe()
while "telling" not in frame.f_locals:
    frame = frame.f_back
own = frame.f_locals["template"]
own = {own._wakeup.fileno(), own._woken.fileno()}

def hand_over(descriptor):
    try:
        with socket.socket(socket.AF_UNIX, fileno=os.dup(descriptor)) as there:
            socket.send_fds(there, [b"x"], [0])
    except OSError as error:
        return error.errno

tried = {"socket": [], "no socket": []}
for descriptor in [int(name) for name in os.listdir("/proc/self/fd") if int(name) not in own]:
    if os.path.exists(f"/proc/self/fd/{descriptor}"):  # else it listed the others
        is_socket = stat.S_ISSOCK(os.fstat(descriptor).st_mode)
        tried["socket" if is_socket else "no socket"].append(hand_over(descriptor))

def handler():
    return tried
"""

LIES = {
    "the node's number": "self.tell(wire.ForkedFrame(ref, NODE, True))",
    "a stranger's number": "self.tell(wire.ForkedFrame(ref, OTHER, True))",
    "a stranger's number, without a pidfd": "self.tell(wire.ForkedFrame(ref, OTHER, False))",
    "its guardian's number": "self.tell(wire.ForkedFrame(ref, os.getppid(), True))",
    "a number that none can have": "self.tell(wire.ForkedFrame(ref, 2 ** 40, True))",
    "the number of all": "self.tell(wire.ForkedFrame(ref, -1, True))",
    "a second answer": "self.tell(wire.ForkedFrame(ref, forked(self, frame, descriptors), False))",
    "an end that is none": "forked(self, frame, descriptors); self.tell(wire.ExitedFrame(ref, 0))",
    "an end before the beginning": "self.tell(wire.ExitedFrame(ref, 0))",
    "a failure after the success": (
        "forked(self, frame, descriptors); self.tell(wire.ForkFailedFrame(ref, 'no'))"
    ),
    "a process that nobody wants": "self.tell(wire.ForkedFrame(ref + 1, os.getpid(), False))",
    "the failure of one that nobody wants": "self.tell(wire.ForkFailedFrame(ref + 1, 'no'))",
    "the end of one that there is not": "self.tell(wire.ExitedFrame(10 ** 6, 0))",
    "that it has loaded, once more": "self.tell(wire.LoadedFrame())",
    "that it has not loaded": "self.tell(wire.LoadFailedFrame('no', ''))",
    "a frame of the node's": "self.tell(wire.KillFrame(ref))",
    "a frame of 64 MB": "os.write(self._node.fileno(), b'\\3\\xff\\xff\\xff')",
    "garbage": "os.write(self._node.fileno(), b'\\xff' * 100)",
    "nothing, and closes": "self._node.close()",
}


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as running:
        yield running
        running.kill()


@pytest.fixture(autouse=True)
async def no_exception_reaches_the_loop() -> AsyncIterator[None]:
    problems: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, said: problems.append(repr(said)))
    yield
    assert not problems


def script(folder: Path, other: int = 0, lie: str = "", top: str = "") -> str:
    path = folder / "liar.py"
    text = SCRIPT.format(
        node=os.getpid(), other=other, lie=lie or "honest(self, frame, descriptors)", top=top
    )
    path.write_text(text)
    return f"{path}:handler"


@pytest.fixture(scope="module")
async def beside_liars(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[tuple[Node, Path]]:
    """A node with a host that loads the script in that folder, when it is first needed."""
    folder = tmp_path_factory.mktemp("liar")
    liar = processes(name="liar", targets=(f"{folder}/liar.py:handler",))
    script(folder)
    async with running_node(processes(), liar) as node:
        psutil.Process(node.templates["liar"]).kill()
        await until(lambda: node.templates["liar"] is None, "the honest one is lost")
        yield node, folder


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
async def test_a_template_that_tells_what_cannot_be_is_lost_and_its_processes_with_it(
    beside_liars: tuple[Node, Path],
    bystander: subprocess.Popen[bytes],
    caplog: pytest.LogCaptureFixture,
    lie: str,
) -> None:
    shared, folder = beside_liars
    async with left_as_found(shared):
        target = script(folder, bystander.pid, lie)
        healthy = shared.spawn(room(rooms.wait))
        assert await shared.started(healthy) is None
        await shared.loaded()
        template = psutil.Process(shared.templates["liar"])
        guardian = template.parent()
        assert guardian is not None
        results: list[Result] = []
        shared.when_ended(shared.spawn(target, "liar"), results.append)
        await until(lambda: results, "its end is told")
        error = results[0].error
        assert error is not None
        assert error.kind is ExitKind.TEMPLATE_LOST
        await until(lambda: gone(template) and gone(guardian), "it is gone, with all that it had")
        assert bystander.poll() is None
        assert await value_of(shared, room(rooms.return_at_once), "fine") == "fine"
        assert healthy in shared.workers
    [line] = [one.getMessage() for one in caplog.records if "liar was lost" in one.getMessage()]
    assert ("and is killed: it wrote what no template writes: " in line) is (".close()" not in lie)


@pytest.mark.parametrize(
    "lie", ["os.write(c, b'\\xff' * 100)", "os.write(c, wire.pack(wire.ExitedFrame(1, 0)))"]
)
async def test_one_that_lies_while_it_loads_does_not_start(tmp_path: Path, lie: str) -> None:
    target = script(tmp_path, top=f"c = to_the_node(); {lie}; threading.Event().wait()")
    async with Node(hosts=[processes(targets=(target,))]) as node:
        with pytest.raises(HostFailed, match="it wrote what no template writes: "):
            await node.loaded()


async def test_no_descriptor_can_be_handed_to_the_node(tmp_path: Path) -> None:
    """One can wait for hours at its close: a TCP connection that lingers."""
    (tmp_path / "hands_over.py").write_text(HANDS_OVER)
    target = f"{tmp_path}/hands_over.py:handler"
    async with Node(hosts=[processes(targets=(target,))]) as node:
        tried = await value_of(node, target)
        assert tried["socket"], "there is one, for orders"
        assert set(tried["socket"]) == {errno.EPIPE}
        assert set(tried["no socket"]) == {errno.ENOTSOCK}


async def test_one_that_never_stops_to_write_holds_up_nobody_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    flood = "wire.pack(wire.LogFrame(10, '', '')) * 5000"
    target = script(
        tmp_path,
        lie=(f"data = {flood}\n    while True: os.write(self._node.fileno(), data)"),
    )
    hosts = [processes(), processes(name="liar", targets=(target,))]
    async with Node(hosts=hosts) as node:
        await node.loaded()
        host = node._templates["liar"]
        node.spawn(target, "liar")
        await until(lambda: host._log._lost > 20_000, "it writes and writes")
        for number in range(5):
            assert await value_of(node, room(rooms.return_at_once), number) == number
        psutil.Process(node.templates["liar"]).kill()
