"""What Erlang's and Elixir's documentation says of links and monitors, held to here.

`test_otp_processes` says how.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import relating
from exits import Exits
from one_node import left_as_found
from otp import after, next_event, value_of
from relating import WAIT, crash, give, mortal
from support import processes, until

from wsrelay import Node, process

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def shared() -> AsyncIterator[Node]:
    async with Node(hosts=[processes(targets=(f"{relating.__file__}:mortal",))]) as node:
        await node.loaded()
        yield node


@pytest.fixture
async def node(shared: Node) -> AsyncIterator[Node]:
    async with left_as_found(shared):
        yield shared


async def kind_of(node: Node, handler: Callable[[], Any]) -> str:
    """Run a handler that has to end with an error, and give the error's kind."""
    error = await Exits(node).error(node.spawn(handler))
    return str(error.kind)


# Links


async def test_a_link_can_be_created_by_calling_link_with_the_pid_of_the_other_process(
    node: Node,
) -> None:
    """Processes: "A link between two processes can be created if one of them calls the `link/1` BIF
    with the process identifier of the other process as argument."
    """

    def parent() -> None:
        pid = process.spawn(mortal)
        process.link(pid)
        process.send(pid, "raise")
        next_event()

    assert await kind_of(node, parent) == "link_down"


async def test_the_spawn_operation_and_the_link_operation_are_performed_atomically(
    node: Node,
) -> None:
    """Processes, of `spawn_link()`: "The spawn operation and the link operation will be performed
    atomically".
    """

    def parent() -> Any:
        process.set_options(trap_links=True)
        pids = [process.spawn_linked(crash) for _ in range(20)]
        senders = [next_event()["sender"] for _ in pids]
        return sorted(senders) == sorted(pids)

    assert await value_of(node, parent) is True


async def test_links_are_bidirectional(node: Node) -> None:
    """Processes: "Links are bidirectional"."""
    exits = Exits(node)

    def one() -> None:
        process.registry.register("other", process.spawn_linked(mortal))
        process.inbox().receive(timeout=WAIT)
        crash()

    pid = node.spawn(one)
    other = await until(lambda: node.kernel.names.get("other"), "the other is there")
    node.send(pid, "go")
    assert (await exits.error(pid)).kind == "error"
    assert (await exits.error(other)).kind == "link_down"


async def test_there_can_only_be_one_link_between_two_processes(node: Node) -> None:
    """Processes: "Links are bidirectional and there can only be one link between two processes.
    Repeated calls to `link()` have no effect."
    """

    def parent() -> Any:
        process.set_options(trap_links=True)
        pid = process.spawn_linked(mortal)
        for _ in range(3):
            process.link(pid)
        process.send(pid, "raise")
        return [event["kind"] for event in after(pid)]

    assert await value_of(node, parent) == ["LINK_DOWN"]


async def test_either_one_of_the_involved_processes_may_create_or_remove_a_link(
    node: Node,
) -> None:
    """Processes: "Either one of the involved processes may create or remove a link." """

    def child(parent: str) -> None:
        process.unlink(parent)
        crash()

    def parent() -> Any:
        pid = process.spawn_linked(child, None, process.pid())
        after(pid)
        return "untied by the child"

    assert await value_of(node, parent) == "untied by the child"


async def test_a_link_can_be_removed_by_calling_unlink(node: Node) -> None:
    """Processes: "A link can be removed by calling the `unlink/1` BIF." """

    def parent() -> Any:
        pid = process.spawn_linked(mortal)
        process.unlink(pid)
        process.send(pid, "raise")
        after(pid)
        return "untied"

    assert await value_of(node, parent) == "untied"


async def test_unlink_of_what_is_not_linked_or_does_not_exist_does_nothing(node: Node) -> None:
    """Process, `unlink/1`: "If there is no such link, this function does nothing. If `pid_or_port`
    does not exist, this function does not produce any errors and simply does nothing."
    """

    def alone() -> Any:
        process.unlink(process.spawn(mortal))
        process.unlink("{processes|none}")
        process.unlink(process.pid())
        return "nothing"

    assert await value_of(node, alone) == "nothing"


async def test_if_a_process_tries_to_create_a_link_to_itself_nothing_will_happen(
    node: Node,
) -> None:
    """Process, `link/1`: "If a process tries to create a link to itself, nothing will happen." """

    def alone() -> Any:
        process.set_options(trap_links=True)
        process.link(process.pid())
        return after(process.spawn(give))

    assert await value_of(node, alone) == []


async def test_a_process_exits_when_a_linked_one_does_and_tells_its_own_linked_ones(
    node: Node,
) -> None:
    """Process, `link/1`: "`pid1` will exit with the same reason as `pid2` and in turn emit an exit
    signal to all its other linked processes."

    By design the reason is not the same: it is `link_down`, and its message names the process that
    ended and how. So each end in a chain tells its own cause.
    """

    def middle(report_to: str) -> None:
        pid = process.spawn_linked(mortal)
        process.send(report_to, "last", pid)
        next_event()

    def parent() -> Any:
        process.set_options(trap_links=True)
        pid = process.spawn_linked(middle, None, process.pid())
        last = process.inbox().receive(timeout=WAIT).payload
        process.send(last, "raise")
        event = next_event()
        expected = f"linked process {last} ended (error)"
        return [event["sender"] == pid, event["error"], event["message"] == expected]

    assert await value_of(node, parent) == [True, "link_down", True]


async def test_an_exit_signal_with_reason_normal_is_dropped_if_exits_are_not_trapped(
    node: Node,
) -> None:
    """Processes: "The exit signal is silently dropped if [...] the exit reason of the exit signal
    is the atom `normal`, the receiver is not trapping exits, and the receiver and sender are not
    the same process."
    """

    def parent() -> Any:
        after(process.spawn_linked(give))
        return "goes on"

    assert await value_of(node, parent) == "goes on"


async def test_an_exit_signal_is_converted_to_a_message_if_the_receiver_is_trapping_exits(
    node: Node,
) -> None:
    """Processes: "The exit signal is converted to a message signal and added to the end of the
    message queue of the receiver, if the receiver is trapping exits".

    By design it is an event on a channel of its own, and a normal end is none: who wants to know of
    normal ends monitors.
    """

    def parent() -> Any:
        process.set_options(trap_links=True)
        failing, returning = process.spawn_linked(crash), process.spawn_linked(give)
        seen = [[event["kind"], event["sender"]] for event in after(failing, returning)]
        return seen == [["LINK_DOWN", failing]]

    assert await value_of(node, parent) is True


async def test_the_trap_exit_state_counts_at_the_time_when_the_signal_is_received(
    node: Node,
) -> None:
    """Processes: what happens depends on "[t]he trap exit state of the receiver at the time when
    the exit signal is received."
    """

    def parent() -> Any:
        pid = process.spawn_linked(mortal)
        process.set_options(trap_links=True)  # after the link, before the end
        process.send(pid, "raise")
        return next_event()["kind"]

    assert await value_of(node, parent) == "LINK_DOWN"

    def careless() -> None:
        process.set_options(trap_links=True)
        pid = process.spawn_linked(mortal)
        process.set_options(trap_links=False)
        process.send(pid, "raise")
        next_event()

    assert await kind_of(node, careless) == "link_down"


async def test_noproc_if_no_process_was_found_when_setting_up_a_link(node: Node) -> None:
    """Processes: "`noproc` in case no process or port was found when setting up a link in a
    preceding call to the `link(PidOrPort)` BIF."
    """

    def parent() -> Any:
        process.set_options(trap_links=True)
        process.link("{local@processes|none}")
        event = next_event()
        return [event["kind"], event["sender"], event["error"]]

    assert await value_of(node, parent) == ["LINK_DOWN", "{local@processes|none}", "noproc"]


async def test_kill_cannot_be_trapped_and_unconditionally_terminates(node: Node) -> None:
    """Processes: "If `Reason` is the atom `kill`, the receiver cannot trap the exit signal and will
    unconditionally terminate when it receives the signal."

    Ours is `terminate`.
    """

    def trapping(report_to: str) -> None:
        process.set_options(trap_links=True)
        process.send(report_to, "trapping")
        next_event()

    def parent() -> Any:
        pid = process.spawn_monitored(trapping, None, process.pid())
        process.inbox().receive(timeout=WAIT)
        process.terminate(pid)
        return next_event()["error"]

    assert await value_of(node, parent) == "terminated"


async def test_an_exit_reason_of_kill_does_not_terminate_a_linked_process_that_traps(
    node: Node,
) -> None:
    """Processes, of a signal due to a link: "Note that an exit reason of `kill` will _not_
    terminate the process in this case and it will not be converted to `killed`."
    """

    def parent() -> Any:
        process.set_options(trap_links=True)
        pid = process.spawn_linked(mortal)
        process.terminate(pid)
        event = next_event()
        return [event["kind"], event["error"]]

    assert await value_of(node, parent) == ["LINK_DOWN", "terminated"]


# Monitors


async def test_if_the_monitored_process_terminates_a_down_message_is_sent(node: Node) -> None:
    """Processes: "If `Pid2` terminates with exit reason `Reason`, a 'DOWN' message is sent to
    `Pid1`".
    """

    def parent() -> Any:
        pid = process.spawn(mortal)
        process.monitor(pid)
        process.send(pid, "exit", 3)
        event = next_event()
        return [event["kind"], event["sender"] == pid, event["error"], event["message"]]

    assert await value_of(node, parent) == ["EXIT", True, "exit", "exit code 3"]


async def test_if_the_process_does_not_exist_the_down_message_is_sent_immediately(
    node: Node,
) -> None:
    """Processes: "If `Pid2` does not exist, the 'DOWN' message is sent immediately with `Reason`
    set to `noproc`."
    """

    def parent() -> Any:
        process.monitor("{local@processes|none}")
        event = next_event()
        return [event["kind"], event["sender"], event["error"]]

    assert await value_of(node, parent) == ["EXIT", "{local@processes|none}", "noproc"]


async def test_if_the_process_is_already_dead_a_down_message_is_delivered_immediately(
    node: Node,
) -> None:
    """Process, `monitor/1`: "If the process is already dead when calling `Process.monitor/1`, a
    `:DOWN` message is delivered immediately."
    """

    def parent() -> Any:
        pid = process.spawn(crash)
        after(pid)
        process.monitor(pid)
        return next_event()["error"]

    assert await value_of(node, parent) == "noproc"


async def test_monitors_are_unidirectional(node: Node) -> None:
    """Processes: "Monitors are unidirectional." """
    exits = Exits(node)

    def watcher(pid: str) -> None:
        process.monitor(pid)
        process.send(pid, "ping")
        process.inbox().receive(timeout=WAIT)
        crash()

    watched = node.spawn(mortal)
    assert (await exits.error(node.spawn(watcher, None, watched))).kind == "error"
    node.send(watched, "return", "heard nothing")
    assert (await exits.of(watched)).value == "heard nothing"


async def test_repeated_calls_to_monitor_make_one_monitor(node: Node) -> None:
    """Processes: "Repeated calls to `erlang:monitor(process, Pid)` creates several independent
    monitors, and each one sends a 'DOWN' message when `Pid` terminates."

    By design not so here: a monitor has no reference, it is there or not, and there is one EXIT.
    """

    def parent() -> Any:
        pid = process.spawn(mortal)
        for _ in range(3):
            process.monitor(pid)
        process.send(pid, "return")
        return [event["kind"] for event in after(pid)]

    assert await value_of(node, parent) == ["EXIT"]


async def test_a_monitor_can_be_removed_by_calling_demonitor(node: Node) -> None:
    """Processes: "A monitor can be removed by calling `erlang:demonitor(Ref)`." """

    def parent() -> Any:
        pid = process.spawn_monitored(mortal)
        process.unmonitor(pid)
        process.send(pid, "raise")
        return after(pid)

    assert await value_of(node, parent) == []


async def test_if_the_monitoring_is_already_turned_off_nothing_happens(node: Node) -> None:
    """Process, `demonitor/2`: "If the monitoring is already turned off, nothing happens." """

    def parent() -> Any:
        pid = process.spawn_monitored(mortal)
        for _ in range(3):
            process.unmonitor(pid)
        process.unmonitor("{processes|none}")
        process.monitor(pid)
        process.send(pid, "return", "monitored again")
        return [event["value"] for event in after(pid)]

    assert await value_of(node, parent) == ["monitored again"]


async def test_monitors_are_for_pids_and_not_for_names(node: Node) -> None:
    """Processes: "Monitors can be created for processes with registered names, also at other
    nodes."

    By design not so here: a name may pass to another process, an end belongs to one. Who has a name
    looks it up first.
    """

    def parent() -> Any:
        pid = process.spawn(mortal)
        process.registry.register("named", pid)
        try:
            process.monitor("named")
        except ValueError as error:
            refused = type(error).__name__
        process.monitor(process.registry.lookup("named"))
        process.send("named", "return", 1)
        return [refused, next_event()["value"]]

    assert await value_of(node, parent) == ["InvalidPID", 1]
