"""The peers, each in its best known form; one that is not installed says what is missing.

Their modes: `echo` and `service` have a process per client, if any, `room` has one for all; `warm`
is `echo` with processes forked ahead.
"""

from __future__ import annotations

import functools
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from .machine import ROOT, git
from .server import SCRIPTS, Command, Server, free_port

__all__ = ["PEERS", "Peer", "revision"]

_SERVED = Path(__file__).with_name("served")

_Start = Callable[[str], Server]


class Peer(Struct, frozen=True, kw_only=True):
    """One that is measured."""

    name: str
    about: str
    start: _Start
    """Returns a server for a mode; it starts when it is entered."""
    modes: Sequence[str] = ("echo", "service", "room")
    packages: Sequence[str] = ()
    """Python packages that it needs."""
    needs: Mapping[str, Callable[[], object]] = {}
    """What else it needs, and how that is found."""
    told: Callable[[], str] = str
    """Its version, where it is none of the packages'."""
    processes: int = sys.maxsize
    """How many it starts within reasonable time; a hurried run leaves out what needs more."""

    def missing(self) -> str:
        """Say what is not installed, if anything."""
        lacking = [name for name in self.packages if not importlib.util.find_spec(name)]
        return ", ".join(lacking + [name for name, find in self.needs.items() if not find()])

    def version(self) -> str:
        """Say what is measured."""
        return self.told() or ", ".join(f"{name} {version(name)}" for name in self.packages)


PEERS: Final[dict[str, Peer]] = {}


def _peer(name: str, about: str, **more: Any) -> Callable[[_Start], _Start]:
    """Add to the peers what the decorated function starts."""

    def add(start: _Start) -> _Start:
        PEERS[name] = Peer(name=name, about=about, start=start, **more)
        return start

    return add


def _programs(*names: str) -> dict[str, Callable[[], object]]:
    return {name: functools.partial(shutil.which, name) for name in names}


@_peer(
    "wsrelay",
    "wsrelay run, a process per connection or one per room",
    modes=("echo", "service", "room", "warm"),
    packages=("wsrelay",),
)
def _wsrelay(mode: str) -> Server:
    return _run_wsrelay(mode, ROOT)


def _run_wsrelay(mode: str, root: Path) -> Server:
    """Run the wsrelay of a tree, with its own echo, by its command: versions differ in modules."""
    port, echo = free_port(), str(root / "handlers" / "echo.py")
    handler = echo if mode in {"echo", "warm"} else f"{_SERVED / 'rooms.py'}:{mode}"
    arguments = [
        *(sys.executable, "-m", "wsrelay", "run", "--port", str(port)),
        *("--log-level", "error", "--max-processes", "600"),
        *("--scope", "shared" if mode == "room" else "connection"),
        *("--warm", "4" if mode == "warm" else "0", handler),
    ]
    return Server(Command(arguments, port, {"PYTHONPATH": f"{root}:{SCRIPTS}"}))


def _uvicorn(application: str, ws: str, **environment: str) -> Command:
    port = free_port()
    arguments = [
        *(sys.executable, "-m", "uvicorn", application, "--port", str(port), "--ws", ws),
        *("--loop", "uvloop", "--log-level", "error", "--no-access-log", "--backlog", "2048"),
        *("--timeout-graceful-shutdown", "1", "--ws-per-message-deflate", "false"),
        *("--lifespan", "off"),
    ]
    return Command(arguments, port, environment)


@_peer(
    "uvicorn-wsproto",
    "ASGI in uvicorn's own process, no process behind it",
    packages=("uvicorn", "wsproto"),
)
def _wsproto(mode: str) -> Server:
    return Server(_uvicorn(f"benchmark.served.inprocess:{mode}", "wsproto"))


@_peer(
    "uvicorn-sansio",
    "the same with uvicorn's websockets-sansio",
    packages=("uvicorn", "websockets"),
)
def _sansio(mode: str) -> Server:
    return Server(_uvicorn(f"benchmark.served.inprocess:{mode}", "websockets-sansio"))


def _websocketd_version() -> str:
    asked = ["dpkg-query", "--show", "--showformat=${Version}", "websocketd"]
    said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    return f"websocketd {said or '?'}"


@_peer(
    "websocketd",
    "a Python process per connection, lines on its standard input and output",
    modes=("echo", "service"),
    needs=_programs("websocketd"),
    told=_websocketd_version,
)
def _websocketd(mode: str) -> Server:
    port = free_port()
    # The interpreter without a virtual environment and site-packages is the lightest.
    python = getattr(sys, "_base_executable", sys.executable)
    arguments = [
        *("websocketd", "--address", "127.0.0.1", "--port", str(port), "--loglevel", "fatal"),
        *("--passenv", "PATH,PYTHONPATH", python, "-S", str(_SERVED / "lines.py"), mode),
    ]
    return Server(Command(arguments, port))


@_peer(
    "bridge",
    "made by hand: FastAPI, multiprocessing (forkserver), a pipe per process",
    packages=("fastapi", "uvicorn", "websockets"),
    processes=49,
)
def _bridge(mode: str) -> Server:
    return Server(_uvicorn("benchmark.served.bridge:app", "websockets-sansio", BENCH_MODE=mode))


def _redis() -> str:
    """Return Redis's program; Debian ships the server in redis-tools under another name."""
    return shutil.which("redis-server") or shutil.which("redis-check-rdb") or ""


@_peer(
    "channels",
    "a Django Channels consumer, uvicorn, channels_redis (publish and subscribe)",
    modes=("room",),
    packages=("channels", "channels_redis", "django"),
    needs={"redis-server": _redis},
)
def _channels(mode: str) -> Server:
    port = free_port()
    redis = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    layer = {"BENCH_REDIS": f"redis://127.0.0.1:{port}"}
    application = _uvicorn(f"benchmark.served.group:{mode}", "websockets-sansio", **layer)
    return Server(Command(redis, port, executable=_redis()), application)


@functools.cache
def _beams() -> list[str]:
    """Return the folders of cowboy and of what it needs, or nothing."""
    debian = Path("usr/lib/rabbitmq/lib")
    for root in ("/" / debian, ROOT / ".venv/debian" / debian, Path("/usr/lib/erlang/lib")):
        found = [sorted(root.glob(f"**/{name}-*/ebin")) for name in ("cowboy", "cowlib", "ranch")]
        if all(found):
            return [str(folders[-1]) for folders in found]
    return []


@functools.cache
def _compiled() -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory(prefix="wsrelay-bench-")
    subprocess.run(["erlc", "-o", folder.name, str(_SERVED / "bench_cowboy.erl")], check=True)
    return folder


@_peer(
    "cowboy",
    "Erlang: a connection is a process, the room a pg group",
    modes=("room",),
    needs={**_programs("erl", "erlc"), "cowboy's beams": _beams},
    told=lambda: Path(_beams()[0]).parent.name.replace("-", " "),
)
def _cowboy(_mode: str) -> Server:
    port = free_port()
    arguments = ["erl", "-noinput", "-noshell", "+Q", "65536", "-port", str(port)]
    for folder in (*_beams(), _compiled().name):
        arguments += ["-pa", folder]
    return Server(Command([*arguments, "-s", "bench_cowboy"], port))


def revision(name: str, folder: Path) -> Peer:
    """Take another version of this tree from its history into a folder.

    Raises `ValueError` for a revision that does not exist.
    """
    try:
        commit = git("rev-parse", "--verify", "--short", f"{name}^{{commit}}").decode().strip()
    except subprocess.CalledProcessError:
        raise ValueError(f"{name!r} is no revision of {ROOT}") from None
    archive = git("archive", commit, "wsrelay", "handlers")
    subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
    return replace(
        PEERS["wsrelay"],
        name=f"wsrelay@{name}",
        about=f"{PEERS['wsrelay'].about}, as of {commit}",
        start=lambda mode: _run_wsrelay(mode, folder),
        told=lambda: f"commit {commit}",
    )
