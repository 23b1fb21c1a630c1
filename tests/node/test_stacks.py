"""Where a process is: its stacks, from outside, whatever it does."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import hanging
import psutil
import pytest
from one_node import left_as_found, running_node
from support import processes, until

from wsrelay import PID, Limits, Node
from wsrelay.node import describe

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux has signals that are safe"),
]


@pytest.fixture(scope="module")
async def shared() -> AsyncIterator[Node]:
    async with running_node(processes()) as node:
        yield node


@pytest.fixture
async def node(shared: Node) -> AsyncIterator[Node]:
    async with left_as_found(shared):
        yield shared


async def started(node: Node, function: Callable[..., Any], *args: Any) -> PID:
    pid = node.spawn(f"{hanging.__file__}:{function.__name__}", None, *map(str, args))
    assert await node.started(pid) is None
    node.send(pid, "work")
    return pid


async def stack_with(node: Node, pid: PID, *parts: str) -> str:
    """The stack of the process, once it has all of these parts."""
    while True:
        text = await node.engine.stack(pid)
        if all(part in text for part in parts):
            return text


async def test_a_process_in_an_endless_loop_shows_where(node: Node) -> None:
    pid = await started(node, hanging.spin)
    text = await stack_with(node, pid, " in spin")
    head, empty, main, *frames = text.rstrip().splitlines()
    target, os_pid = f"{hanging.__file__}:spin", node.workers[pid]
    assert head.startswith(f"{pid} {target}, OS pid {os_pid}, R (running); 0 messages wait for it")
    assert (empty, main) == ("", "Main thread (most recent call first):")
    assert frames[-1].startswith(f'  File "{hanging.__file__}", line ')
    assert frames[-1].endswith(" in spin")


@pytest.mark.parametrize(
    "options",
    [{"warm": 1}, {"raw_output": True}, {"limits": Limits(memory=256 * 1024**2, open_files=32)}],
    ids=["warm", "raw_output", "limits"],
)
async def test_no_option_of_a_host_is_an_obstacle(options: dict[str, Any]) -> None:
    async with Node(hosts=[processes(**options)]) as node:
        await stack_with(node, await started(node, hanging.spin), " in spin")
        node.terminate_all()


async def test_a_process_in_a_library_shows_who_has_called_it(node: Node) -> None:
    pid = await started(node, hanging.sleep)
    text = await stack_with(node, pid, " in sleep")
    assert ", S (sleeping);" in text.splitlines()[0]


async def test_a_process_that_waits_for_messages_shows_that(node: Node) -> None:
    pid = await started(node, hanging.read)
    assert " in read\n" in await stack_with(node, pid, f"{os.sep}process.py")


async def test_threads_at_the_same_place_are_shown_as_one(node: Node) -> None:
    pid = await started(node, hanging.several)
    text = await stack_with(node, pid, "3 threads (", " in _pause", " in _rest")
    assert text.index("Main thread") < text.index("3 threads")
    assert text.count(" in _pause") == 1


async def test_more_threads_than_are_written_are_no_obstacle(node: Node) -> None:
    pid = await started(node, hanging.threads)

    def takes() -> bool:  # then all of them have begun
        [shown] = [one for one in describe(node).processes if one.pid == pid]
        return shown.idle is not None

    await until(takes, "it takes messages")
    text = await stack_with(node, pid, " in _pause\n")
    assert text.index("Main thread") < text.index(" in threads\n") < text.index(" in _pause\n")
    assert "..." not in text


async def test_threads_that_begin_and_end_meanwhile_are_no_danger(
    node: Node, tmp_path: Path
) -> None:
    pid = await started(node, hanging.churn, tmp_path / "enough")
    for _ in range(200):
        await stack_with(node, pid, " in churn")
    assert pid in node.workers
    (tmp_path / "enough").touch()


@pytest.mark.parametrize("handler", [hanging.await_reply, hanging.uvloop_reply])
async def test_a_coroutine_shows_its_tasks_down_to_what_they_wait_for(
    node: Node, handler: Callable[..., Any]
) -> None:
    pid = await started(node, handler)
    text = await stack_with(node, pid, "Task the answer", " in _never\n")
    told = text[text.index("Task the answer") :]
    assert told.index(" in _never\n") < told.index(" in _answer\n")
    assert " in await_reply\n" in text


async def test_an_event_loop_that_is_held_up_shows_where_and_tells_no_tasks(node: Node) -> None:
    pid = await started(node, hanging.block_loop)
    text = await stack_with(node, pid, " in block_loop")
    assert "Its tasks: the event loop does not tell of them within 1 s." in text


async def test_those_who_ask_at_the_same_time_get_each_what_they_asked_for(node: Node) -> None:
    pids = [await started(node, hanging.spin), await started(node, hanging.read)]
    for pid in pids:
        await stack_with(node, pid, f"in {'spin' if pid is pids[0] else 'read'}")
    texts = await asyncio.gather(*(node.engine.stack(pid) for pid in pids * 3))
    for pid, text in zip(pids * 3, texts, strict=True):
        assert text.startswith(pid)
        assert (" in spin" in text, " in read" in text) == (pid is pids[0], pid is pids[1])


async def no_stack(node: Node, pid: PID) -> str:
    with pytest.raises(TimeoutError, match=r"shows no stack") as error:
        await node.engine.stack(pid)
    return str(error.value)


async def test_an_answer_that_is_too_late_is_not_given_in_the_turn_of_another(
    node: Node, tmp_path: Path
) -> None:
    pid = await started(node, hanging.compute_in_c, tmp_path / "go on")
    await stack_with(node, pid, " in _poll_in_c")
    assert "\nA thread (" in await node.engine.stack(pid), "so its main thread was asked first"
    written = [os.lseek(sheet, 0, os.SEEK_CUR) for sheet in hanging.memory()]
    (tmp_path / "go on").touch()
    await until(lambda: "back" in node.kernel.names.of(pid))
    assert [os.lseek(sheet, 0, os.SEEK_CUR) for sheet in hanging.memory()] == written


async def test_a_stopped_process_is_said_to_be_stopped(node: Node) -> None:
    pid = await started(node, hanging.spin)
    os_pid = node.workers[pid]
    assert os_pid is not None
    os.kill(os_pid, signal.SIGSTOP)
    try:
        await until(lambda: psutil.Process(os_pid).status() == psutil.STATUS_STOPPED)
        said = await no_stack(node, pid)
        assert said.endswith(f"OS process {os_pid} is stopped: T (stopped)")
    finally:
        os.kill(os_pid, signal.SIGCONT)
    await stack_with(node, pid, " in spin")


async def test_code_that_closes_descriptors_gets_no_stack_written_into_its_own_files(
    node: Node, tmp_path: Path
) -> None:
    pid = await started(node, hanging.close_all, tmp_path / "go on")
    await until(lambda: "closed" in node.kernel.names.of(pid))
    assert "has closed the descriptor for its stacks" in await no_stack(node, pid)
    (tmp_path / "go on").touch()


async def test_handlers_of_user_code_stay_and_are_all_that_happens(node: Node) -> None:
    pid = await started(node, hanging.own_handlers)
    await until(lambda: "handles" in node.kernel.names.of(pid))
    assert "does not answer within 2 s: S (sleeping)" in await no_stack(node, pid)
    assert pid in node.workers


async def test_a_process_that_has_become_another_program_survives_the_question(node: Node) -> None:
    pid = node.spawn(f"{hanging.__file__}:execute")
    await until(lambda: node.workers[pid] is not None)
    os_pid = node.workers[pid]
    assert os_pid is not None
    await until(lambda: "-c" in psutil.Process(os_pid).cmdline(), "it is another program")
    assert "has no handlers of SIGRTMAX-1 and SIGRTMAX-2 any more" in await no_stack(node, pid)
    assert psutil.Process(os_pid).is_running()
    node.terminate(pid)


async def test_a_process_that_does_not_run_yet_says_so(node: Node, tmp_path: Path) -> None:
    target = f"{hanging.__file__}:wait"
    first = node.get_or_spawn("room", target, None, str(tmp_path / "never"))
    assert await node.started(first) is None
    node.send(first, "work")
    node.cancel(first)
    second = node.get_or_spawn("room", target, None, str(tmp_path / "never"))
    assert "does not run yet: it is waiting" in await no_stack_yet(node, second)
    node.terminate(first)


async def no_stack_yet(node: Node, pid: PID) -> str:
    with pytest.raises(TimeoutError) as error:
        await node.engine.stack(pid)
    return str(error.value)
