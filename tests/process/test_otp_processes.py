"""What Erlang's and Elixir's documentation says of processes, links and monitors, held to here.

Each test is named after a sentence, quoted in its docstring with the page that it stands on:
"Processes" is that page of the Erlang Reference Manual, "Process" the module in Elixir's
documentation, "Getting started" the page "Processes" of Elixir's guide. Where wsrelay differs by
design the test says so and checks what wsrelay does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import relating
from exits import Exits
from one_node import left_as_found
from otp import after, next_event, value_of
from relating import WAIT, crash, give, mortal
from support import processes, until

from wsrelay import PID, NameNotFound, NameTaken, Node, process

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
