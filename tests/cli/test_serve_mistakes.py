"""What keeps `wsrelay serve` from starting."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ports import free_port
from running import Running, client, closed, received, until
from sites import ECHO, Site, listens


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


Mistake = Callable[[Site], str]


def taken(site: Site) -> str:
    site.sock = socket.create_server(("127.0.0.1", 0))  # type: ignore[attr-defined]
    address = f"127.0.0.1:{site.sock.getsockname()[1]}"  # type: ignore[attr-defined]
    site.add("gateway", "http.service", addr=address)
    return f"cannot listen on {address}: the address is in use; choose another port"


def no_server(site: Site) -> str:
    for name in ("gateway", "router"):
        del site.entries[name]
    site.write()
    return "the configuration has no http.service entry: there is nothing to serve"


def no_function(site: Site) -> str:
    site.endpoint("text")
    site.entries["text_function"]["method"] = "txt"
    site.write()
    return "app:text_function: {folder}/web.py has no function 'txt'; it defines "


def raising(site: Site) -> str:
    (site.folder / "echo.py").write_text("1/0")
    return "{folder}/echo.py cannot be imported: ZeroDivisionError: division by zero"


def bad_path(site: Site) -> str:
    site.endpoint("text", "/{id:number}")
    return "app:text.endpoint: key 'path': '/api/{id:number}' is not a path: "


def no_certificate(site: Site) -> str:
    (site.folder / "empty.pem").touch()
    tls = {"cert": "empty.pem", "key": "empty.pem"}
    site.add("gateway", "http.service", addr="127.0.0.1:0", tls=tls)
    return "app:gateway: key 'tls.cert': cannot use certificate {folder}/empty.pem: "


@pytest.mark.parametrize(
    "mistake", [taken, no_server, no_function, raising, bad_path, no_certificate]
)
def test_what_cannot_be_served_is_one_clear_line(site: Site, mistake: Mistake) -> None:
    expected = mistake(site).replace("{folder}", str(site.folder))
    with site.serving(serves=False) as running:
        assert running.wait() == 1
        assert running.stderr.line(expected).startswith("wsrelay: ")
    if (sock := getattr(site, "sock", None)) is not None:
        sock.close()


def test_no_configuration_at_all(tmp_path: Path) -> None:
    with Running(tmp_path / "no.yaml", serves=False) as running:
        assert running.wait() == 1
        running.stderr.line("no.yaml: does not exist")


@pytest.fixture
def edited(site: Site) -> Iterator[Running]:
    site.endpoint("connect")
    port = free_port()
    site.add("gateway", "http.service", addr=f"127.0.0.1:{port}", timeouts={"drain": "0s"})
    with site.serving("--reload") as running:
        yield running


def test_reload_starts_again_when_a_file_changes(site: Site, edited: Running) -> None:
    with client(edited.ws("/api/connect")) as one:
        one.send("x")
        assert received(one) == "one x"
        (site.folder / "echo.py").write_text(ECHO.replace('"one"', '"two"'))
        assert closed(one) == (1012, "node shuts down")
    until(lambda: listens(edited.address), "it accepts again")
    with client(edited.ws("/api/connect")) as one:
        one.send("x")
        assert received(one) == "two x"
    edited.signal(signal.SIGINT)
    assert edited.wait() == 0
