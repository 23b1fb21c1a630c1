"""What `run` and `serve` share: the event loop, how to fail, and restarts on edits."""

from __future__ import annotations

import logging
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Never

from wsrelay.errors import MissingExtra
from wsrelay.values import extras, linux
from wsrelay.values.printable import escaped

__all__ = [
    "fail",
    "loop_factory",
    "prepare_process",
    "reload_on_edits",
    "say",
    "write_line",
]

logger = logging.getLogger(__name__)

_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_OF_PROCESS: Final = 4
"""Descriptors that the node has for each process: two of its pipe, its output and its pidfd."""

_OF_NODE: Final = 64
"""Descriptors that it has of its own, as a round figure."""

_PATIENCE: Final = 30.0
"""Seconds that the server gets to end before it is killed."""


def say(text: str) -> None:
    """Write one or more lines to standard error if possible, with control characters escaped.

    Not through `sys.stderr`: what a full disk refuses would stay in its buffer and make the exit
    code 120.
    """
    write_line("\n".join(map(escaped, text.expandtabs().split("\n"))).encode())


def write_line(line: bytes) -> None:
    """Write a line to standard error as it is, if possible."""
    rest = line + b"\n"
    try:
        while rest:
            rest = rest[os.write(2, rest) :]
    except OSError:
        pass


def fail(line: str, details: str = "") -> Never:
    """End with exit code 1 and one line on standard error, after the user's traceback."""
    if details:
        say(details.rstrip())
    say(f"wsrelay: {line}")
    sys.exit(1)


def loop_factory() -> Any:
    """Return uvloop's factory, or None where uvloop is not installed."""
    try:
        import uvloop  # noqa: PLC0415 - not on every platform
    except ImportError:
        return None
    return uvloop.new_event_loop


def prepare_process(connections: int, processes: int) -> None:
    """Prepare this process to be a node.

    It keeps freed memory for large messages and raises its limit of descriptors as far as it may;
    if that may be too low for this many connections and processes, it logs a warning.
    """
    linux.keep_freed_memory()
    needed = connections + _OF_PROCESS * processes + _OF_NODE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != soft:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):  # macOS says unlimited and means less
            hard = soft
    if hard != resource.RLIM_INFINITY and hard < needed:
        logger.warning(
            "the system allows %d open descriptors, but all connections and processes may need %d: "
            "raise the limit (ulimit -Hn, LimitNOFILE=) or lower max_connections",
            hard,
            needed,
        )


def reload_on_edits(folders: Sequence[Path]) -> Never:
    """Run this command without `--reload`, and restart it when a file changes; never returns.

    Watches Python, YAML and web files. If the command ends by itself, the next edit starts it
    again.
    """
    try:
        with extras.named():
            import watchfiles  # noqa: PLC0415 - only for development
    except MissingExtra as error:
        fail(str(error))

    given = sys.argv[1:]
    ours = given[: given.index("--")] if "--" in given else given  # the rest is the script's
    arguments = [argument for argument in ours if argument != "--reload"]
    # -B: cached byte code misses an edit that keeps the size within a second of the previous one.
    command = [sys.executable, "-B", "-m", "wsrelay", *arguments, *given[len(ours) :]]
    parent = os.getpid()
    stopping = False
    signalled: subprocess.Popen[bytes] | None = None  # a second signal would end it at once

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603 - this very command
            command,
            start_new_session=True,  # the terminal's Ctrl-C reaches it only through this process
            preexec_fn=lambda: linux.die_with_parent(parent),  # noqa: PLW1509 - no other thread can hold a lock yet
        )

    def stop(number: int, _frame: object) -> None:
        nonlocal stopping, signalled
        stopping = True
        if child.poll() is None:
            signalled = child
            child.send_signal(number)

    child = start()
    for number in _STOP_SIGNALS:
        signal.signal(number, stop)
    watch = watchfiles.watch(
        *{folder for folder in folders if folder.is_dir()},
        watch_filter=watchfiles.DefaultFilter(),
        rust_timeout=200,
        yield_on_timeout=True,
        raise_interrupt=False,
    )
    for changes in watch:
        if stopping:
            break
        edited = sorted({os.path.relpath(path) for _, path in changes if _counts(path)})
        if edited:
            say(f"wsrelay: {', '.join(edited[:3])} changed; restarting")
            _end(child)
            child = start()
    sys.exit(_wait(child) if signalled is child else _end(child))


def _counts(path: str) -> bool:
    return Path(path).suffix in {".py", ".yaml", ".yml", ".html", ".js", ".css"}


def _end(child: subprocess.Popen[bytes]) -> int:
    if child.poll() is None:
        child.terminate()
    return _wait(child)


def _wait(child: subprocess.Popen[bytes]) -> int:
    try:
        return child.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()
