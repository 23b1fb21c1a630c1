from __future__ import annotations

import resource
import signal
import time
from typing import Any

import psutil
import pytest
from crowds import allocate
from support import client, closed, received, relay_to, serving, until

from wsrelay import ExitKind, HostFailed, HostOptions, Limits, Node, Result, WebSocketRelay, process

pytestmark = pytest.mark.anyio

MB = 1024 * 1024


def host(**options: Any) -> HostOptions:
    return HostOptions(stop_timeout=2.0, **options)


async def ending(node: Node, target: Any, *args: Any) -> Result:
    """How a process ends."""
    results: list[Result] = []
    node.when_ended(node.spawn(target, None, *args), results.append)
    await until(lambda: results, "the process has ended")
    return results[0]


def careful(size: int) -> str:
    try:
        bytearray(size)
    except MemoryError:
        return "caught"
    return "had it"


def crowd() -> None:
    crowd = []
    while True:
        crowd.append(bytearray(4096))


def busy() -> None:
    while True:
        pass


def deaf() -> None:
    signal.signal(signal.SIGXCPU, signal.SIG_IGN)
    busy()


def idle(seconds: float) -> str:
    time.sleep(seconds)
    return "rested"


def raise_limit(which: int) -> str:
    try:
        resource.setrlimit(which, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except ValueError as error:
        return str(error)
    return "raised" if resource.getrlimit(which)[0] == resource.RLIM_INFINITY else "kept"


def limits(*which: int) -> list[int]:
    return [resource.getrlimit(one)[0] for one in which]


def wait_for_orders() -> None:
    for message in process.inbox():
        if message.topic == "ws.message":
            allocate(int(message.payload["data"]))
            answer = {"type": "text", "data": "had it"}
            process.send(message.sender, "ws.send", answer)


async def test_a_process_over_its_memory_limit_ends_with_the_kind_limit_and_a_traceback() -> None:
    async with Node(hosts=[host(limits=Limits(memory=400 * MB))]) as node:
        error = (await ending(node, allocate, 500 * MB)).error
    assert error is not None
    assert (error.kind, error.message) == (ExitKind.LIMIT, "memory limit of 400MB reached")
    assert error.traceback is not None
    assert "bytearray(size)" in error.traceback


async def test_a_process_that_fills_its_memory_bit_by_bit_can_still_tell_its_end() -> None:
    async with Node(hosts=[host(limits=Limits(memory=200 * MB))]) as node:
        error = (await ending(node, crowd)).error
    assert error is not None
    assert (error.kind, error.message) == (ExitKind.LIMIT, "memory limit of 200MB reached")


async def test_below_its_memory_limit_a_process_works() -> None:
    async with Node(hosts=[host(limits=Limits(memory=400 * MB))]) as node:
        assert await ending(node, allocate, 100 * MB) == Result(100 * MB)


async def test_a_handler_that_catches_its_memory_error_goes_on() -> None:
    async with Node(hosts=[host(limits=Limits(memory=400 * MB))]) as node:
        assert await ending(node, careful, 500 * MB) == Result("caught")


async def test_without_a_limit_a_memory_error_is_an_error_like_others() -> None:
    async with Node(hosts=[host()]) as node:
        error = (await ending(node, allocate, 1 << 60)).error
    assert error is not None
    assert (error.kind, error.message) == (ExitKind.ERROR, "MemoryError")


async def test_the_clients_of_a_process_over_its_memory_limit_are_told_so() -> None:
    async with Node(hosts=[host(limits=Limits(memory=400 * MB))]) as node:
        pid = node.spawn(wait_for_orders)
        async with serving(WebSocketRelay(relay_to(pid), node=node)) as url, client(url) as one:
            await one.send(str(100 * MB))
            assert await received(one) == "had it"
            await one.send(str(500 * MB))
            assert await closed(one) == (1011, "target process crashed (memory limit)")


async def test_a_process_over_its_cpu_time_is_killed_and_its_clients_are_told_so() -> None:
    async with Node(hosts=[host(limits=Limits(cpu_time=1.0))]) as node:
        error = (await ending(node, busy)).error
    assert error is not None
    assert (error.kind, error.message) == (ExitKind.LIMIT, "CPU time limit of 1s reached")


async def test_a_process_that_ignores_the_cpu_limit_s_signal_is_told_as_over_it_too() -> None:
    async with Node(hosts=[host(limits=Limits(cpu_time=1.0))]) as node:
        error = (await ending(node, deaf)).error
    assert error is not None
    assert (error.kind, error.message) == (ExitKind.LIMIT, "CPU time limit of 1s reached")


async def test_waiting_uses_no_cpu_time() -> None:
    async with Node(hosts=[host(limits=Limits(cpu_time=1.0))]) as node:
        assert await ending(node, idle, 1.2) == Result("rested")


@pytest.mark.parametrize("which", [resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_NOFILE])
async def test_a_process_has_its_limits(which: int) -> None:
    options = Limits(memory=400 * MB, cpu_time=5.0, open_files=64)
    expected = {resource.RLIMIT_AS: 400 * MB, resource.RLIMIT_CPU: 5, resource.RLIMIT_NOFILE: 64}
    async with Node(hosts=[host(limits=options)]) as node:
        assert await ending(node, limits, which) == Result([expected[which]])


async def test_processes_of_another_host_have_no_limits_of_their_neighbours() -> None:
    before = limits(resource.RLIMIT_AS, resource.RLIMIT_NOFILE)
    tight = host(name="tight", limits=Limits(memory=400 * MB, open_files=64))
    async with Node(hosts=[host(), tight]) as node:
        assert await ending(node, limits, resource.RLIMIT_AS, resource.RLIMIT_NOFILE) == Result(
            before
        )


async def test_the_niceness_is_that_of_the_workers_alone() -> None:
    async with Node(hosts=[host(nice=7)]) as node:
        pid = node.spawn(wait_for_orders)
        assert await node.started(pid) is None
        (os_pid,) = node.workers.values()
        assert psutil.Process(os_pid).nice() == 7
        assert psutil.Process(os_pid).parent().nice() == psutil.Process().nice()  # type: ignore[union-attr]


async def test_preloading_beyond_the_memory_limit_fails_and_names_the_limit() -> None:
    options = host(limits=Limits(memory=64 * MB), preload=("numpy",))
    async with Node(hosts=[options]) as node:
        with pytest.raises(HostFailed, match="under a memory limit of 64MB"):
            await node.loaded()


async def test_a_memory_limit_that_is_too_low_for_anything_is_told_in_one_line(
    capfd: pytest.CaptureFixture[str],
) -> None:
    async with Node(hosts=[host(limits=Limits(memory=MB))]) as node:
        with pytest.raises(HostFailed, match=r"no room to load .*under a memory limit of 1MB"):
            await node.loaded()
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_processes": -1}, "host processes: max_processes is -1 and must be 1 or more"),
        ({"nice": 20}, "host processes: nice is 20 and must be -20 to 19"),
        (
            {"limits": Limits(open_files=3)},
            "host processes: limits.open_files is 3 and must be 16 or more",
        ),
        (
            {"limits": Limits(cpu_time=0.5)},
            "host processes: limits.cpu_time is 0.5 and must be 1s or more",
        ),
    ],
)
async def test_a_limit_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the text is compared
        host(**options)
    assert str(raised.value) == message
