"""The peers, each in its best known form; one that is not installed says what is missing."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final

from .places import HERE, ROOT
from .servers import Command, Server, free_port

__all__ = ["PEERS", "Peer", "Revision"]

_PEERS = HERE / "peers"


class Peer(ABC):
    """One that is measured.

    Its modes: `echo` and `service` have a process per client, if any; `warm` has some in advance.
    """

    name: str
    about: str
    modes: ClassVar[frozenset[str]] = frozenset({"echo", "service", "room"})
    packages: ClassVar[Sequence[str]] = ()
    programs: ClassVar[Sequence[str]] = ()
    crowd: ClassVar[int] = sys.maxsize
    """Processes from which on a hurried run leaves it out, because it takes long to start them."""

    @property
    def place(self) -> str:
        """Return the name by which works know it."""
        return self.name

    def missing(self) -> str:
        """Say what is not installed, if anything."""
        lacking = [name for name in self.packages if not importlib.util.find_spec(name)]
        lacking += [name for name in self.programs if not shutil.which(name)]
        return ", ".join(lacking)

    @abstractmethod
    def version(self) -> str:
        """Say what is measured."""

    @abstractmethod
    def commands(self, mode: str) -> list[Command]:
        """Return its programs."""

    def server(self, mode: str) -> Server:
        """Return a server, not yet started."""
        return Server(self.name, self.commands(mode))


def _versions(*packages: str) -> str:
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)


class _Relay(Peer):
    name = "wsrelay"
    about = "wsrelay run, a process per connection or one per room"
    modes = frozenset({"echo", "service", "room", "warm"})

    root = ROOT

    def version(self) -> str:
        return _versions("wsrelay")

    def commands(self, mode: str) -> list[Command]:
        port = free_port()
        echo = str(self.root / "handlers" / "echo.py")
        arguments = [sys.executable, "-m", "wsrelay", "run", "--port", str(port)]
        arguments += ["--log-level", "error", "--max-processes", "600"]
        arguments += ["--scope", "shared" if mode == "room" else "connection"]
        arguments += ["--warm", "4" if mode == "warm" else "0"]
        arguments += [echo if mode in {"echo", "warm"} else f"{_PEERS / 'rooms.py'}:{mode}"]
        return [Command(arguments, port, modules=[self.root])]


class Revision(_Relay):
    """Another version of this tree, taken from its history into a folder."""

    place = _Relay.name

    def __init__(self, revision: str, folder: Path) -> None:
        """Raise `ValueError` for a revision that there is not."""
        asked = [
            "git",
            "-C",
            str(ROOT),
            "rev-parse",
            "--verify",
            "--short",
            f"{revision}^{{commit}}",
        ]
        found = subprocess.run(asked, capture_output=True, text=True, check=False)
        if found.returncode:
            raise ValueError(f"{revision!r} is no revision of {ROOT}")
        self._commit = found.stdout.strip()
        self.name = f"{_Relay.name}@{revision}"
        self.about = f"{_Relay.about}, as of {self._commit}"
        self.root = folder
        archive = ["git", "-C", str(ROOT), "archive", self._commit, "wsrelay", "handlers"]
        packed = subprocess.run(archive, capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x", "-C", str(folder)], input=packed, check=True)

    def version(self) -> str:
        """Say which commit it is."""
        return f"commit {self._commit}"


def _uvicorn(application: str, port: int, ws: str, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "uvicorn", application, "--port", str(port), "--ws", ws),
        *("--loop", "uvloop", "--log-level", "error", "--no-access-log", "--backlog", "2048"),
        *("--timeout-graceful-shutdown", "1", "--ws-per-message-deflate", "false", *more),
    ]


class _InProcess(Peer):
    ws: ClassVar[str]
    library: ClassVar[str]

    def version(self) -> str:
        return _versions("uvicorn", self.library)

    def commands(self, mode: str) -> list[Command]:
        port = free_port()
        application = f"benchmark.peers.inprocess:{mode}"
        return [Command(_uvicorn(application, port, self.ws, "--lifespan", "off"), port)]


class _Wsproto(_InProcess):
    name = "uvicorn-wsproto"
    about = "ASGI in uvicorn's own process, no process behind it"
    ws = library = "wsproto"


class _Sansio(_InProcess):
    name = "uvicorn-sansio"
    about = "the same with uvicorn's websockets-sansio"
    ws, library = "websockets-sansio", "websockets"


class _Websocketd(Peer):
    name = "websocketd"
    about = "a Python process per connection, lines on its standard input and output"
    modes = frozenset({"echo", "service"})
    programs = ("websocketd",)

    def version(self) -> str:
        asked = ["dpkg-query", "--show", "--showformat=${Version}", "websocketd"]
        said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
        return f"websocketd {said or '?'}"

    def commands(self, mode: str) -> list[Command]:
        port = free_port()
        # The interpreter without a virtual environment and site-packages is the lightest.
        python = getattr(sys, "_base_executable", sys.executable)
        handler = [python, "-S", str(_PEERS / "lines.py"), mode]
        arguments = ["websocketd", "--address", "127.0.0.1", "--port", str(port)]
        arguments += ["--loglevel", "fatal", "--passenv", "PATH,PYTHONPATH"]
        return [Command([*arguments, *handler], port)]


class _Bridge(Peer):
    name = "bridge"
    about = "made by hand: FastAPI, multiprocessing (forkserver), a pipe per process"
    packages = ("fastapi",)
    crowd = 50

    def version(self) -> str:
        return _versions("fastapi", "uvicorn", "websockets")

    def commands(self, mode: str) -> list[Command]:
        port = free_port()
        arguments = _uvicorn("benchmark.peers.bridge:app", port, "websockets-sansio")
        return [Command(arguments, port, {"BENCH_MODE": mode})]


def _redis() -> str:
    """Return Redis's program; Debian ships the server in redis-tools under another name."""
    return shutil.which("redis-server") or shutil.which("redis-check-rdb") or ""


class _Channels(Peer):
    name = "channels"
    about = "a Django Channels consumer, uvicorn, channels_redis (publish and subscribe)"
    modes = frozenset({"room"})
    packages = ("channels", "channels_redis")

    def missing(self) -> str:
        lacking = [super().missing(), "" if _redis() else "redis-server"]
        return ", ".join(filter(None, lacking))

    def version(self) -> str:
        return _versions("channels", "channels_redis", "django")

    def commands(self, mode: str) -> list[Command]:
        port, redis = free_port(), free_port()
        serve = ["redis-server", "--port", str(redis), "--bind", "127.0.0.1", "--save", ""]
        settings = {"BENCH_REDIS": f"redis://127.0.0.1:{redis}"}
        arguments = _uvicorn(f"benchmark.peers.group:{mode}", port, "websockets-sansio")
        return [
            Command(serve, redis, executable=_redis()),
            Command([*arguments, "--lifespan", "off"], port, settings),
        ]


_BEAMS: Final = (
    *(Path("/usr/lib/rabbitmq/lib"), ROOT / ".venv" / "debian" / "usr/lib/rabbitmq/lib"),
    Path("/usr/lib/erlang/lib"),
)


@functools.cache
def _beams() -> list[str]:
    """Return the folders of cowboy and of what it needs, or nothing."""
    for root in _BEAMS:
        found = [sorted(root.glob(f"**/{name}-*/ebin")) for name in ("cowboy", "cowlib", "ranch")]
        if all(found):
            return [str(folders[-1]) for folders in found]
    return []


class _Cowboy(Peer):
    name = "cowboy"
    about = "Erlang: a connection is a process, the room a pg group"
    modes = frozenset({"room"})
    programs = ("erl", "erlc")

    def missing(self) -> str:
        lacking = [super().missing(), "" if _beams() else "cowboy's beams"]
        return ", ".join(filter(None, lacking))

    def version(self) -> str:
        return Path(_beams()[0]).parent.name.replace("-", " ")

    @functools.cached_property
    def _compiled(self) -> tempfile.TemporaryDirectory[str]:
        folder = tempfile.TemporaryDirectory(prefix="wsrelay-bench-")
        source = str(_PEERS / "bench_cowboy.erl")
        subprocess.run(["erlc", "-o", folder.name, source], check=True)
        return folder

    def commands(self, mode: str) -> list[Command]:
        del mode
        port = free_port()
        arguments = ["erl", "-noinput", "-noshell", "+Q", "65536", "-port", str(port)]
        for folder in (*_beams(), self._compiled.name):
            arguments += ["-pa", folder]
        return [Command([*arguments, "-s", "bench_cowboy"], port)]


PEERS: Final[dict[str, Peer]] = {
    peer.name: peer
    for peer in (
        _Relay(),
        _Wsproto(),
        _Sansio(),
        _Websocketd(),
        _Bridge(),
        _Channels(),
        _Cowboy(),
    )
}
