"""What a handler can do: `wsrelay.process` and `wsrelay.aio.process`."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import callers
import pytest
from exits import Exits
from support import processes, until

from wsrelay import PID, Node, NotAProcess, PayloadError, ReservedTopic, Result, process
from wsrelay.aio import process as aio_process

pytestmark = pytest.mark.anyio

Handler = Callable[..., Any]


def faces(sync: Handler, aio: Handler) -> pytest.MarkDecorator:
    """A test of a handler with `wsrelay.process`, and of one with `wsrelay.aio.process`."""
    return pytest.mark.parametrize("handler", [sync, aio], ids=["", "aio_"])


@faces(callers.receive_with_deadlines, callers.aio_receive_with_deadlines)
async def test_channels_keep_deadlines_and_close(node: Node, handler: Handler) -> None:
    exits = Exits(node)
    pid = node.spawn(handler)
    await asyncio.wait_for(node.started(pid), 20)
    node.send(pid, "x", "first")
    seen = (await exits.of(pid)).value
    assert seen[0] == "first"
    assert [text.rstrip(": ") for text in seen[1:3]] == ["TimeoutError", "TimeoutError"]
    assert seen[3:6] == ["CANCEL", "SIGTERM", True]
    assert [text.rstrip(": ") for text in seen[6:]] == ["ChannelClosed", "ChannelClosed"]


@faces(callers.poll_what_lies_in_the_pipe, callers.aio_poll_what_lies_in_the_pipe)
async def test_a_deadline_of_zero_takes_what_has_arrived(node: Node, handler: Handler) -> None:
    exits = Exits(node)
    pid = node.spawn(handler)
    await asyncio.wait_for(node.started(pid), 20)
    node.send(pid, "x", "polled")
    assert (await exits.of(pid)).value == "polled"


async def test_misuse_is_told_at_the_caller(node: Node) -> None:
    exits = Exits(node)
    told = (await exits.of(node.spawn(callers.misuse))).value
    expected = [
        "ReservedTopic: topic '@exit'",
        "ReservedTopic: topic 3",
        "PayloadError: payload['a'][1][",
        "PayloadError: payload: 18446744073709551616 does not fit into 64 bits",
        "PayloadError: payload[0]: nested too deeply, or inside itself",
        "InvalidTarget: target 'nonsense'",
        "UnknownHost: no process host 'no such host'; this node has processes",
        "PayloadError: cannot be sent to another process: cannot pickle '_thread.lock'",
        "no error",
        "no error",
        "no error",
    ]
    for text, start in zip(told, expected, strict=True):
        assert text.startswith(start)
    assert "builtins.complex is not data" in told[2]
    assert node.dead_letters == 2


async def test_misuse_is_told_to_coroutines_too(node: Node) -> None:
    exits = Exits(node)
    told = (await exits.of(node.spawn(callers.aio_misuse))).value
    expected = [
        "ReservedTopic: topic '@exit'",
        "PayloadError: payload['a'][1][",
        "InvalidTarget: target 'nonsense'",
        "UnknownHost: no process host 'no such host'",
        "InvalidName: '{name' is not a name",
        "no error",
    ]
    for text, start in zip(told, expected, strict=True):
        assert text.startswith(start)


@faces(callers.family, callers.aio_family)
async def test_a_worker_spawns_and_knows_the_pids_at_once(node: Node, handler: Handler) -> None:
    exits = Exits(node)
    said, pids, senders = (await exits.of(node.spawn(handler, None, 10))).value
    assert [payload[0] for payload in said] == list(range(10))
    assert [payload[1] for payload in said] == pids
    assert sorted(senders) == sorted(pids)
    assert len({payload[2] for payload in said}) == 10


async def test_a_worker_s_pids_do_not_grow_with_the_generations(node: Node) -> None:
    exits = Exits(node)
    lengths: set[int] = set()
    for _ in range(3):
        _, pids, _ = (await exits.of(node.spawn(callers.family, None, 2))).value
        lengths.update(len(pid) for pid in pids)
    assert max(lengths) < 40


@faces(callers.meet, callers.aio_meet)
async def test_get_or_spawn_gives_everyone_the_same_process(node: Node, handler: Handler) -> None:
    exits = Exits(node)
    collector = node.spawn(callers.collect, None, 20)
    for _ in range(20):
        node.spawn(handler, None, collector)
    met = (await exits.of(collector)).value
    assert len(met) == 20
    assert set(met) == {node.get_or_spawn("meeting point", callers.stay)}


async def test_a_full_host_is_an_error_of_get_or_spawn_and_a_failed_start_of_spawn(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Node(hosts=[processes(max_processes=1)]) as node:
        exits = Exits(node)

        def fill() -> str:
            process.spawn("m:f")
            try:
                process.get_or_spawn("name", "m:f")
            except Exception as error:  # noqa: BLE001 - it is what is asked for
                return f"{type(error).__name__}: {error}"
            return "no error"

        told = (await exits.of(node.spawn(fill))).value
    assert told == "HostFull: process host processes is full: 1 of 1 processes run"
    assert "was not started: process host processes is full" in caplog.text


@faces(callers.count_to, callers.aio_count_to)
async def test_messages_of_one_sender_keep_their_order(node: Node, handler: Handler) -> None:
    exits = Exits(node)
    collector = node.spawn(callers.collect, None, 4 * 500)
    for _ in range(4):
        node.spawn(handler, None, collector, 500)
    numbers = defaultdict(list)
    for sender, number in (await exits.of(collector)).value:
        numbers[sender].append(number)
    assert list(numbers.values()) == [list(range(500))] * 4


async def test_messages_reach_every_thread_that_asks_and_none_twice(node: Node) -> None:
    exits = Exits(node)
    pid = node.spawn(callers.collect_in_threads, None, 2000)
    for number in range(2000):
        node.send(pid, "x", number)
    node.cancel(pid)
    assert (await exits.of(pid)).value == 2000


async def test_more_than_the_window_arrives_in_full(node: Node) -> None:
    """Credits are given back for every byte: a leak of them would stop the flow for good."""
    exits = Exits(node)
    pid = node.spawn(callers.collect_slowly, None, 3000)
    for number in range(3000):
        node.send(pid, "x", bytes(number))
    assert (await exits.of(pid)).value == sum(range(3000))


async def test_one_send_reaches_many(node: Node) -> None:
    exits = Exits(node)
    receivers = [node.spawn(callers.collect, None, 1) for _ in range(5)]
    node.spawn(callers.send_to_many, None, [*receivers, "{nobody|1}"], {"x": 1})
    for pid in receivers:
        assert (await exits.of(pid)).value == [{"x": 1}]
    assert node.dead_letters == 1


async def test_a_name_and_a_pid_without_node_part_are_addresses_too(node: Node) -> None:
    exits = Exits(node)
    pid = node.get_or_spawn("collector", callers.collect, None, 3)
    node.send("collector", "x", "by name")
    node.send(pid.replace("local@", ""), "x", "by short pid")
    node.send(pid, "x", "by pid")
    assert (await exits.of(pid)).value == ["by name", "by short pid", "by pid"]


async def test_cancel_tells_reason_and_sender_and_terminate_tells_nothing(node: Node) -> None:
    exits = Exits(node)
    cancelled, terminated = node.spawn(callers.tell_cancel), node.spawn(callers.tell_cancel)
    ender = node.spawn(callers.end_others, None, cancelled, terminated)
    assert (await exits.of(cancelled)).value == ["CANCEL", "no more", ender]
    assert (await exits.error(terminated)).kind == "terminated"


async def test_a_signal_in_the_middle_of_a_write_tears_no_frame(node: Node) -> None:
    exits = Exits(node)
    collector = node.spawn(callers.collect_slowly, None, 2000)
    sender = node.spawn(callers.interrupted_while_sending, None, collector, 2000)
    assert (await exits.of(sender)).value == 2000
    assert (await exits.of(collector)).value == 2000 * 5000


async def test_threads_that_still_run_are_not_waited_for(node: Node) -> None:
    exits = Exits(node)
    assert await exits.of(node.spawn(callers.leave_thread)) == Result("did not wait")


async def test_exit_handlers_are_not_called(node: Node, tmp_path: Path) -> None:
    """One that waited for something would keep the clients of a room that has returned."""

    def register(file: str) -> str:
        import atexit  # noqa: PLC0415 - in the worker

        atexit.register(Path(file).touch)
        return "returned"

    exits = Exits(node)
    file = tmp_path / "called"
    assert (await exits.of(node.spawn(register, None, str(file)))).value == "returned"
    assert not file.exists()


@pytest.mark.parametrize("patience", [None, 600])
async def test_a_thread_that_waits_for_messages_does_not_hold_up_the_end(
    node: Node, patience: float | None
) -> None:
    exits = Exits(node)
    for _ in range(20):
        pid = node.spawn(callers.leave_thread_that_receives, None, patience)
        assert await exits.of(pid) == Result("did not wait")


async def test_an_event_loop_takes_the_reading_over_from_a_thread(node: Node) -> None:
    exits = Exits(node)
    for _ in range(10):
        pid = node.spawn(callers.receive_in_loop_beside_thread, None, 100)
        for number in range(101):
            node.send(pid, "x", number)
        assert (await exits.of(pid)).value == list(range(101))


async def test_a_handler_can_use_multiprocessing(node: Node) -> None:
    exits = Exits(node)
    pid = node.spawn(callers.use_multiprocessing, None, [-1, 2, -3])
    assert (await exits.of(pid)).value == ["from a child", 0, [1, 2, 3]]


async def test_logging_from_many_threads_arrives_whole(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    pid = node.spawn(callers.log_in_threads, None, 50)
    await until(lambda: pid not in node.workers, "it has ended")
    lines = [
        r.getMessage().partition(" t: ")[2] for r in caplog.records if " t: " in r.getMessage()
    ]
    assert sorted(lines) == sorted(f"line {number}" for number in range(50))


async def test_forks_do_not_draw_the_same_random_numbers(node: Node) -> None:
    exits = Exits(node)
    draws = [(await exits.of(node.spawn(callers.reseed))).value for _ in range(3)]
    assert len({draw[0] for draw in draws}) == 3


async def test_a_second_event_loop_in_a_process_is_told(node: Node) -> None:
    exits = Exits(node)
    told = (await exits.of(node.spawn(callers.two_loops))).value
    assert told.startswith("RuntimeError: wsrelay.aio serves one event loop")


async def test_both_faces_can_be_mixed_in_one_thread(node: Node) -> None:
    exits = Exits(node)
    pid = node.spawn(callers.mixed_faces)
    for number in range(3):
        node.send(pid, "x", number)
    assert (await exits.of(pid)).value == [0, 1, 2]


# On the node


async def test_on_the_node_the_functions_that_do_not_wait_work_from_loop_and_threads(
    node: Node,
) -> None:
    exits = Exits(node)

    def use(name: str) -> str:
        pid = process.get_or_spawn(name, callers.collect, None, 1)
        assert process.get_or_spawn(name, callers.collect, None, 1) == pid
        process.send(pid, "x", name)
        process.terminate(process.spawn(callers.stay))
        process.cancel(process.spawn(callers.stay))
        return pid

    from_loop = use("loop")
    from_thread = await asyncio.to_thread(use, "thread")
    assert (await exits.of(PID(from_loop))).value == ["loop"]
    assert (await exits.of(PID(from_thread))).value == ["thread"]


@pytest.mark.parametrize("function", [process.inbox, process.events, aio_process.inbox])
async def test_what_only_a_process_can_do_says_so_on_the_node(node: Node, function: Any) -> None:
    assert node.running
    with pytest.raises(NotAProcess, match="only a process can do this"):
        function()


async def test_bad_input_on_the_node_is_told_at_the_caller(node: Node) -> None:
    with pytest.raises(ReservedTopic):
        node.send(node.pid(), "@exit")
    with pytest.raises(PayloadError, match=r"payload\['a'\]"):
        node.send(node.pid(), "x", {"a": object()})


async def test_without_a_node_the_error_says_what_to_do() -> None:
    with pytest.raises(NotAProcess, match="async with Node"):
        process.spawn("m:f")


async def test_with_several_nodes_the_error_names_them() -> None:
    async with Node(name="one"), Node(name="two"):
        with pytest.raises(NotAProcess, match=r"2 nodes run in this OS process .*one@.*two@"):
            process.spawn("m:f")


async def test_a_node_that_is_closed_says_so() -> None:
    node = Node()
    with pytest.raises(NotAProcess, match="is not running"):
        node.spawn("m:f")
    async with node:
        pass
    with pytest.raises(NotAProcess, match="is not running"):
        node.spawn("m:f")
