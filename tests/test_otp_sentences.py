"""What Erlang's and Elixir's documentation says of processes, links and monitors, held to here.

Each test is named after a sentence, quoted in its docstring with the page that it stands on:
"Processes" is that page of the Erlang Reference Manual, "Process" the module in Elixir's
documentation, "Getting started" the page "Processes" of Elixir's guide. Where wsrelay differs by
design the test says so and checks what wsrelay does.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from relating import WAIT, crash, give, mortal, told, witness
from support import processes, until
from test_host import Exits

from wsrelay import PID, NameNotFound, NameTaken, Node, process

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": os.environ.get("WSRELAY_TEST_LOOP") != "asyncio"}


@pytest.fixture(scope="module")
async def shared() -> AsyncIterator[Node]:
    script = Path(__file__).with_name("relating.py")
    async with Node(hosts=[processes(targets=(f"{script}:mortal",))]) as node:
        await node.loaded()
        yield node


@pytest.fixture
async def node(shared: Node) -> AsyncIterator[Node]:
    """The node of all tests, without workers before and after."""
    observers = [*shared.engine.on_exit]
    yield shared
    shared.terminate_all()
    await until(lambda: not shared.workers, "all are gone")
    shared.engine.on_exit[:] = observers
    assert not shared.kernel.relations
    assert not shared.kernel.names


async def value_of(node: Node, handler: Callable[[], Any]) -> Any:
    """Run a handler and give what it returns."""
    result = await Exits(node).of(node.spawn(handler))
    assert result.error is None, result.error.traceback or result.error
    return result.value


async def kind_of(node: Node, handler: Callable[[], Any]) -> str:
    """Run a handler that has to end with an error, and give the error's kind."""
    error = await Exits(node).error(node.spawn(handler))
    return str(error.kind)


def next_event() -> dict[str, Any]:
    return told(process.events().receive(timeout=WAIT))


def after(*pids: str) -> list[dict[str, Any]]:
    """Wait for these to end, in another way than by events, and give the events that came."""
    channel = process.listen("gone")
    for pid in pids:
        process.spawn(witness, None, process.pid(), pid)
    for _ in pids:
        channel.receive(timeout=WAIT)
    seen = []
    try:
        while True:
            seen.append(told(process.events().receive(timeout=0)))
    except TimeoutError:
        return seen


# Processes and their ends


async def test_spawn_creates_a_new_process_and_returns_the_pid(node: Node) -> None:
    """Processes: "`spawn()` creates a new process and returns the pid." """

    def parent() -> Any:
        pid = process.spawn(mortal)
        process.send(pid, "ping", "hello")
        message = process.inbox().receive(timeout=WAIT)
        return [message.payload, message.sender == pid]

    assert await value_of(node, parent) == ["hello", True]


async def test_a_process_with_no_more_code_to_execute_terminates_normally(node: Node) -> None:
    """Processes: "A process with no more code to execute terminates normally." """

    def parent() -> Any:
        process.spawn_monitored(give)
        return next_event()["error"]

    assert await value_of(node, parent) is None


async def test_a_process_terminates_with_reason_and_stack_when_a_run_time_error_occurs(
    node: Node,
) -> None:
    """Processes: "A process terminates with an exit reason `{Reason,Stack}` when a run-time error
    occurs."

    Ours are the error's message and traceback.
    """

    def parent() -> Any:
        process.spawn_monitored(crash, None, "oops")
        event = next_event()
        return [event["error"], event["message"], "in crash" in event["traceback"]]

    assert await value_of(node, parent) == ["error", "ZeroDivisionError: oops", True]


async def test_a_failure_in_a_process_will_never_crash_another_process(node: Node) -> None:
    """Getting started: "a failure in a process will never crash or corrupt the state of another
    process."
    """

    def parent() -> Any:
        state = {"a": 1}
        pid = process.spawn(crash)
        return [state, after(pid)]

    assert await value_of(node, parent) == [{"a": 1}, []]


# Signals


async def test_messages_from_the_same_sender_are_ordered_as_they_were_sent(node: Node) -> None:
    """Processes: "if an entity sends multiple signals to the same destination entity, the order is
    preserved".
    """

    def sender(to: str) -> None:
        for number in range(1000):
            process.send(to, "number", number)

    def parent() -> Any:
        process.spawn(sender, None, process.pid())
        inbox = process.inbox()
        return [inbox.receive(timeout=WAIT).payload for _ in range(1000)]

    assert await value_of(node, parent) == list(range(1000))


async def test_the_order_is_preserved_between_a_monitor_and_what_is_sent_after_it(
    node: Node,
) -> None:
    """Processes: "if `A` sends a signal `S1` to `B`, and later sends signal `S2` to `B`, `S1` is
    guaranteed not to arrive after `S2`."

    Monitors, links and orders to end are signals too: the end that follows a monitor is its end.
    """

    def parent() -> Any:
        seen = []
        for _ in range(20):
            pid = process.spawn(mortal)
            process.monitor(pid)
            process.send(pid, "return", "obeyed")
            seen.append(next_event()["value"])
        return set(seen)

    assert await value_of(node, parent) == ["obeyed"]


async def test_if_the_receiver_has_terminated_the_signal_does_not_arrive(node: Node) -> None:
    """Processes: "If the receiver has terminated, the signal does not arrive, but it can trigger
    another signal."

    A message to the dead is a dead letter, no error; a link to the dead triggers its LINK_DOWN.
    """
    before = node.dead_letters

    def parent() -> Any:
        process.set_options(trap_links=True)
        pid = process.spawn(give)
        after(pid)
        process.send(pid, "x")
        process.link(pid)
        event = next_event()
        return [event["kind"], event["sender"] == pid, event["error"]]

    assert await value_of(node, parent) == ["LINK_DOWN", True, "noproc"]
    assert node.dead_letters == before + 1


async def test_the_process_that_sends_the_message_does_not_block_on_send(node: Node) -> None:
    """Getting started: "The process that sends the message does not block on `send/2`, it puts the
    message in the recipient's mailbox and continues."
    """

    def parent() -> Any:
        pid = process.spawn(mortal)
        for _ in range(100):
            process.send(pid, "unread", bytes(100_000))
        process.terminate(pid)
        return "did not block"

    assert await value_of(node, parent) == "did not block"


async def test_a_process_can_send_messages_to_itself(node: Node) -> None:
    """Getting started: "In particular, a process can send messages to itself." """

    def alone() -> Any:
        process.send(process.pid(), "hello", 1)
        message = process.inbox().receive(timeout=WAIT)
        return [message.payload, message.sender == process.pid()]

    assert await value_of(node, alone) == [1, True]


async def test_a_timeout_of_0_takes_a_message_that_is_in_the_mailbox_already(node: Node) -> None:
    """Getting started: "A timeout of 0 can be given when you already expect the message to be in
    the mailbox."
    """

    def alone() -> Any:
        inbox = process.inbox()
        process.send(process.pid(), "x", "expected")
        after(process.spawn(give))  # by now it is there
        first = inbox.receive(timeout=0).payload
        try:
            inbox.receive(timeout=0)
        except TimeoutError:
            return [first, "nothing else"]

    assert await value_of(node, alone) == ["expected", "nothing else"]


async def test_a_down_signal_is_sent_after_the_directly_visible_resources_have_been_released(
    node: Node,
) -> None:
    """Processes, of `exit` and `down`: "The signal is sent after all _directly visible Erlang
    resources_ used by the process or the port have been released."

    Ours are names and groups.
    """

    def parent() -> Any:
        pid = process.spawn(mortal)
        process.registry.register("resource", pid)
        process.groups.join("resources", pid)
        process.monitor(pid)
        process.send(pid, "kill", "SIGKILL")
        next_event()
        try:
            process.registry.lookup("resource")
        except NameNotFound:
            return process.groups.members("resources")

    assert await value_of(node, parent) == []


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


# Names


async def test_a_name_is_automatically_unregistered_if_the_process_terminates(node: Node) -> None:
    """Processes: "The name must be an atom and is automatically unregistered if the process
    terminates".
    """
    exits = Exits(node)
    pid = node.spawn(mortal)
    node.register("a name", pid)
    assert node.lookup("a name") == pid
    node.send("a name", "raise")
    await exits.of(pid)
    with pytest.raises(NameNotFound):
        node.lookup("a name")


async def test_register_fails_if_the_name_is_already_registered_or_the_process_is_dead(
    node: Node,
) -> None:
    """Process, `register/2`: fails if "the PID/Port is not existing locally and alive" or "the name
    is already registered".

    By design one process may have several names, and the same name again is no change.
    """
    one, two = node.spawn(mortal), node.spawn(mortal)
    node.register("first", one)
    node.register("first", one)
    node.register("second", one)
    with pytest.raises(NameTaken):
        node.register("first", two)
    with pytest.raises(ValueError, match="is not alive"):
        node.register("third", PID("{local@processes|none}"))
    assert node.lookup("first") == node.lookup("second") == one


async def test_everyone_that_knows_the_name_can_send_messages_to_the_process(node: Node) -> None:
    """Getting started: "It is also possible to register the `pid`, giving it a name, and allowing
    everyone that knows the name to send it messages".
    """

    def store() -> Any:
        process.registry.register("kv")
        state: dict[str, Any] = {}
        for message in process.inbox():
            match message.topic:
                case "put":
                    state.update(message.payload)
                case "get":
                    process.send(message.sender, "value", state.get(message.payload))
        return state

    def user() -> Any:
        process.send("kv", "put", {"hello": "world"})
        process.send("kv", "get", "hello")
        return process.inbox().receive(timeout=WAIT).payload

    node.spawn(store)
    await until(lambda: node.kernel.names.get("kv"), "the store is there")
    assert await value_of(node, user) == "world"


async def test_waiting_for_a_process_to_terminate_is_monitoring_it(node: Node) -> None:
    """Process, `sleep/1`: "Similarly, if you are waiting for a process to terminate, monitor that
    process instead of sleeping."
    """

    def parent() -> Any:
        process.spawn_monitored(give, None, "done")
        return process.events().receive(timeout=WAIT).kind

    assert await value_of(node, parent) == "EXIT"
