"""Services: started with the node, started again when they fail, stopped in reverse order."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import rooms
from exits import Exits
from support import Journal, processes, room, until

from wsrelay import PID, Node, RestartPolicy, Service, Supervisor, process
from wsrelay.kernel import ProcessState

pytestmark = pytest.mark.anyio

SOON = RestartPolicy(initial_delay=0.01, max_delay=0.05)


def end_when_there(path: str) -> None:
    """Return some time after the cancel: when that file is there."""
    for _ in process.inbox():
        pass
    while not Path(path).exists():
        time.sleep(0.005)


def recorder(name: str, journal: Journal, **options: Any) -> Service:
    target = room(rooms.record)
    return Service(name=name, target=target, args=(str(journal.path),), restart=SOON, **options)


def supervised(*services: Service, **options: Any) -> tuple[Node, Supervisor]:
    node = Node(hosts=[processes(**options)])
    return node, Supervisor(node, services)


async def next_pid(supervisor: Supervisor, name: str, *, after: PID | None = None) -> PID:
    pid = await until(lambda: supervisor.pid(name) not in (None, after) and supervisor.pid(name))
    assert isinstance(pid, PID)
    return pid


async def test_services_start_with_the_node_under_their_names(journal: Journal) -> None:
    node, supervisor = supervised(recorder("one", journal), recorder("two", journal))
    async with node:
        assert node.lookup("one") == supervisor.pid("one")
        assert node.lookup("two") == supervisor.pid("two")
        node.send("one", "hello")
        await journal.line("hello")


async def test_without_a_cluster_the_scope_of_a_service_makes_no_difference(
    journal: Journal,
) -> None:
    node, supervisor = supervised(recorder("one", journal, scope="cluster"))
    async with node:
        first = await next_pid(supervisor, "one")
        node.send("one", "do", ["raise", ["x"]])
        second = await next_pid(supervisor, "one", after=first)
        assert node.lookup("one") == second
        node.cancel("one")
        await until(lambda: supervisor.pid("one") is None, "it has finished")


@pytest.mark.parametrize("end", [["raise", "x"], ["exit", 3], ["abort", 4], ["kill", "SIGKILL"]])
async def test_a_service_that_fails_is_started_again_under_its_name(
    journal: Journal, end: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    node, supervisor = supervised(recorder("service", journal))
    async with node:
        first = await next_pid(supervisor, "service")
        node.send("service", "do", [end[0], end[1:]])
        second = await next_pid(supervisor, "service", after=first)
        assert node.lookup("service") == second
        node.send("service", "still reachable")
        await journal.line("still reachable")
    assert "service service failed" in caplog.text
    assert "it starts again in" in caplog.text


async def test_a_service_that_returns_has_finished(
    journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    node, supervisor = supervised(recorder("service", journal))
    async with node:
        os.kill(await until(lambda: node.workers[node.lookup("service")]), signal.SIGCONT)
        node.cancel("service")
        await until(lambda: supervisor.pid("service") is None, "it has ended")
        assert "service service has finished" in caplog.text
        assert not node.workers


async def test_a_service_that_keeps_failing_is_given_up_with_a_clear_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    policy = RestartPolicy(initial_delay=0.01, max_attempts=3)
    node, supervisor = supervised(
        Service(name="hopeless", target=room(rooms.raise_at_once), restart=policy)
    )
    async with node:
        exits = Exits(node)
        await until(lambda: "is given up" in caplog.text, "it is given up")
        assert len(exits.results) == 3
        assert supervisor.pid("hopeless") is None
    line = next(text for text in caplog.messages if "is given up" in text)
    assert line == (
        "service hopeless is given up after 3 failures in a row, "
        "the last one: ZeroDivisionError: on purpose"
    )


async def test_a_service_that_cannot_start_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    policy = RestartPolicy(initial_delay=0.01, max_attempts=3)
    node, _ = supervised(
        Service(name="lost", target=f"{rooms.__file__}:no_such_function", restart=policy)
    )
    async with node:
        await until(lambda: "is given up after 3" in caplog.text, "it is given up")
    assert "no function 'no_such_function'" in caplog.text


async def test_a_name_that_is_taken_counts_as_a_failure(
    journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    node, supervisor = supervised(recorder("service", journal, auto_start=False))
    async with node:
        thief = node.get_or_spawn("service", room(rooms.echo))
        supervisor.start_service("service")
        await until(lambda: f"belongs to {thief}" in caplog.text, "it failed")
        node.terminate(thief)
        assert await next_pid(supervisor, "service") == node.lookup("service")


async def test_services_stop_in_reverse_order_after_everything_else(journal: Journal) -> None:
    node, supervisor = supervised(recorder("one", journal), recorder("two", journal))
    async with node:
        exits = Exits(node)
        one = await next_pid(supervisor, "one")
        two = await next_pid(supervisor, "two")
        other = node.spawn(room(rooms.record), None, str(journal.path))
        await until(lambda: all(node.workers.values()), "all run")
    assert list(exits.results) == [other, two, one]
    assert all(result.error is None for result in exits.results.values())


async def test_a_stopped_service_stays_so_until_it_is_started(journal: Journal) -> None:
    node, supervisor = supervised(recorder("service", journal))
    async with node:
        first = await next_pid(supervisor, "service")
        await supervisor.stop_service("service")
        assert supervisor.pid("service") is None
        assert not node.workers
        supervisor.start_service("service")
        assert await next_pid(supervisor, "service", after=first)


async def test_a_service_that_is_started_while_it_stops_waits_for_its_former_process(
    journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    hold = journal.path.with_suffix(".may_end")
    service = Service(name="slow", target=end_when_there, args=(str(hold),))
    node, supervisor = supervised(service, stop_timeout=20.0)
    async with node:
        exits = Exits(node)
        first = await next_pid(supervisor, "slow")
        assert await node.started(first) is None
        stopping = asyncio.create_task(supervisor.stop_service("slow"))
        await until(lambda: node.why_no_target(first), "it is being stopped")
        supervisor.start_service("slow")
        second = await next_pid(supervisor, "slow", after=first)
        assert node.lookup("slow") == second
        assert not exits.results
        assert node.engine.processes[second].row.state is ProcessState.WAITING
        hold.touch()
        await stopping
        assert await node.started(second) is None
        assert supervisor.pid("slow") == second
        assert (await exits.of(first)).error is None
    assert list(exits.results) == [first, second]
    assert "failed" not in caplog.text
    assert "has finished" not in caplog.text


async def test_a_stop_waits_for_the_former_process_of_a_service_too(journal: Journal) -> None:
    hold = journal.path.with_suffix(".may_end")
    node, supervisor = supervised(
        Service(name="slow", target=end_when_there, args=(str(hold),)), stop_timeout=20.0
    )
    async with node:
        exits = Exits(node)
        first = await next_pid(supervisor, "slow")
        assert await node.started(first) is None
        node.cancel(first)
        first_stop = asyncio.create_task(supervisor.stop_service("slow"))
        await asyncio.sleep(0)
        supervisor.start_service("slow")
        second = await next_pid(supervisor, "slow", after=first)
        second_stop = asyncio.create_task(supervisor.stop_service("slow"))
        await exits.of(second)
        assert not second_stop.done()
        hold.touch()
        await asyncio.gather(first_stop, second_stop)
        assert list(exits.results) == [second, first]
        assert not node.workers


def failed_twice(exits: Exits) -> bool:
    return len(exits.results) >= 2


async def test_a_node_that_ends_starts_no_failed_service_again() -> None:
    policy = RestartPolicy(initial_delay=0.01)
    node, _ = supervised(Service(name="failing", target=room(rooms.raise_at_once), restart=policy))
    for _ in range(3):
        async with node:
            exits = Exits(node)
            await until(functools.partial(failed_twice, exits), "it failed twice")
        assert not node.workers


async def test_two_services_of_one_name_are_refused(journal: Journal) -> None:
    with pytest.raises(ValueError, match="several services have the same name: same"):
        supervised(recorder("same", journal), recorder("same", journal))


async def test_a_supervisor_comes_before_the_node_s_start(node: Node, journal: Journal) -> None:
    with pytest.raises(RuntimeError, match="is already running"):
        Supervisor(node, [recorder("late", journal)])
