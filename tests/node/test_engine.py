"""The engine and the requests of workers: what comes of what, and when."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support import end_of, processes, until

from wsrelay import (
    Event,
    ExitError,
    ExitKind,
    HostOptions,
    NameNotFound,
    Node,
    WsrelayError,
    process,
    wire,
)
from wsrelay.kernel import KillEffect, NotifyEffect, Signal
from wsrelay.node import Endpoint, Mail, WorkerProcess
from wsrelay.node.ends import EndRequest
from wsrelay.node.host import Incarnation
from wsrelay.values.pid import PID

pytestmark = pytest.mark.anyio


class Recorder:
    """An endpoint that writes down what happens to it, and may bring about more."""

    asked: EndRequest | None = None

    def __init__(self, node: Node) -> None:
        self.node = node
        self.seen: list[str] = []
        self.follows: list[Any] = []

    def write_through(self, frame: bytes) -> bool:
        del frame
        return False

    def deliver(self, mail: Mail) -> bool:
        self.seen.append(mail.topic)
        return True

    def stop(self, reason: str, sender: PID) -> None:
        self.seen.append(f"stop: {reason} by {sender}")

    def kill(self) -> None:
        self.seen.append("kill begins")
        self.node.engine.execute(self.follows)
        self.seen.append("kill ends")

    def notify(self, event: Event) -> None:
        self.seen.append(event.kind)

    def break_link(self) -> None:
        self.seen.append("break")


def stay() -> None:
    process.inbox().receive()


def look() -> str:
    try:
        return process.registry.lookup("anybody")
    except WsrelayError as error:
        return str(error)


async def never(_: WorkerProcess, __: wire.LookupFrame) -> PID:
    await asyncio.Event().wait()
    raise AssertionError


async def test_what_an_effect_brings_about_follows_it_and_does_not_happen_in_its_middle(
    node: Node,
) -> None:
    pid = PID("{local@gateway|one}")
    one = Recorder(node)
    node.engine.endpoints[pid] = one
    one.follows = [NotifyEffect(pid, Event("EXIT", pid, None))]
    node.engine.execute([KillEffect(pid), NotifyEffect(pid, Event("LINK_DOWN", pid, None))])
    assert one.seen == ["kill begins", "kill ends", "LINK_DOWN", "EXIT"]


async def test_an_effect_that_fails_leaves_those_behind_it_to_be_carried_out(node: Node) -> None:
    pid = PID("{local@gateway|one}")
    one = Recorder(node)
    node.engine.endpoints[pid] = one

    def fail() -> None:
        raise ZeroDivisionError("on purpose")

    one.kill = fail  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        node.engine.execute([KillEffect(pid), NotifyEffect(pid, Event("EXIT", pid, None))])
    assert one.seen == []
    await until(lambda: one.seen, "the loop has had its next turn")
    assert one.seen == ["EXIT"]


async def test_whoever_has_a_pid_takes_messages_by_it_with_and_without_the_node_s_part(
    node: Node,
) -> None:
    pid = PID("{local@gateway|one}")
    one = Recorder(node)
    node.engine.endpoints[pid] = one
    node.kernel.connect(pid)
    dead = node.dead_letters
    node.send([pid, "{gateway|one}", "{other@gateway|one}", "no name"], "topic", None)
    assert one.seen == ["topic", "topic"]
    assert node.dead_letters == dead + 2


async def test_a_message_for_many_workers_is_packed_once(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack, packed = wire.pack, []

    def count(frame: wire.Frame) -> bytes:
        packed.append(type(frame))
        return pack(frame)

    def hear() -> Any:
        return process.inbox().receive().payload

    pids = [node.spawn(hear) for _ in range(3)]
    results: list[Any] = []
    for pid in pids:
        node.when_ended(pid, results.append)
    monkeypatch.setattr(wire, "pack", count)
    node.send(pids, "topic", "hello")
    await until(lambda: len(results) == 3, "all have heard it")
    assert [result.value for result in results] == ["hello"] * 3
    assert packed.count(wire.DeliverFrame) == 1


async def test_a_process_that_answers_the_node_is_told_so_by_both_forms_of_its_pid(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(to: str) -> None:
        process.send(to, "answer")

    me = node.pid()
    for to in (me, f"{{{me.host}|{me.id}}}"):
        caplog.clear()
        assert (await end_of(node, answer, to)).error is None
        assert "sent answer to the node, which has no inbox" in caplog.text


async def test_the_node_is_an_endpoint_that_nobody_can_end(node: Node) -> None:
    me: Endpoint = node.engine.endpoints[node.pid()]
    node.cancel(node.pid())
    node.terminate(node.pid())
    assert node.engine.endpoints[node.pid()] is me
    assert node.running


async def test_pids_that_a_process_makes_stay_unique_when_another_incarnation_runs_it() -> None:
    async with Node(hosts=[processes(max_processes=10)]) as node:
        pid = node.spawn(stay)
        assert await node.started(pid) is None
        one = node.engine.processes[pid]
        first = node.engine.ids(one.incarnation)
        other = Incarnation(
            pid,
            next(node.engine._refs),
            HostOptions(),
            log=one.log,
            received=lambda _: None,
            exited=lambda _: None,
            about=dict,
            unfinished=node.engine.unfinished,
        )
        made = first.next("processes")
        assert not node.engine.ids(other).made(made)
        assert first.made(made)
        other.abandoned(ExitError(ExitKind.KILLED, "SIGKILL"))


async def test_an_answer_may_come_later_from_a_coroutine_or_a_future(node: Node) -> None:
    looked: list[str] = []
    come = asyncio.Event()

    async def lookup(_: WorkerProcess, frame: wire.LookupFrame) -> PID:
        looked.append(frame.name)
        await come.wait()
        if frame.name == "elsewhere":
            return PID("{other@processes|1}")
        raise NameNotFound(frame.name)

    def look() -> list[str]:
        found: list[str] = [process.registry.lookup("elsewhere")]
        try:
            process.registry.lookup("nowhere")
        except NameNotFound as error:
            found.append(str(error))
        return found

    node._requests.answer(wire.LookupFrame, lookup)
    ends = asyncio.create_task(end_of(node, look))
    await until(lambda: looked, "it has asked")
    assert (await end_of(node, len, "abc")).value == 3  # others go on meanwhile
    come.set()
    result = await ends
    assert result.value == ["{other@processes|1}", str(NameNotFound("nowhere"))]


async def test_a_request_whose_answer_fails_raises_where_it_was_made(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    async def lookup(_: WorkerProcess, __: wire.LookupFrame) -> PID:
        await asyncio.sleep(0)
        raise ZeroDivisionError("on purpose")

    node._requests.answer(wire.LookupFrame, lookup)
    assert (await end_of(node, look)).value == "on purpose"
    assert "a request of" in caplog.text


async def test_nobody_waits_for_the_answer_to_a_process_that_has_ended(node: Node) -> None:
    cancelled = asyncio.Event()

    async def lookup(one: WorkerProcess, frame: wire.LookupFrame) -> PID:
        try:
            return await never(one, frame)
        finally:
            cancelled.set()

    node._requests.answer(wire.LookupFrame, lookup)
    pid = node.spawn(look)
    await until(lambda: node.engine.processes[pid].pending, "it waits")
    node.terminate(pid)
    await asyncio.wait_for(cancelled.wait(), 20)


async def test_too_many_requests_without_an_answer_are_refused(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsrelay.node.requests.MOST", 0)

    node._requests.answer(wire.LookupFrame, never)
    assert (await end_of(node, look)).value == "lookup limit of 0 reached"


async def test_who_watches_exits_is_told_of_each_once_and_in_order(node: Node) -> None:
    told: list[tuple[str, PID]] = []
    node.engine.on_exit.append(lambda one, _: told.append(("first", one.pid)))
    node.engine.on_exit.append(lambda one, _: told.append(("second", one.pid)))
    pid = node.spawn(stay)
    node.engine.signal(pid, Signal.TERMINATE)
    await until(lambda: len(told) == 2, "both are told")
    assert told == [("first", pid), ("second", pid)]
