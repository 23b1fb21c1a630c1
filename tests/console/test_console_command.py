"""`wsrelay console` as it is typed."""

from __future__ import annotations

import http.client
import re
import signal
import socket

import pytest
from commands import run_here
from console_command import ConsoleCommand


def test_it_prints_its_address_as_one_line_and_ends_in_order() -> None:
    with ConsoleCommand() as console:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{43}", console.address)
        connection = http.client.HTTPConnection("127.0.0.1", console.port, timeout=20)
        connection.request("GET", console.address.partition(str(console.port))[2])
        assert connection.getresponse().status == 303
        connection.close()
        console.process.send_signal(signal.SIGINT)
        assert console.process.wait(20) == 0
        console.stdout.join()
        assert console.stdout.lines == [console.address]
        assert console.stderr.lines == []


def test_a_port_that_is_taken_is_told_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_here("console", "--port", str(port))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        f"wsrelay: cannot listen on 127.0.0.1:{port}: the address is in use; "
        "choose another one with --port\n"
    )


@pytest.mark.parametrize("port", ["-1", "65536", "http", "4040.5"])
def test_a_port_that_is_none_is_told_with_what_is_right(port: str) -> None:
    done = run_here("console", "--port", port)
    assert done.returncode == 2
    assert "Invalid value for '--port'" in done.stderr
