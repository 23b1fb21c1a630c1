"""The real `wsrelay run` in an OS process of its own, and clients that talk to it."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Self

import psutil
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

__all__ = [
    "HANDLERS",
    "MARK",
    "TIMEOUT",
    "Running",
    "client",
    "closed",
    "family_of",
    "gone",
    "news",
    "received",
    "until",
]

HANDLERS = Path(__file__).resolve().parent.parent / "handlers"
TIMEOUT = 60.0

MARK = "WSRELAY_TEST_FAMILY"


def until(condition: Callable[[], Any], what: str, timeout: float = TIMEOUT) -> Any:
    """Wait until the condition gives something true, and return that."""
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"still not so after {timeout} s: {what}")
        time.sleep(0.005)
    return result


def gone(process: psutil.Process) -> bool:
    """Whether it runs no more; a zombie, which waits for its parent only, counts as gone."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def family_of(mark: str) -> list[psutil.Process]:
    """All living processes whose environment has this mark, which all descendants inherit."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and not gone(process):
                found.append(process)
        except psutil.Error:
            continue
    return found


class Lines:
    """The lines of one stream, read by a thread as they come."""

    def __init__(self, stream: IO[str]) -> None:
        self._lines: list[str] = []
        self._at_end = False
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            with self._news:
                self._lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._at_end = True
            self._news.notify_all()

    @property
    def lines(self) -> list[str]:
        with self._news:
            return [*self._lines]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def line(self, part: str, timeout: float = TIMEOUT) -> str:
        """Wait for the first line that contains the text, and return it."""
        with self._news:
            self._news.wait_for(lambda: self._at_end or self._find(part) is not None, timeout)
            found = self._find(part)
        assert found is not None, f"no line has {part!r}:\n{self.text}"
        return found

    def _find(self, part: str) -> str | None:
        return next((line for line in self._lines if part in line), None)

    def join(self) -> None:
        """Wait for the stream's end, which comes with the last process that holds it."""
        self._thread.join(TIMEOUT)


class Running:
    """`wsrelay run TARGET OPTIONS` on a free port, in a session of its own; a YAML file is served.

    Entering waits until it serves, or has ended if `serves` is false; leaving ends it and checks
    that it left nothing behind. Its processes are known by a mark in their environment, which all
    descendants inherit, whoever their parent is by now.
    """

    def __init__(
        self,
        target: str | Path,
        *options: str,
        arguments: Sequence[str] = (),
        cwd: Path | None = None,
        serves: bool = True,
        port: int = 0,
    ) -> None:
        self.address = ""
        """`host:port`."""
        self._command = [sys.executable, "-m", "wsrelay"]
        if Path(target).suffix in (".yaml", ".yml"):
            self._command += ["serve", *options, "-c", str(target)]
        else:
            self._command += ["run", "--port", str(port), *options, str(target)]
        self._command += ["--", *arguments] if arguments else []
        self._cwd = cwd
        self._port = port
        self._serves = serves
        self._mark = uuid.uuid4().hex

    def __enter__(self) -> Self:
        # Unbuffered output would hide that lines are not flushed.
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
        self._process = subprocess.Popen(
            self._command,
            cwd=self._cwd,
            env={**environment, "PORT": str(self._port), MARK: self._mark},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self.stdout = Lines(self._process.stdout)
        self.stderr = Lines(self._process.stderr)
        try:
            if self._serves:
                line = self.stderr.line("http://")
                self.address = line.partition("http://")[2].partition("/")[0].split()[0]
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        left = self._end()
        if kind is None:
            assert not left, f"processes left behind: {left}"

    def _end(self) -> list[str]:
        if self._process.poll() is None:
            self._process.kill()  # an orderly end takes longer, and has tests of its own
            self._process.wait()
        try:
            until(lambda: not self.family(), "all its processes are gone", 1)
        except AssertionError:
            left = self.family()
        else:
            left = []
        names = [" ".join(process.cmdline()) for process in left]
        for process in left:
            process.kill()
        self.stdout.join()
        self.stderr.join()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()
        return names

    # Where it is

    def ws(self, path: str = "/ws") -> str:
        return f"ws://{self.address}{path}"

    def http(self, path: str = "/") -> str:
        return f"http://{self.address}{path}"

    # Its processes

    @property
    def pid(self) -> int:
        """The node's process id."""
        return self._process.pid

    def family(self) -> list[psutil.Process]:
        """All living processes that it has started, itself among them, wherever they are now."""
        return family_of(self._mark)

    @property
    def template(self) -> psutil.Process:
        """The process that the workers are forked from."""
        forked = [
            p for guardian in psutil.Process(self.pid).children() for p in guardian.children()
        ]
        [template] = [p for p in forked if "template of" in " ".join(p.cmdline())]
        return template

    @property
    def guardian(self) -> psutil.Process:
        """The process that ends what the template leaves."""
        guardian = self.template.parent()
        assert guardian is not None
        return guardian

    def workers(self) -> list[int]:
        """The process ids of the template's children."""
        return sorted(child.pid for child in self.template.children() if not gone(child))

    # Its end

    def signal(self, number: signal.Signals) -> None:
        """Signal the node alone, as `kill` does."""
        self._process.send_signal(number)

    def interrupt(self) -> None:
        """Press Ctrl-C: SIGINT for the whole foreground process group."""
        os.killpg(self.pid, signal.SIGINT)

    def wait(self, timeout: float = TIMEOUT) -> int:
        """Wait for the node's end and return its exit code; raises `subprocess.TimeoutExpired`."""
        return self._process.wait(timeout)


class Typed(Running):
    """A command as it stands on a page, with more options."""

    def __init__(self, command: str, *more: str, cwd: Path) -> None:
        super().__init__("", cwd=cwd)
        words = [*shlex.split(command), *more]
        if (program := Path(sys.executable).parent / words[0]).exists():
            words[0] = str(program)
        self._command = words


@contextlib.contextmanager
def client(url: str, **options: Any) -> Iterator[ClientConnection]:
    """A WebSocket client that sends no pings of its own."""
    settings = {"ping_interval": None, "proxy": None, "close_timeout": 2}
    with connect(url, **{**settings, **options}) as websocket:
        yield websocket


def received(websocket: ClientConnection) -> str | bytes:
    return websocket.recv(TIMEOUT)


def news(websocket: ClientConnection) -> Any:
    """Receive a text message and return what its JSON says."""
    return json.loads(received(websocket))


def closed(websocket: ClientConnection) -> tuple[int, str]:
    """Read until the close frame; gives its code and reason."""
    try:
        while True:
            websocket.recv(TIMEOUT)
    except ConnectionClosed as error:
        frame = error.rcvd
        return (frame.code, frame.reason) if frame else (1006, "")
